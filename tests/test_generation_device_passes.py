"""Passes that read lengths on the device give what passes with lengths on the host give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emu.generation import Engine, device_passes
from emu.generation.device_passes import FUSED_TOKENS, RecordedPasses, decode, fuses, rows_of
from emu.generation.linear import LinearBackend
from emu.layouts import Emu3Layout
from emu.model import EmuConfig, EmuForCausalLM, StaticCache
from emu.model.block import Block
from tests.engine_toys import VOCABULARY, Letters, prompt, small

CONFIG = EmuConfig(
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    qk_norm=True,
)


@pytest.fixture(scope="module")
def model() -> EmuForCausalLM:
    torch.manual_seed(0)
    return EmuForCausalLM(CONFIG).double().eval()


@torch.no_grad()
def fill(model: EmuForCausalLM, cache: StaticCache, counts: list[int]) -> None:
    """Compute random prompts of so many tokens."""
    cache.expect(counts)
    model.forward_block(
        torch.randint(0, 97, (len(counts), max(counts)), generator=torch.Generator().manual_seed(3)), cache
    )


def filled(model: EmuForCausalLM, begins: list[int], ends: list[int], capacity: int = 60, rows: int = 5) -> StaticCache:
    """A cache with memory for more rows, that holds a prompt of each row from its beginning on."""
    cache = StaticCache(CONFIG, 0, 0, dtype=model.dtype, device="cpu")
    cache.reserve(rows, capacity)
    cache.extend(begins)
    fill(model, cache, [end - begin for begin, end in zip(begins, ends, strict=True)])
    assert (cache.begins, cache.ends) == (begins, ends)
    return cache


@pytest.mark.parametrize("counts", [[1, 1, 1], [4, 4, 4], [4, 1, 3]])
@pytest.mark.parametrize(("begins", "ends"), [([0, 0, 0], [7, 12, 3]), ([0, 5, 9], [12, 12, 12])])
@torch.no_grad()
def test_hidden_states_and_what_follows_are_the_same(
    model: EmuForCausalLM, counts: list[int], begins: list[int], ends: list[int]
) -> None:
    linear = LinearBackend(model)
    caches = [filled(model, begins, ends) for _ in range(2)]
    passes = RecordedPasses(model, linear, caches[1])
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        ids = torch.randint(0, 97, (3, max(counts)), generator=generator)
        for cache in caches:
            cache.expect(counts)
        expected, found = model.forward_block(ids, caches[0], linear), passes.run(ids)
        for row, count in enumerate(counts):
            torch.testing.assert_close(found[row, :count], expected[row, :count], rtol=1e-10, atol=1e-10)
        assert caches[0].ends == caches[1].ends


@torch.no_grad()
def test_rows_that_come_and_go_and_memory_that_grows_are_followed(model: EmuForCausalLM) -> None:
    linear = LinearBackend(model)
    caches = [filled(model, [0, 0, 0], [7, 12, 3], capacity=20) for _ in range(2)]
    passes = RecordedPasses(model, linear, caches[1])
    for step in range(9):
        if step == 2:
            for cache in caches:
                cache.keep([0, 1])
        if step == 4:
            for cache in caches:
                cache.reserve(6, 40)
                cache.extend([0])
                fill(model, cache, [0, 0, 4])
        ids = torch.full((caches[0].rows, 1), step)
        torch.testing.assert_close(passes.run(ids), model.forward_block(ids, caches[0], linear), rtol=1e-10, atol=1e-10)


def test_a_pass_that_rows_have_no_room_for_runs_as_before(model: EmuForCausalLM) -> None:
    """Where one row has tokens fewer than the others, padding would reach beyond the memory."""
    cache = filled(model, [0, 0], [10, 4], capacity=12)
    assert cache.has_room_on_device(2) and not cache.has_room_on_device(3)
    late = filled(model, [0, 8], [12, 12])
    late.truncate([12, 6])
    assert not late.has_room_on_device(1), "its second row begins beyond its end"


class _Launches(TorchDispatchMode):
    """Counts operations that start kernels, by name; views and memory start none."""

    FREE = (
        "view",
        "reshape",
        "expand",
        "slice",
        "split",
        "select",
        "transpose",
        "unsqueeze",
        "empty",
        "detach",
        "alias",
        "as_strided",
        "t.",
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if not any(part in name for part in self.FREE):
            self.names.append(name)
        assert "item" not in name and "nonzero" not in name and "_local_scalar" not in name, "the host would wait"
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_pass_starts_few_kernels_whatever_the_lengths_and_never_waits(model: EmuForCausalLM) -> None:
    linear = LinearBackend(model)
    found = []
    for ends in ([7, 12, 3], [30, 2, 9]):
        cache = filled(model, [0, 0, 0], ends)
        ids, places = torch.zeros(3, 1, dtype=torch.int64), torch.tensor([[0, 0, 0], ends])
        decode(model, linear, cache, ids, places)  # makes the table of angles
        with _Launches() as launches:
            decode(model, linear, cache, ids, places)
        found.append(launches.names)
    assert found[0] == found[1]


LAUNCHES = {"emu_kernels.decode_attention.default": 2, "aten.silu.default": 0}
"""Ops of several kernels, and one that is part of another's on a GPU."""
PER_LAYER = 7
"""A norm with q, k and v; the rotation with its writes; attention, and its parts joined; o with a sum; a norm with gate, up and their
product; down with a sum."""


def test_a_layer_of_a_pass_on_a_gpu_is_a_few_launches() -> None:
    """Counted on a CPU, which takes the ops of a GPU where gradients are on."""
    counts = []
    for layers in (1, 2):
        small = EmuForCausalLM(EmuConfig(**CONFIG.to_dict() | {"num_hidden_layers": layers})).bfloat16().eval()
        linear = LinearBackend(small)
        cache = StaticCache(small.config, 3, 60, dtype=torch.bfloat16, device="cpu")
        ids, places = torch.zeros(3, 1, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
        cache.angles(small.model.rotary_emb)
        with _Launches() as launches:
            decode(small, linear, cache, ids, places)
        counts.append(sum(LAUNCHES.get(name, 1) for name in launches.names))
    assert counts[1] - counts[0] == PER_LAYER, "\n".join(launches.names)


class _BytesRead(TorchDispatchMode):
    """Adds up the bytes of what every kernel reads; of tables and caches what it looks up there."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots, self.total = slots, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), str(func)
        if name.startswith(("aten.embedding", "aten.index.")):
            self.total += out.nbytes
        elif name.startswith("emu_kernels.decode_attention"):
            q, keys, _, *_ = args
            self.total += q.nbytes + 2 * self.slots * keys.shape[1] * keys.shape[3] * keys.itemsize
        elif name.startswith("emu_kernels.rotary_into"):
            self.total += sum(part.nbytes for part in args[:5])
        elif not any(part in name for part in _Launches.FREE):
            self.total += sum(part.nbytes for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor))
        return out


def test_a_pass_reads_the_weights_once_and_of_the_cache_what_its_rows_hold() -> None:
    """Counted as launches are: at most a tenth more than weights and cache, which is what passes between kernels."""
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "vocab_size": 1000}
    wide = EmuForCausalLM(EmuConfig(**CONFIG.to_dict() | sizes | {"head_dim": 64})).bfloat16().eval()
    ends, codes = [40, 11], (500, 400)
    cache = StaticCache(wide.config, 2, 60, dtype=torch.bfloat16, device="cpu")
    linear = LinearBackend(wide)
    cache.angles(wide.model.rotary_emb)
    with _BytesRead(sum(ends) + len(ends)) as read:
        hidden = decode(wide, linear, cache, torch.zeros(2, 1, dtype=torch.int64), torch.tensor([[0, 0], ends]))
        linear.head((codes,))(hidden)
    layers = sum(part.nbytes for part in wide.model.layers.parameters())
    head = codes[1] * wide.config.hidden_size * 2
    held = (sum(ends) + len(ends)) * 2 * wide.config.num_hidden_layers * wide.config.num_key_value_heads * 64 * 2
    assert layers + head + held <= read.total <= 1.1 * (layers + head + held)


@pytest.mark.parametrize("deterministic", [False, True])
def test_fused_passes_draw_the_tokens_of_others(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pictures in float32, most likely ones and others, with passes that read lengths on the device and with those that do not."""
    drawn = []
    for fused in (False, True):
        monkeypatch.setattr(device_passes, "can_record", lambda model, fused=fused: fused)
        engine = Engine(small(qk_norm=True), Emu3Layout(VOCABULARY, Letters()), deterministic=deterministic)
        prompts = [prompt(engine.layout, text) for text in ("abc", "", "1abcd2")]
        options = {"grid": (3, 4), "guidance_scale": 2.0, "top_k": 9, "seed": [1, 2, 3]}
        drawn += [engine.generate_codes(prompts, temperature=temperature, **options) for temperature in (0.0, 1.0)]
    for plain, found in zip(drawn[:2], drawn[2:], strict=True):
        assert torch.equal(plain, found)
    assert len(drawn[1].unique()) > 1


def _with_bias(block: Block) -> None:
    block.mlp.up_proj = torch.nn.Linear(24, 40)


def _with_hook(block: Block) -> None:
    block.self_attn.o_proj.register_forward_hook(lambda *_: None)


def _of_another_kind(block: Block) -> None:
    class Adapter(torch.nn.Linear):
        pass

    block.self_attn.q_proj = Adapter(24, 24, bias=False)


def _in_another_dtype(block: Block) -> None:
    block.mlp.down_proj.float()


@pytest.mark.parametrize("change", [_with_bias, _with_hook, _of_another_kind, _in_another_dtype])
def test_blocks_that_are_more_than_their_weights_are_not_fused(change: Callable[[Block], None]) -> None:
    model = EmuForCausalLM(CONFIG).double().eval()
    linear = LinearBackend(model)
    assert fuses(model, linear, FUSED_TOKENS)
    change(model.model.layers[1])  # type: ignore[arg-type]
    assert not fuses(model, linear, FUSED_TOKENS)


def test_many_tokens_are_fused_only_where_rows_shall_not_depend_on_each_other(model: EmuForCausalLM) -> None:
    assert not fuses(model, LinearBackend(model), FUSED_TOKENS + 1)
    assert fuses(model, LinearBackend(model, tile=8), 100)


def test_recorded_sizes_are_few() -> None:
    assert [rows_of(rows, 64) for rows in (1, 2, 3, 4, 5, 8, 9, 17, 64)] == [1, 2, 4, 4, 8, 8, 16, 24, 64]
    assert rows_of(5, 6) == 6


def test_nothing_is_recorded_without_a_gpu(model: EmuForCausalLM) -> None:
    assert not device_passes.can_record(model)
