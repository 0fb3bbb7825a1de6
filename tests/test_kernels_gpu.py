"""The ops on a CUDA device: accuracy against float64, repeatability, graphs, compiled == eager, agreement with the CPU path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emu_kernels import attention, guided_sample, linear_cross_entropy, nearest_code, reference

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


def test_loss_is_repeatable_and_compiles() -> None:
    hidden, weight, target = loss_inputs(torch.bfloat16)

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, target, vocab_range=(0, 50_003), z_loss=1e-4)

    first = torch.autograd.grad(step(hidden, weight), (hidden, weight))
    again = torch.autograd.grad(step(hidden, weight), (hidden, weight))
    compiled = torch.autograd.grad(torch.compile(step, fullgraph=True)(hidden, weight), (hidden, weight))
    for one, two, three in zip(first, again, compiled, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)


@pytest.mark.parametrize("width", [40, 64, 128])
@pytest.mark.parametrize("name", ["causal", "documents", "window", "offsets"])
def test_attention_is_no_worse_than_the_plain_computation(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMU_KERNELS_ATTENTION", "triton")
    batch, length = (1 if name == "offsets" else 2), 1111
    shapes = [(batch, length, heads, width) for heads in (8, 2, 2)]
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    segment_ids = (torch.arange(length, device="cuda") // 333 + 1).clamp(max=3)[None].repeat(batch, 1)
    segment_ids[:, -50:] = 0
    options: dict = {
        "causal": {},
        "documents": {"segment_ids": segment_ids},
        "window": {"window": 200},
        "offsets": {"cu_seqlens": torch.tensor([0, 5, 700, 1100], dtype=torch.int32, device="cuda")},
    }[name]
    with torch.device("cuda"):
        mask = reference.visible(batch, length, **options)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    truth, plain, found = (
        reference.attention(*exact, mask),
        reference.attention(*inputs, mask),
        attention(*inputs, **options),
    )
    grad = torch.randn_like(found)
    pairs = [(found, inputs), (plain, inputs), (truth, exact)]
    gradients = [torch.autograd.grad(out, sources, grad.to(out.dtype)) for out, sources in pairs]
    for ours, theirs, true in [(found, plain, truth), *zip(*gradients, strict=True)]:
        assert relative_error(ours, true) < 1.5 * relative_error(theirs, true) + 1e-3


def test_sampler_agrees_with_the_cpu_and_runs_in_a_graph() -> None:
    logits = torch.randn(2, 16, 32_768) * 3
    key = {name: torch.arange(16) + offset for offset, name in enumerate(("seed", "stream", "position"))}
    expected = guided_sample(logits, 3.0, top_k=2048, top_p=0.95, **key)
    on_card = {name: value.cuda() for name, value in key.items()}
    logits = logits.cuda()
    found = guided_sample(logits, 3.0, top_k=2048, top_p=0.95, **on_card)
    assert (found.cpu() == expected).float().mean() > 0.9  # two candidates may tie within rounding
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = guided_sample(logits, 3.0, top_k=2048, top_p=0.95, **on_card)
    graph.replay()
    assert torch.equal(replayed, found)


@pytest.mark.parametrize("width", [4, 8, 64])
def test_nearest_code_equals_the_full_table(width: int) -> None:
    z, codebook = torch.randn(3001, width, device="cuda"), torch.randn(2049, width, device="cuda")
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
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
