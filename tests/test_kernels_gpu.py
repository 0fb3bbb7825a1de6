"""The ops on a CUDA device: accuracy against float64, repeatability, graphs, compiled == eager, agreement with the CPU path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from emu_kernels import attention, decode_attention, guided_sample, linear_cross_entropy, nearest_code, reference
from tests.gpu_waits import nothing_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def loss_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(2100, 512, generator=generator, device="cuda").to(dtype)
    weight = torch.randn(50_003, 512, generator=generator, device="cuda").mul_(0.05).to(dtype)
    target = torch.randint(0, 50_003, (2100,), generator=generator, device="cuda")
    target[::7] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), target


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2.2e-3), (torch.float16, 5e-4), (torch.float32, 1e-5)])
@pytest.mark.parametrize("options", [{}, {"z_loss": 1e-3, "softcap": 30.0}, {"vocab_range": (1000, 30_000)}])
def test_loss_and_gradients_are_close_to_float64(dtype: torch.dtype, limit: float, options: dict) -> None:
    hidden, weight, target = loss_inputs(dtype)
    first, count = options.get("vocab_range", (0, len(weight)))
    target = torch.where(target < 0, target, first + target % count)
    loss = linear_cross_entropy(hidden, weight, target, **options)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    truth = linear_cross_entropy(*exact, target, **options)
    assert abs(float(loss - truth)) < 1e-5 * abs(float(truth))
    found = torch.autograd.grad(loss, (hidden, weight))
    # The gradients' own 16 bits come on top of what the bound allows.
    bound = limit + torch.finfo(dtype).eps / 3
    assert all(relative_error(a, b) < bound for a, b in zip(found, torch.autograd.grad(truth, exact), strict=True))


LOSSES: dict[str, dict] = {
    "slice": {"vocab_range": (1000, 30_000)},
    "weights": {"weights": True},
    "slices of tokens": {"vocab_range": "own", "weights": True},
    "soft cap": {"softcap": 5.0, "z_loss": 1e-3},
    "unread": {"weights": True, "check_values": False},
}


def loss_options(name: str, num_tokens: int) -> dict:
    options = dict(LOSSES[name])
    generator = torch.Generator("cuda").manual_seed(1)
    if "weights" in options:
        options["weights"] = torch.rand(num_tokens, generator=generator, device="cuda")
        options["weights"][5] = 0.0
    if options.get("vocab_range") == "own":
        ranges = torch.tensor([[1000, 30_000], [900, 40_000], [0, 50_003]], device="cuda")
        options["vocab_range"] = ranges.repeat(num_tokens, 1)[:num_tokens]
    return options


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_option_of_the_loss_agrees_with_float64(name: str, reduction: str) -> None:
    """Loss, log-sum-exp, most likely id and gradients, also those of the log-sum-exp."""
    hidden, weight, target = loss_inputs(torch.bfloat16)
    target = torch.where(target < 0, target, 1000 + target % 30_000)
    options = loss_options(name, len(hidden)) | {"reduction": reduction, "return_lse": True, "return_argmax": True}
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    found, truth = (linear_cross_entropy(*x, target, **options) for x in ((hidden, weight), exact))
    assert all(relative_error(ours, true) < 1e-5 for ours, true in zip(found[:2], truth[:2], strict=True))
    assert (found[2] == truth[2]).float().mean() > 0.999  # two ids may tie within the rounding of float32
    factor = torch.linspace(0.5, 2.0, len(hidden), device="cuda")
    sums = [(x[0].sum() + (x[1] * factor).sum()) for x in (found, truth)]
    pairs = zip(torch.autograd.grad(sums[0], (hidden, weight)), torch.autograd.grad(sums[1], exact), strict=True)
    assert all(relative_error(ours, true) < 4e-3 for ours, true in pairs)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_of_the_loss_costs_the_other_nothing(frozen: str) -> None:
    hidden, weight, target = loss_inputs(torch.bfloat16)
    inputs = {"hidden": hidden, "weight": weight}
    other = "weight" if frozen == "hidden" else "hidden"
    expected = torch.autograd.grad(linear_cross_entropy(**inputs, target=target), inputs[other])[0]
    inputs[frozen] = inputs[frozen].detach()
    found = torch.autograd.grad(linear_cross_entropy(**inputs, target=target), inputs[other])[0]
    assert torch.equal(found, expected)


def test_a_master_weight_gets_a_float32_gradient_under_autocast() -> None:
    hidden, weight, target = loss_inputs(torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, target)
    low = [x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight)]
    expected = torch.autograd.grad(linear_cross_entropy(*low, target), low[1])[0]
    found = torch.autograd.grad(loss, weight)[0]
    assert found.dtype == torch.float32 and relative_error(found, expected) < 2.2e-3


def test_the_loss_of_more_than_two_to_the_31_logits() -> None:
    """Offsets into the table of ids and features pass 32 bits."""
    size = 2**31 // 1024 + 300
    weight = torch.randn(size, 1024, device="cuda", dtype=torch.bfloat16).mul_(0.02)
    hidden, target = (
        torch.randn(300, 1024, device="cuda", dtype=torch.bfloat16),
        torch.arange(size - 300, size, device="cuda"),
    )
    each, lse = linear_cross_entropy(hidden, weight, target, reduction="none", return_lse=True)
    picked = (hidden.double() * weight[target].double()).sum(1)
    assert relative_error(lse - each, picked) < 1e-4


@pytest.mark.parametrize(("tokens", "ids"), [(65_536, 512), (8192, 184_622)])
def test_the_loss_holds_no_more_scratch_than_it_says(tokens: int, ids: int) -> None:
    from emu_kernels.linear_cross_entropy.gpu import loss_scratch

    hidden = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(ids, 4096, device="cuda", dtype=torch.bfloat16)
    target = torch.randint(0, ids, (tokens,), device="cuda")
    target[::7] = -100
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    linear_cross_entropy(*inputs, target)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = linear_cross_entropy(*inputs, target)
    torch.cuda.synchronize()
    results = 4 * (hidden.numel() + weight.numel())
    assert torch.cuda.max_memory_allocated() - before - results < loss_scratch(weight, True) + 64 * 2**20
    assert loss.isfinite()


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}])
def test_an_unread_loss_waits_for_nothing_and_is_captured(options: dict) -> None:
    """Replayed with other inputs in place, so that nothing read at capture can pass."""
    hidden, weight, target = loss_inputs(torch.bfloat16)

    def step() -> tuple[Tensor, ...]:
        loss = linear_cross_entropy(hidden, weight, target, **options, check_values=False).sum()
        return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        hidden.normal_()
        target.copy_(target.roll(1))
    expected = step()
    graph.replay()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(replayed, expected, strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_repeatable_and_compiles(name: str) -> None:
    hidden, weight, target = loss_inputs(torch.bfloat16)
    target = torch.where(target < 0, target, 1000 + target % 30_000)
    options = loss_options(name, len(hidden))

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, target, **options)

    first = torch.autograd.grad(step(hidden, weight), (hidden, weight))
    again = torch.autograd.grad(step(hidden, weight), (hidden, weight))
    compiled = torch.autograd.grad(torch.compile(step, fullgraph=True)(hidden, weight), (hidden, weight))
    for one, two, three in zip(first, again, compiled, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


ATTENTION: dict[str, dict] = {
    "causal": {},
    "full": {"causal": False},
    "documents": {"segment_ids": True},
    "window": {"window": 200},
    "offsets": {"cu_seqlens": True},
    "soft cap": {"softcap": 5.0},
    "full documents, window and soft cap": {"segment_ids": True, "window": 77, "softcap": 5.0, "causal": False},
}
SHAPES = [
    *((name, width, torch.bfloat16, (8, 2)) for name in ATTENTION for width in (64, 128)),
    *(("documents", width, torch.bfloat16, (8, 2)) for width in (40, 80, 96, 256)),
    *(("documents", 64, dtype, (8, 2)) for dtype in (torch.float16, torch.float32, torch.float64)),
    *(("documents", 64, torch.bfloat16, heads) for heads in ((6, 6), (6, 1), (6, 2))),
]


@pytest.mark.parametrize(("name", "width", "dtype", "heads"), SHAPES)
def test_attention_is_no_worse_than_the_plain_computation(
    name: str, width: int, dtype: torch.dtype, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its backward gives the same bits each time."""
    monkeypatch.setenv("EMU_KERNELS_ATTENTION", "triton")
    generator = torch.Generator("cuda").manual_seed(0)
    batch, length = (1 if name == "offsets" else 2), 1111
    shapes = [(batch, length, number, width) for number in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(s, generator=generator, device="cuda").to(dtype).requires_grad_() for s in shapes]
    segment_ids = (torch.arange(length, device="cuda") // 333 + 1).clamp(max=3)[None].repeat(batch, 1)
    segment_ids[:, -50:] = 0
    options = dict(ATTENTION[name])
    if "segment_ids" in options:
        options["segment_ids"] = segment_ids
    if "cu_seqlens" in options:
        options["cu_seqlens"] = torch.tensor([0, 5, 700, 1100], dtype=torch.int32, device="cuda")
    softcap = options.pop("softcap", None)
    with torch.device("cuda"):
        mask = reference.visible(batch, length, **options)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    truth, plain = reference.attention(*exact, mask, softcap), reference.attention(*inputs, mask, softcap)
    found = attention(*inputs, **options, softcap=softcap)
    grad = torch.randn(found.shape, generator=generator, device="cuda").to(dtype)
    pairs = [(found, inputs), (plain, inputs), (truth, exact)]
    gradients = [torch.autograd.grad(out, x, grad.to(out.dtype), retain_graph=True) for out, x in pairs]
    # In 16 bits both round alike; the plain float32 may take the same products of tf32, or exact ones.
    slack = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2e-4)
    for ours, theirs, true in [(found, plain, truth), *zip(*gradients, strict=True)]:
        assert relative_error(ours, true) < 1.2 * relative_error(theirs, true) + slack
    again = torch.autograd.grad(found, inputs, grad)
    assert all(torch.equal(one, two) for one, two in zip(gradients[0], again, strict=True))


def test_attention_of_a_row_beyond_32_bit_offsets() -> None:
    """131,072 positions of 32 heads of 128 are 2**29 numbers; four such rows pass 2**31."""
    shapes = [(5, 131_072, heads, 128) for heads in (32, 1, 1)]
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
    out = attention(q, k, v, window=64)
    expected = attention(*(x[4:, -256:].contiguous() for x in (q, k, v)), window=64)
    assert torch.equal(out[4:, -128:], expected[:, -128:])


def test_one_compiled_attention_serves_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda *qkv: attention(*qkv, window=99), backend=counter, dynamic=True, fullgraph=True)
    for length in range(100, 300, 37):
        inputs = [torch.randn(1, length, heads, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2)]
        assert torch.equal(compiled(*inputs), attention(*inputs, window=99))
    assert counter.frame_count == 1


def test_sampler_agrees_with_the_cpu_and_runs_in_a_graph() -> None:
    logits = torch.randn(2, 16, 32_768, generator=torch.Generator().manual_seed(0)) * 3
    key = {name: torch.arange(16) + offset for offset, name in enumerate(("seed", "stream", "position"))}
    options = {"top_k": 2048, "top_p": 0.95}
    expected = guided_sample(logits, 3.0, **options, **key)
    on_card = {name: value.cuda() for name, value in key.items()}
    logits = logits.cuda()
    found = guided_sample(logits, 3.0, **options, **on_card)
    assert (found.cpu() == expected).float().mean() > 0.9  # two candidates may tie within rounding
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = guided_sample(logits, 3.0, **options, **on_card)
    # Other logits and keys in place: what was read at capture would give the old draws.
    for change in (lambda: on_card["position"].add_(7), lambda: on_card["seed"].add_(1), lambda: logits.neg_()):
        before = replayed.clone()
        change()
        graph.replay()
        assert torch.equal(replayed, guided_sample(logits, 3.0, **options, **on_card))
        assert not torch.equal(replayed, before)


@pytest.mark.parametrize("width", [1, 4, 8, 20, 41, 42, 256])
def test_nearest_code_equals_the_full_table(width: int) -> None:
    generator = torch.Generator("cuda").manual_seed(width)
    z, codebook = (torch.randn(n, width, generator=generator, device="cuda") for n in (3001, 2049))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrow = z.to(dtype), codebook.to(dtype)
        assert torch.equal(nearest_code(*narrow), reference.nearest_code(*narrow))


@pytest.mark.parametrize("size", [1e-20, 1e-10, 1.0, 1e10, 1e15])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_nearest_code_of_any_size_equals_the_full_table(size: float, shift: float) -> None:
    """As many codes as crowd the space, of which many vectors have two within the rounding of a product; and far from the origin."""
    generator = torch.Generator("cuda").manual_seed(0)
    z, codebook = (size * (torch.randn(n, 4, generator=generator, device="cuda") + shift) for n in (1500, 32_768))
    assert torch.equal(nearest_code(z, codebook), reference.nearest_code(z, codebook))


def test_nothing_waits_for_the_device() -> None:
    """Attention, sampler and code search can run ahead of the GPU, and be captured in a graph."""
    q, k, v = (torch.randn(1, 512, heads, 64, device="cuda", dtype=torch.bfloat16) for heads in (4, 2, 2))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    offsets = torch.tensor([0, 100, 512], dtype=torch.int32, device="cuda")
    segment_ids = torch.ones(1, 512, dtype=torch.int64, device="cuda")
    key = {name: torch.arange(4, device="cuda") for name in ("seed", "stream", "position")}
    logits = torch.randn(2, 4, 4096, device="cuda")
    z, codebook = torch.randn(1000, 4, device="cuda"), torch.randn(512, 4, device="cuda")

    def run() -> None:
        for options in ({}, {"cu_seqlens": offsets}, {"segment_ids": segment_ids}, {"window": 99}):
            out = attention(*inputs, **options)
            torch.autograd.grad(out, inputs, torch.ones_like(out))
        guided_sample(logits, 3.0, top_k=100, top_p=0.9, **key)
        nearest_code(z, codebook)

    run()  # compiles
    with nothing_waits():
        run()


def test_uncertain_vectors_are_searched_again() -> None:
    """Vectors between two codes are searched again one by one; all of them, when every code is there twice."""
    z, codebook = torch.randn(2001, 4, device="cuda"), torch.randn(512, 4, device="cuda")
    doubled = torch.cat([codebook, codebook])
    assert torch.equal(nearest_code(z, doubled), nearest_code(z, codebook))


@pytest.mark.parametrize("step", [1, 7])
def test_attention_takes_strided_views(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of one projection, and addresses that no tensor descriptor takes."""
    monkeypatch.setenv("EMU_KERNELS_ATTENTION", "triton")
    joint = torch.randn(2, 300, 8 * 64 + step, device="cuda", dtype=torch.bfloat16)[..., step:]
    q, k, v = joint.unflatten(-1, (8, 64)).split((4, 2, 2), dim=2)
    assert torch.equal(attention(q, k, v), attention(*(x.contiguous() for x in (q, k, v))))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_ops_run_on_a_gpu_that_is_not_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMU_KERNELS_ATTENTION", "triton")
    inputs = [torch.randn(1, 300, heads, 64, dtype=torch.bfloat16) for heads in (4, 2, 2)]
    first, second = (attention(*(x.to(f"cuda:{number}") for x in inputs), window=9) for number in (0, 1))
    assert second.device.index == 1 and torch.equal(first.cpu(), second.cpu())
    z, codebook = torch.randn(500, 4), torch.randn(64, 4)
    assert torch.equal(nearest_code(z.to("cuda:1"), codebook.to("cuda:1")).cpu(), nearest_code(z, codebook))
    key = {name: torch.arange(4, device="cuda:1") for name in ("seed", "stream", "position")}
    assert guided_sample(torch.randn(2, 4, 4096, device="cuda:1"), 2.0, top_k=50, **key).device.index == 1


@pytest.mark.parametrize("name", ["q", "k", "v", "grad"])
def test_what_is_not_finite_stays_in_its_document(name: str) -> None:
    ids = torch.tensor([1] * 200 + [2] * 300 + [3] * 400 + [0] * 100, device="cuda")[None]
    heads = {"q": 8, "k": 2, "v": 2, "grad": 8}
    tensors = {n: torch.randn(1, 1000, h, 128, device="cuda", dtype=torch.bfloat16) for n, h in heads.items()}

    def run() -> list[Tensor]:
        inputs = [tensors[n].clone().requires_grad_() for n in "qkv"]
        out = attention(*inputs, segment_ids=ids)
        return [out.detach(), *torch.autograd.grad(out, inputs, tensors["grad"])]

    expected = run()
    tensors[name][0, [300, 950]] = torch.nan
    for found, clean in zip(run(), expected, strict=True):
        assert torch.equal(found[(ids == 1) | (ids == 3)], clean[(ids == 1) | (ids == 3)])
        assert not found[ids == 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "width"), [(1, (8, 2), 128), (4, (8, 2), 80), (16, (32, 8), 128), (16, (4, 4), 256)]
)
def test_attention_to_a_cache_is_close_to_float64_and_a_row_is_its_own(
    dtype: torch.dtype, tokens: int, heads: tuple[int, int], width: int
) -> None:
    q = torch.randn(3, tokens, heads[0], width, device="cuda").to(dtype)
    keys, values = (torch.randn(5, heads[1], 3000, width, device="cuda").to(dtype)[:3] for _ in range(2))
    begin, end = torch.tensor([[0, 700, 5], [3000, 711, 1700]], device="cuda")
    found = decode_attention(q, keys, values, begin, end)
    truth = decode_attention(q.double(), keys.double(), values.double(), begin, end)
    assert relative_error(found, truth) < {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}[dtype]
    for row, (first, last) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        own = slice(row, row + 1)
        cut = (part[own, :, first:last].contiguous() for part in (keys, values))
        ends = torch.tensor([[0], [last - first]], device="cuda")
        assert torch.equal(decode_attention(q[own], *cut, *ends), found[own])
