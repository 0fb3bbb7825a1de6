"""The kernels of norm, rotation, gate and of attention to a part of a row in Triton's interpreter against float64.

Ragged sizes, views, memory poisoned with NaN.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from emu_kernels import reference
from emu_kernels.attention.cpu import attention_backward_tiled, attention_tiled
from emu_kernels.attention.gpu import attention_triton
from emu_kernels.attention.gpu_backward import attention_backward_triton
from emu_kernels.rms_norm.gpu import add_rms_norm_triton, rms_norm_backward_triton, rms_norm_triton
from emu_kernels.rotary.cpu import norm_rotary_backward_torch, norm_rotary_torch, rotary_into_torch, rotary_torch
from emu_kernels.rotary.gpu import norm_rotary_backward_triton, norm_rotary_triton, rotary_triton
from emu_kernels.rotary.gpu_into import rotary_into_triton
from emu_kernels.swiglu.gpu import swiglu_backward_triton, swiglu_triton
from emu_kernels.testing import Interpreter, host_waits

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.slow
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("the interpreter of triton 3.6 fails with numpy 2.4 and later", allow_module_level=True)

LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3}
DTYPES = list(LIMITS)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], limit: float) -> None:
    """As whole tensors, of numbers of about 1: a gradient may be a small difference of such."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours.double() - theirs).norm()) <= limit * (float(theirs.norm()) + theirs.numel() ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (37, 24), (2, 5, 300), (3, 0, 8), (5, 16)])
@pytest.mark.parametrize("added", [False, True])
def test_norm_and_its_gradients(
    interpreter: Interpreter, shape: tuple[int, ...], dtype: torch.dtype, added: bool
) -> None:
    x, residual, grad, grad_sum = (random(*shape, dtype=dtype, seed=seed) for seed in range(4))
    weight = random(shape[-1], dtype=dtype)
    total = x
    if added:
        out, total, inverse = interpreter.call(add_rms_norm_triton, x, residual, weight, 1e-5)
        assert torch.equal(total, x + residual)
    else:
        out, inverse = interpreter.call(rms_norm_triton, x, weight, 1e-5)
    assert out.dtype == dtype and inverse.shape == (*shape[:-1], 1)
    d_x, d_weight = interpreter.call(
        rms_norm_backward_triton, grad, total, weight, inverse, grad_sum if added else None
    )
    exact = total.double().requires_grad_(), weight.double().requires_grad_()
    expected = reference.rms_norm(*exact, 1e-5)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    slope = wanted[0] + grad_sum.double() if added else wanted[0]
    assert_close((out, d_x, d_weight), (expected.detach(), slope, wanted[1]), LIMITS[dtype])


def test_norm_of_a_sum_of_two_dtypes_takes_the_wider(interpreter: Interpreter) -> None:
    """As under autocast: a branch in 16 bits, the stream and the weight in float32."""
    x, residual, weight = random(7, 24, dtype=torch.float16), random(7, 24), random(24)
    out, total, _ = interpreter.call(add_rms_norm_triton, x, residual, weight, 1e-5)
    assert out.dtype == total.dtype == torch.float32
    assert torch.equal(total, x + residual)
    assert_close((out,), (reference.rms_norm(total.double(), weight.double(), 1e-5),), 2e-6)


def test_norm_reads_views_in_place_and_long_rows_in_torch(interpreter: Interpreter) -> None:
    joint, weight = random(9, 3 * 40), random(40)
    for x in (joint[:, 40:80], joint[:, ::3], joint[:1, :40].expand(9, 40)):
        found = interpreter.call(rms_norm_triton, x, weight, 1e-5)[0]
        assert_close((found,), (reference.rms_norm(x.double(), weight.double(), 1e-5),), 2e-6)
    x, weight = random(2, 2**13 + 3), random(2**13 + 3)
    found = interpreter.call(rms_norm_triton, x, weight, 1e-5)[0]
    assert_close((found,), (reference.rms_norm(x.double(), weight.double(), 1e-5),), 2e-6)


def angles(rows: int, length: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (rows, length, 1, width)."""
    turns = 6.0 * random(rows, length, width // 2)
    cos, sin = turns.cos(), turns.sin()
    return torch.cat([cos, cos], -1)[:, :, None].to(dtype), torch.cat([-sin, sin], -1)[:, :, None].to(dtype)


HEADS = [(2, 5, 3, 8, 1), (2, 5, 3, 8, 2), (1, 7, 5, 20, 1), (2, 3, 1, 2, 2), (1, 2, 130, 32, 1), (0, 3, 2, 8, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "length", "heads", "width", "angle_rows"), HEADS)
def test_rotation_with_and_without_a_norm(
    interpreter: Interpreter, rows: int, length: int, heads: int, width: int, angle_rows: int, dtype: torch.dtype
) -> None:
    x, grad = (random(rows, length, heads, width, dtype=dtype, seed=seed) for seed in range(2))
    weight = random(width, dtype=dtype)
    cos, sin = angles(angle_rows, length, width, dtype)
    turned = interpreter.call(rotary_triton, x, cos, sin)
    out, inverse = interpreter.call(norm_rotary_triton, x, weight, cos, sin, 1e-5)
    found = interpreter.call(norm_rotary_backward_triton, grad, x, weight, inverse, cos, sin)
    wide, scale, *turns = (t.double() for t in (x, weight, cos, sin))
    exact = norm_rotary_torch(wide, scale, turns[0], turns[1], 1e-5)
    wanted = norm_rotary_backward_torch(grad.double(), wide, scale, exact[1], turns[0], turns[1])
    # The float64 path takes its statistics in float32.
    expected = rotary_torch(wide, turns[0], turns[1]), exact[0], exact[1], *wanted
    assert_close((turned, out, inverse, *found), expected, LIMITS[dtype])


@pytest.mark.parametrize("normed", [False, True])
def test_rotation_reads_views_of_one_projection(interpreter: Interpreter, normed: bool) -> None:
    joint, weight = random(2, 5, 9 * 8), random(8)
    cos, sin = angles(1, 5, 8, torch.float32)
    for part in joint.unflatten(-1, (9, 8)).split((6, 3), dim=2):
        if normed:
            found, plain = (
                interpreter.call(norm_rotary_triton, x, weight, cos, sin, 1e-5)[0] for x in (part, part.clone())
            )
        else:
            found, plain = (interpreter.call(rotary_triton, x, cos, sin) for x in (part, part.clone()))
        assert torch.equal(found, plain)


def run_into(function: object, tensors: tuple[Tensor, ...], cache: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    """The queries, and the cache (2, R, Hkv, K, D) after the writes; runs where kernels are interpreted."""
    q = function(*tensors, cache[0], cache[1], *others)  # type: ignore[operator]
    return q, cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
def test_rotation_into_a_cache(interpreter: Interpreter, normed: bool, dtype: torch.dtype) -> None:
    """Rows with unequally many tokens, in any order, one without a place; what no token goes to stays."""
    joint = random(2, 3, 9 * 12, dtype=dtype)
    q, k, v = joint.unflatten(-1, (9, 12)).split((5, 2, 2), dim=2)
    cos, sin = angles(2, 3, 12, dtype)
    weights = (random(12, dtype=dtype), random(12, dtype=dtype, seed=1)) if normed else (None, None)
    places = torch.tensor([[4, 3, -1], [13, 30, 7]])  # three rows of ten slots
    cache = random(2, 3, 2, 10, 12, dtype=dtype)
    arguments = (q, k, v, cos, sin), cache, places, *weights, 1e-5
    found = interpreter.call(run_into, rotary_into_triton, *arguments)
    wide = [x.double() for x in (q, k, v, cos, sin)]
    exact = [None if weight is None else weight.double() for weight in weights]
    expected = run_into(rotary_into_torch, tuple(wide), cache.double(), places, *exact, 1e-5)
    assert_close(found, expected, LIMITS[dtype])
    stays = torch.ones(3, 10, dtype=torch.bool)
    stays.view(-1)[[4, 3, 13, 7]] = False
    before, after = (x.transpose(2, 3)[:, stays] for x in (random(2, 3, 2, 10, 12, dtype=dtype), found[1]))
    assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["whole", "views", "turned", "empty"])
def test_gate_and_its_gradients(interpreter: Interpreter, form: str, dtype: torch.dtype) -> None:
    gate, up, grad = (random(3, 7, 43, dtype=dtype, seed=seed) for seed in range(3))
    if form == "views":
        gate, up = random(3, 7, 86, dtype=dtype).chunk(2, -1)
    elif form == "turned":
        gate, grad = gate.mT.contiguous().mT, random(1, 1, 43, dtype=dtype).expand(3, 7, 43)
    elif form == "empty":
        gate, up, grad = (x[:, :0] for x in (gate, up, grad))
    out = interpreter.call(swiglu_triton, gate, up)
    found = interpreter.call(swiglu_backward_triton, grad, gate, up)
    exact = gate.double().requires_grad_(), up.double().requires_grad_()
    expected = reference.swiglu(*exact)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    assert_close((out, *found), (expected.detach(), *wanted), LIMITS[dtype])


def test_gate_of_large_numbers_does_not_overflow(interpreter: Interpreter) -> None:
    gate, up = torch.tensor([-1e4, -200.0, -88.8, 0.0, 88.8, 200.0, 1e4]), torch.ones(7)
    assert torch.equal(interpreter.call(swiglu_triton, gate, up), torch.nn.functional.silu(gate))
    d_gate, _ = interpreter.call(swiglu_backward_triton, up, gate, up)
    torch.testing.assert_close(d_gate, torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]))


PART_MASKS: dict[str, tuple[bool, int, float]] = {
    "causal": (True, 0, 0.0),
    "full": (False, 0, 0.0),
    "window": (True, 9, 0.0),
    "full window and soft cap": (False, 7, 2.0),
}


@pytest.mark.parametrize("descriptors", [False, True])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("name", PART_MASKS)
def test_attention_of_a_part_of_the_queries(
    interpreter: Interpreter, name: str, documents: bool, descriptors: bool
) -> None:
    dtype = torch.float16 if descriptors else torch.float32
    ids = None
    if documents:
        ids = torch.tensor([[1] * 9 + [2] * 25 + [0] * 11, [4] * 40 + [0] * 5])
    arguments = ids, None, *PART_MASKS[name], 0.3
    blocks = {"BLOCK_WIDTH": 16, "DESCRIPTORS": descriptors, "PRODUCT": None if descriptors else "tf32x3"}
    form = [{"BLOCK_QUERIES": queries, "BLOCK_KEYS": keys} | blocks for queries, keys in ((32, 16), (16, 32), (32, 32))]
    for first, last in ((0, 7), (7, 38), (38, 45)):
        tensors = [random(2, 45, heads, 12, dtype=dtype) for heads in (4, 2, 2)]
        q, k, v = tensors[0][:, first:last], *tensors[1:]
        grad = random(2, last - first, 4, 12, dtype=dtype)
        out, lse = interpreter.call(attention_triton, q, k, v, *arguments, None, first, config=form[0])
        found = interpreter.call(
            attention_backward_triton, grad, q, k, v, out, lse, *arguments, None, first, configs=(form[1], form[2])
        )
        wide = [x.double() for x in (q, k, v)]
        exact = attention_tiled(*wide, *arguments, first)  # type: ignore[arg-type, misc]
        wanted = attention_backward_tiled(grad.double(), *wide, *exact, *arguments, first)  # type: ignore[arg-type, misc]
        assert_close((out, lse, *found), (*exact, *wanted), LIMITS[dtype])


def test_the_host_waits_for_none_of_them(interpreter: Interpreter) -> None:
    x, weight, (cos, sin) = random(2, 3, 4, 8), random(8), angles(1, 3, 8, torch.float32)
    out, inverse = interpreter.call(norm_rotary_triton, x, weight, cos, sin, 1e-5)
    cache, places = random(2, 2, 4, 10, 8), torch.tensor([[0, 1, 2], [10, 11, 12]])
    runs = [
        partial(rms_norm_triton, x, weight, 1e-5),
        partial(add_rms_norm_triton, x, x, weight, 1e-5),
        partial(rms_norm_backward_triton, out, x, weight, inverse),
        partial(rotary_triton, x, cos, sin),
        partial(norm_rotary_backward_triton, out, x, weight, inverse, cos, sin),
        partial(rotary_into_triton, x, x, x, cos, sin, cache[0], cache[1], places, weight, weight, 1e-5),
        partial(swiglu_triton, x, x),
        partial(swiglu_backward_triton, x, x, x),
    ]
    assert [interpreter.call(host_waits, run) for run in runs] == [0] * len(runs)
