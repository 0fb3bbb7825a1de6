"""Norm, rotation and gate on a CUDA device: accuracy against float64, views, repeatability, graphs, compiled, no host wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from emu_kernels import dispatch, reference, rms_norm, rotary, rotary_into, swiglu
from tests.gpu_waits import nothing_waits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LIMITS = {torch.float32: 5e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
DTYPES = list(LIMITS)


def random(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.fixture(autouse=True)
def _no_kernel_gave_way_to_torch() -> Iterator[None]:
    yield
    assert not {op for op, *_ in dispatch._failures} & {"rms_norm", "rotary", "swiglu"}, "a kernel could not be built"


def slopes(function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients, against fixed numbers of about 1."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    outs = out if isinstance(out, tuple) else (out,)
    grads = [random(*x.shape, dtype=torch.float32, seed=9 + number).to(x.dtype) for number, x in enumerate(outs)]
    return [*(x.detach() for x in outs), *torch.autograd.grad(outs, inputs, grads)]


def check(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    exact: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: list[Tensor],
    limit: float,
) -> None:
    """Values and gradients are close to float64, and have the same bits each time."""
    found, again = slopes(function, inputs), slopes(function, inputs)
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    # The gradients that are handed in are rounded alike.
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out = exact(*wide)
    outs = out if isinstance(out, tuple) else (out,)
    number = len(outs)
    grads = [
        random(*x.shape, dtype=torch.float32, seed=9 + place).to(ours.dtype).double()
        for place, (x, ours) in enumerate(zip(outs, found, strict=False))
    ]
    expected = [*(x.detach() for x in outs), *torch.autograd.grad(outs, wide, grads)]
    for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        few = 4.0 if theirs.numel() < 100 else 1.0  # whose rounding errors are not averaged
        assert relative_error(ours, theirs) < few * limit, (
            f"{'output' if place < number else 'gradient'} {place % number}"
        )


SHAPES = [(1, 1), (5, 7), (3, 1000, 128), (1111, 4096), (64, 5120), (9, 8192), (3, 9001), (20_000, 64)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_is_close_to_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    # A row of one number has a gradient that is a difference of equal numbers.
    inputs = [random(*shape, dtype=dtype) + (2.0 if shape[-1] == 1 else 0.0), random(shape[-1], dtype=dtype)]
    eps = 1.0 if shape[-1] == 1 else 1e-5
    check(lambda x, w: rms_norm(x, w, eps), lambda x, w: reference.rms_norm(x, w, eps), inputs, LIMITS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (2, 555, 4096), (3, 9001)])
def test_norm_of_a_sum_is_close_to_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = [random(*shape, dtype=dtype, seed=seed) for seed in range(2)] + [random(shape[-1], dtype=dtype)]

    def exact(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return reference.rms_norm(x + residual, weight, 1e-5), x + residual

    check(lambda x, r, w: rms_norm(x, w, 1e-5, r), exact, inputs, LIMITS[dtype])


def test_norm_of_a_sum_under_autocast() -> None:
    """A branch in 16 bits, the stream and the weight in float32, as in training with mixed precision."""
    x, residual, weight = random(300, 512), random(300, 512, dtype=torch.float32), random(512, dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        found, total = rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(total, x + residual) and found.dtype == torch.float32
    assert relative_error(found, reference.rms_norm(total.double(), weight.double(), 1e-5)) < 1e-6


def angles(rows: int, length: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Angles (rows, length, width / 2) float64, their cosines and signed sines (rows, length, 1, width) and those rounded."""
    turns = 6.0 * random(rows, length, width // 2, dtype=torch.float64)
    cos, sin = turns.cos(), turns.sin()
    return turns, torch.cat([cos, cos], -1)[:, :, None].to(dtype), torch.cat([-sin, sin], -1)[:, :, None].to(dtype)


HEADS = [
    (2, 555, 32, 128, 1),
    (2, 333, 8, 128, 2),
    (1, 77, 5, 20, 1),
    (3, 9, 1, 2, 3),
    (1, 1111, 14, 64, 1),
    (2, 33, 3, 256, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("rows", "length", "heads", "width", "angle_rows"), HEADS)
def test_rotation_is_close_to_float64(
    rows: int, length: int, heads: int, width: int, angle_rows: int, normed: bool, dtype: torch.dtype
) -> None:
    turns, cos, sin = angles(angle_rows, length, width, dtype)
    inputs = [random(rows, length, heads, width, dtype=dtype)]
    # Of a head of two numbers little is left of a gradient by a norm: a large eps keeps it.
    eps = 1.0 if width == 2 else 1e-5
    if not normed:
        check(lambda x: rotary(x, cos, sin), lambda x: reference.rotary(x, turns), inputs, LIMITS[dtype])
        return
    inputs.append(random(width, dtype=dtype))

    def exact(x: Tensor, weight: Tensor) -> Tensor:
        return reference.rotary(reference.rms_norm(x, weight, eps), turns)

    check(lambda x, w: rotary(x, cos, sin, weight=w, eps=eps), exact, inputs, 1.5 * LIMITS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7, 33), (3, 1000, 1408), (257, 14_336), (2_000_003,)])
def test_gate_is_close_to_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = [3.0 * random(*shape, dtype=dtype, seed=seed) for seed in range(2)]
    check(swiglu, reference.swiglu, inputs, LIMITS[dtype])


@pytest.mark.parametrize("offset", [0, 1])
def test_views_are_read_in_place(offset: int) -> None:
    """Of one projection, also at addresses that are no multiples of 16 bytes."""
    joint = random(2, 300, 16 * 64 + offset)[..., offset:]
    weight, (_, cos, sin) = random(64), angles(1, 300, 64, torch.bfloat16)
    for part in joint.unflatten(-1, (16, 64)).split((10, 6), dim=2):
        for options in (dict[str, Any](), {"weight": weight}):
            assert torch.equal(rotary(part, cos, sin, **options), rotary(part.contiguous(), cos, sin, **options))
        assert torch.equal(rms_norm(part, weight, 1e-5), rms_norm(part.contiguous(), weight, 1e-5))
    gate, up = joint.split(512, dim=-1)
    assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))
    grad = torch.ones((), device="cuda", dtype=torch.bfloat16).expand(2, 300, 512)
    pairs = [
        [x.detach().clone().requires_grad_() for x in (gate, up)],
        [x.detach().requires_grad_() for x in (gate, up)],
    ]
    found, expected = (torch.autograd.grad(swiglu(*x), x, grad) for x in pairs)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def step(dtype: torch.dtype, normed: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors of a step of 5 rows of 4 tokens with a cache of 6 rows of 300 slots, and the norms' weights."""
    joint = random(5, 4, 12 * 128, dtype=dtype)
    q, k, v = joint.unflatten(-1, (12, 128)).split((8, 2, 2), dim=2)
    _, cos, sin = angles(5, 4, 128, dtype)
    cache = random(2, 6, 2, 300, 128, dtype=dtype)
    places = (torch.randperm(1800, generator=torch.Generator().manual_seed(0))[:20]).view(5, 4).cuda()
    places[1, 3], places[2, 0] = -1, 1800
    tensors = {"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "keys": cache[0], "values": cache[1], "places": places}
    weights = {"q_weight": random(128, dtype=dtype), "k_weight": random(128, dtype=dtype, seed=1)} if normed else {}
    return tensors, weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_a_step_into_the_cache_is_that_of_the_cpu(normed: bool, dtype: torch.dtype) -> None:
    tensors, weights = step(dtype, normed)
    expected = {name: x.cpu().double() if x.is_floating_point() else x.cpu() for name, x in (tensors | weights).items()}
    before = tensors["keys"].clone()
    wanted = rotary_into(**expected)
    found = rotary_into(**tensors, **weights)
    pairs = [(found, wanted), *((tensors[name], expected[name]) for name in ("keys", "values"))]
    assert all(relative_error(ours.cpu(), theirs) < 1.5 * LIMITS[dtype] for ours, theirs in pairs)
    untouched = torch.ones(1800, dtype=torch.bool, device="cuda")
    untouched[tensors["places"][(tensors["places"] >= 0) & (tensors["places"] < 1800)]] = False
    assert torch.equal(*(x.transpose(1, 2)[untouched.view(6, 300)] for x in (tensors["keys"], before)))


def layer(x: Tensor, residual: Tensor, weight: Tensor, head_weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """All that stands between a block's products, by way of views of the norm's output."""
    normed, total = rms_norm(x, weight, 1e-5, residual)
    heads = rotary(normed.unflatten(-1, (-1, 64)), cos, sin, weight=head_weight)
    return swiglu(heads.flatten(-2), rms_norm(total, weight, 1e-5)) + total


def layer_inputs(length: int = 300) -> list[Tensor]:
    _, cos, sin = angles(1, length, 64, torch.bfloat16)
    return [random(2, length, 512), random(2, length, 512, seed=1), random(512), random(64), cos, sin]


def test_a_layer_is_captured_and_replayed_with_other_inputs() -> None:
    inputs = layer_inputs()
    tensors, weights = step(torch.bfloat16, True)

    def run() -> tuple[Tensor, ...]:
        return layer(*inputs), rotary_into(**tensors, **weights)

    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = run()
        inputs[0].neg_()
        tensors["places"].copy_(tensors["places"].roll(1, 0))
        tensors["k"].mul_(2.0)
        before = [tensors[name].clone() for name in ("keys", "values")]
        graph.replay()
        written = [tensors[name].clone() for name in ("keys", "values")]
        for name, x in zip(("keys", "values"), before, strict=True):
            tensors[name].copy_(x)
        expected = run()
    assert all(torch.equal(one, two) for one, two in zip(replayed, expected, strict=True))
    assert all(torch.equal(one, tensors[name]) for one, name in zip(written, ("keys", "values"), strict=True))
    assert not torch.equal(written[0], before[0])


def test_training_is_captured_and_replayed() -> None:
    inputs = [x.requires_grad_() for x in layer_inputs()[:4]]
    fixed = layer_inputs()[4:]

    def run() -> tuple[Tensor, ...]:
        out = layer(*inputs, *fixed)
        return out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = run()
    with torch.no_grad():
        inputs[0].normal_()
    expected = run()
    graph.replay()
    assert all(torch.equal(one, two) for one, two in zip(replayed, expected, strict=True))


def test_compiled_is_one_graph_for_all_lengths_and_close_to_eager() -> None:
    """A compiler fuses the plain operations itself, and rounds less often than they do."""
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(layer, backend=counter, dynamic=True, fullgraph=True)
    for length in range(100, 300, 37):
        inputs = layer_inputs(length)
        expected = layer(*(x.double() for x in inputs))
        for function in (compiled, layer):
            assert relative_error(function(*inputs), expected) < 2e-2
    assert counter.frame_count == 1


def test_nothing_waits_for_the_device() -> None:
    inputs = [x.requires_grad_() for x in layer_inputs()[:4]]
    fixed, (tensors, weights) = layer_inputs()[4:], step(torch.bfloat16, True)

    def run() -> None:
        out = layer(*inputs, *fixed)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
        rotary_into(**tensors, **weights)

    run()  # compiles
    with nothing_waits():
        run()


def test_more_than_two_to_the_31_numbers() -> None:
    """Offsets pass 32 bits."""
    size = 2**31 // 4096 + 300
    x = torch.empty(size, 4096, device="cuda", dtype=torch.bfloat16).normal_()
    weight = random(4096)
    assert torch.equal(rms_norm(x, weight, 1e-5)[-200:], rms_norm(x[-200:].clone(), weight, 1e-5))
    gated = swiglu(x, x)
    assert torch.equal(gated[-200:], swiglu(x[-200:].clone(), x[-200:].clone()))
    del gated
    heads, (_, cos, sin) = x.view(1, size, 32, 128), angles(1, size, 128, torch.bfloat16)
    expected = rotary(heads[:, -200:].clone(), cos[:, -200:], sin[:, -200:], weight=weight[:128])
    assert torch.equal(rotary(heads, cos, sin, weight=weight[:128])[:, -200:], expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_ops_run_on_a_gpu_that_is_not_current() -> None:
    first = layer(*layer_inputs())
    second = layer(*(x.to("cuda:1") for x in layer_inputs()))
    assert second.device.index == 1 and torch.equal(first.cpu(), second.cpu())
