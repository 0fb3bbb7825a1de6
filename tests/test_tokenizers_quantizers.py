"""Quantizers: one interface, ids that decode to what forward gave, codebooks that stay alive, no tables."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import VectorQuantize

from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.quantizers import QUANTIZERS
from emu_tokenizers.quantizers.base import Quantizer
from emu_tokenizers.quantizers.codebook import EmaCodebook
from emu_tokenizers.quantizers.learned import IndexQuantizer
from emu_tokenizers.quantizers.vq import VectorQuantizer

MAKE = {
    "vq": {},
    "residual": {"num_codebooks": 3},
    "multi": {"num_codebooks": 2},
    "simvq": {},
    "ibq": {},
    "fsq": {"levels": (4, 4, 4)},
    "lfq": {"num_codebooks": 2},
    "bsq": {},
}
DIM, SIZE = 8, 64


def test_every_quantizer_of_the_table_is_tested_and_in_the_reference():
    page = (Path(__file__).parents[1] / "docs" / "api" / "quantizers.md").read_text()
    assert set(MAKE) == set(QUANTIZERS)
    modules = {getattr(made, "func", made).__module__ for made in QUANTIZERS.values()}
    assert not [module for module in sorted(modules) if module not in page]


class LargestTensor(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return out


def make(name: str, **options) -> Quantizer:
    torch.manual_seed(0)
    return QUANTIZERS[name](DIM, SIZE, **{**MAKE[name], **options})


def latents(*grid: int, seed: int = 1, batch: int = 2, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(batch, DIM, *grid, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ids_decode_to_what_forward_gave(name, training, dtype):
    quantizer = make(name).to(dtype).train(training)
    x = latents(3, 4, dtype=dtype).requires_grad_()
    before = copy.deepcopy(quantizer)
    if training:
        before.prepare(x.detach().movedim(1, -1).reshape(-1, DIM))
    out = quantizer(x)
    books = len(quantizer.codebook_sizes)
    assert out.ids.dtype == torch.int64
    assert out.ids.shape == (2, 3, 4) + ((books,) if books > 1 else ())
    assert out.vectors.shape == x.shape and out.vectors.dtype == dtype
    assert out.grid == (3, 4)
    assert torch.equal(before.decode(out.ids), out.vectors)
    assert torch.equal(before.encode(x), out.ids)


@pytest.mark.parametrize("name", MAKE)
def test_every_id_has_a_vector_and_ids_stay_in_range(name):
    quantizer = make(name).eval()
    books = len(quantizer.codebook_sizes)
    everything = torch.arange(SIZE).expand(1, -1)
    ids = everything if books == 1 else everything[..., None].expand(-1, -1, books)
    assert torch.isfinite(quantizer.decode(ids)).all()
    found = quantizer.encode(latents(50))
    assert found.min() >= 0 and found.max() < SIZE


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_fixed_codes_are_found_again(name):
    quantizer = QUANTIZERS[name](6, SIZE)
    ids = torch.arange(SIZE)[None]
    assert torch.equal(quantizer.encode(quantizer.decode(ids)), ids)


@pytest.mark.parametrize("name", MAKE)
def test_gradients_reach_the_latents_and_losses_are_named(name):
    quantizer = make(name).train()
    x = latents(5, 5).requires_grad_()
    out = quantizer(x)
    assert set(out.losses) == set(quantizer.loss_weights)
    (out.vectors.square().sum() + sum(out.losses.values())).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert [n for n, p in quantizer.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", MAKE)
def test_evaluation_changes_nothing(name):
    quantizer = make(name).eval()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(latents(6, 6))
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("training", [True, False])
def test_latents_of_zero_get_the_vector_of_their_id(name, training):
    quantizer = make(name).train(training)
    quantizer(latents(6, 6))  # starts the codes
    out = quantizer(torch.zeros(1, DIM, 2, 2).requires_grad_())
    assert torch.isfinite(out.vectors).all()
    if not training:
        assert torch.equal(out.vectors, quantizer.decode(out.ids))


@pytest.mark.parametrize("name", MAKE)
def test_losses_of_an_evaluation_remember_no_training(name):
    quantizer = make(name).train()
    sum(quantizer(latents(6, 6)).losses.values(), torch.zeros(()))
    with torch.no_grad():
        losses = quantizer.eval()(latents(6, 6)).losses
    assert not any(loss.requires_grad for loss in losses.values())


@pytest.mark.parametrize("name", MAKE)
def test_autocast_does_not_move_ids(name):
    quantizer = make(name).eval()
    x = latents(20, 20)
    expected = quantizer.encode(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(x), expected)
        assert torch.equal(quantizer(x).ids, expected)


@pytest.mark.parametrize("name", MAKE)
def test_half_precision_latents_are_taken(name):
    out = make(name).eval()(latents(4, 4, dtype=torch.bfloat16))
    assert out.vectors.dtype == torch.bfloat16


@pytest.mark.parametrize("name", MAKE)
def test_quantizers_travel_between_processes(name):
    quantizer = pickle.loads(pickle.dumps(make(name).eval()))
    assert torch.equal(quantizer.encode(latents(4)), make(name).eval().encode(latents(4)))


@pytest.mark.parametrize("name", MAKE)
def test_a_tokenizer_of_every_quantizer_trains_saves_and_decodes_its_ids(name, tmp_path):
    torch.manual_seed(0)
    config = VisionTokenizerConfig.preset(
        "small", base_channels=8, codebook_size=SIZE, quantizer=name, quantizer_options=MAKE[name]
    )
    tokenizer = VisionTokenizer(config).train()
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    tokenizer(pixels).reconstruction.mean().backward()
    tokenizer.eval().save_pretrained(tmp_path)
    loaded = VisionTokenizer.from_pretrained(tmp_path)
    codes = tokenizer.encode(pixels)
    assert torch.equal(loaded.encode(pixels), codes)
    torch.testing.assert_close(loaded(pixels).reconstruction, loaded.decode(codes))
    assert loaded.codebook_sizes == tokenizer.codebook_sizes


def test_moving_averages_are_those_of_the_library():
    theirs = VectorQuantize(DIM, SIZE, decay=0.9, threshold_ema_dead_code=0, rotation_trick=False).train()
    ours = VectorQuantizer(DIM, SIZE, decay=0.9, dead_code_ratio=0, kmeans_iters=0).train()
    for name in ("embed", "embed_avg", "cluster_size"):
        getattr(ours.codebook, name).copy_(getattr(theirs._codebook, name))
    for seed in range(3):
        x = latents(30, seed=seed)
        _, ids, _ = theirs(x.movedim(1, -1))
        assert torch.equal(ours(x).ids, ids)
    torch.testing.assert_close(ours.weight, theirs.codebook)


def test_k_means_starts_the_codebook_on_the_first_training_batch_only():
    quantizer = make("vq")
    first = quantizer.weight.clone()
    quantizer.eval()(latents(10, 10))
    assert not quantizer.started and torch.equal(quantizer.weight, first)
    quantizer.train()(latents(10, 10))
    assert quantizer.started and not torch.equal(quantizer.weight, first)


def test_dead_codes_come_back_and_live_ones_stay():
    quantizer = make("vq", decay=0.5)
    quantizer.codebook.initted.fill_(True)
    quantizer.codebook.embed[0, 8:] += 1000  # out of reach
    quantizer.train()
    for seed in range(12):
        quantizer(latents(16, 16, seed=seed))
    used = quantizer.encode(latents(30, 30, seed=99)).unique().numel()
    assert used > 0.9 * SIZE


def test_fewer_vectors_than_codes_do_not_reset_every_code():
    quantizer = make("vq").train()
    x = latents(2, 2)  # 8 vectors, 64 codes
    for _ in range(3):
        quantizer(x)
    for _ in range(20):
        assert torch.allclose(quantizer(x).vectors, x, atol=1e-3)


def test_equal_codes_of_a_small_first_batch_part_in_time():
    quantizer = make("vq", decay=0.8).train()
    quantizer(latents(2, 2))
    for seed in range(40):
        quantizer(latents(8, 8, seed=seed))
    assert quantizer.weight.unique(dim=0).shape[0] == SIZE


def test_training_does_not_touch_the_global_random_state():
    quantizer = make("vq").train()
    state = torch.get_rng_state()
    quantizer(latents(10, 10))
    assert torch.equal(torch.get_rng_state(), state)


def test_codes_that_are_set_stay_where_they_were_put():
    quantizer = make("vq").train()
    codes = torch.randn(SIZE, DIM) + 3
    quantizer.load_codes(codes)
    quantizer(codes.T[None])  # one vector on every code
    torch.testing.assert_close(quantizer.weight, codes, rtol=1e-3, atol=1e-3)


def test_a_large_codebook_needs_no_table():
    quantizer = VectorQuantizer(4, 32768, kmeans_iters=0).train()
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    with LargestTensor() as largest:
        out = quantizer(x)
        out.vectors.sum().backward()
    assert out.ids.max() < 32768
    assert largest.size < 256 * 32768 // 8


def test_index_backpropagation_equals_the_plain_form():
    torch.manual_seed(0)
    quantizer = IndexQuantizer(4, 32, normalize=False, dead_code_ratio=0.0).double().train()
    quantizer.initted.fill_(True)
    with torch.no_grad():
        quantizer.embedding.weight.normal_()
    x = torch.randn(1, 4, 10, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 4, 10, dtype=torch.float64)
    out = quantizer(x)
    ((out.vectors * weights).sum() + sum(out.losses.values())).backward()
    found_x, found_codes = x.grad.clone(), quantizer.embedding.weight.grad.clone()

    rows, codes = x.detach()[0].T.requires_grad_(), quantizer.embedding.weight.detach().requires_grad_()
    logits = rows @ codes.T
    soft = logits.softmax(1)
    hard = torch.nn.functional.one_hot(logits.argmax(1), 32).double()
    picked = (hard + soft - soft.detach()) @ codes
    chosen = hard @ codes
    mse = torch.nn.functional.mse_loss
    chance = (logits / 0.01).softmax(1)
    log_chance = (logits / 0.01).log_softmax(1)
    mean = chance.mean(0)
    entropy = -(chance * log_chance).sum(1).mean() + (mean * mean.clamp(min=1e-10).log()).sum()
    losses = mse(picked, rows) + mse(chosen.detach(), rows) + mse(chosen, rows.detach()) + entropy
    # The gradient of the soft product reaches the chances only, as in the module.
    soft_path = soft @ codes.detach()
    picked_value = chosen + soft_path - soft_path.detach()
    losses = losses - mse(picked, rows) + mse(picked_value, rows)
    ((picked_value.T * weights[0]).sum() + losses).backward()
    torch.testing.assert_close(found_x[0].T, rows.grad)
    torch.testing.assert_close(found_codes, codes.grad)
    assert (found_codes.abs().sum(1) > 0).all()


def test_codes_of_ibq_that_nobody_uses_move_onto_latents():
    quantizer = IndexQuantizer(DIM, SIZE).train()
    quantizer(latents(20, 20))
    with torch.no_grad():
        quantizer.embedding.weight[0] = quantizer.embedding.weight[1]  # the first of equal codes takes all
        quantizer.embedding.weight[2:] = 0
    for seed in range(60):
        quantizer(latents(20, 20, seed=seed))
    assert quantizer(latents(20, 20)).ids.unique().numel() > 0.9 * SIZE
    frozen = IndexQuantizer(DIM, SIZE, dead_code_ratio=0.0).train()
    frozen(latents(20, 20))
    before = frozen.embedding.weight.clone()
    frozen(latents(20, 20, seed=2))
    assert torch.equal(frozen.embedding.weight, before)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("fsq", {"levels": (4, 4)}, "multiply to codebook_size 64"),
        ("multi", {"num_codebooks": 3}, "a divisor of embed_dim"),
        ("vq", {"decay": 1.5}, r"\[0, 1\)"),
    ],
)
def test_options_that_cannot_work_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_lfq_wants_a_power_of_two():
    with pytest.raises(ValueError, match="power of two"):
        QUANTIZERS["lfq"](8, 63)


def test_a_new_codebook_stands_for_its_codes():
    codebook = EmaCodebook(DIM, SIZE, 0.9, 0.3, 10)
    before = codebook.embed.clone()
    codebook.update(before[0], torch.arange(SIZE))
    torch.testing.assert_close(codebook.embed, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["fsq", "lfq", "bsq"])
def test_projections_start_from_data_so_that_narrow_latents_use_many_codes(name):
    mixed = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(7)) * torch.logspace(1, -2, DIM)
    x = torch.einsum("bdhw,de->behw", latents(20, 20), mixed) + 5  # far from zero, three decades between directions
    quantizer = QUANTIZERS[name](DIM, SIZE, **({"levels": (4, 4, 4)} if name == "fsq" else {}))
    before = quantizer.eval().encode(x).unique().numel()
    assert not quantizer.started
    out = quantizer.train()(x)
    assert quantizer.started and out.ids.unique().numel() >= max(0.75 * SIZE, 1.5 * before)
    assert torch.nn.functional.mse_loss(out.vectors, x) < 0.6 * x.var((0, 2, 3), correction=0).mean()
    weights = copy.deepcopy(quantizer.state_dict())
    quantizer(x + 3)
    assert all(torch.equal(weights[key], value) for key, value in quantizer.state_dict().items())


def test_bits_that_are_balanced_but_all_equal_show_in_the_entropy():
    quantizer = QUANTIZERS["lfq"](3, 8)
    signs = torch.tensor([[1.0, 1, 1], [-1, -1, -1]])[:, None]
    free = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])[:, None]
    assert quantizer.entropy(signs, signs).item() == pytest.approx(-torch.tensor(2.0).log().item(), abs=1e-3)
    assert quantizer.entropy(free, free).item() == pytest.approx(-torch.tensor(8.0).log().item(), abs=1e-3)


@pytest.mark.parametrize("name", MAKE)
def test_a_tokenizer_saved_without_its_state_of_training_has_started(name):
    config = VisionTokenizerConfig.preset(
        "small", base_channels=8, codebook_size=SIZE, quantizer=name, quantizer_options=MAKE[name]
    )
    tokenizer = VisionTokenizer(config)
    statistics = tokenizer.quantizer.statistics
    weights = {k: v.clone() for k, v in tokenizer.state_dict().items() if k.rsplit(".", 1)[-1] not in statistics}
    assert not tokenizer.quantizer.started
    named = tokenizer.fingerprint
    tokenizer.load_weights(weights)
    assert tokenizer.quantizer.started and tokenizer.fingerprint == named


def test_codes_of_ibq_start_as_latents_of_one_length():
    x = latents(20, 20) + 3  # a mean that the few codes along it would take for themselves
    quantizer = IndexQuantizer(DIM, SIZE)
    before = quantizer.encode(x).unique().numel()
    assert not quantizer.started
    out = quantizer.train()(x)
    assert quantizer.started and out.ids.unique().numel() == SIZE > 2 * before
    lengths = quantizer.embedding.weight.norm(dim=1)
    torch.testing.assert_close(lengths, lengths.mean().expand(SIZE))


def test_codes_of_simvq_start_where_the_latents_are():
    x = latents(20, 20) + 3
    quantizer = make("simvq")
    before = quantizer.encode(x).unique().numel()
    out = quantizer.train()(x)
    assert quantizer.started and out.ids.unique().numel() == SIZE > 2 * before
    random = make("simvq", kmeans_iters=0).train()
    codes = random.weight.detach().clone()
    assert random.started
    random(x)
    assert torch.equal(random.weight, codes)
