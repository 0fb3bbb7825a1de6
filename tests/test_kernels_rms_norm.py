"""The norm against its plain definition: values, gradients, dtypes, views, compiled, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emu_kernels import reference, rms_norm

SHAPES = [(1, 1), (7, 33), (2, 5, 48), (3, 4, 2, 16), (0, 8)]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[-1])
    x, weight = (torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in (shape, shape[-1:]))
    return x, weight


def exact(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.detach().double().requires_grad_() for x in tensors)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_definition(shape, dtype, tolerance) -> None:
    x, weight = make_inputs(shape, dtype)
    wide_x, wide_weight = exact(x, weight)
    out, expected = rms_norm(x, weight, 1e-5), reference.rms_norm(wide_x, wide_weight, 1e-5)
    grad = torch.randn(shape)
    found = out, *torch.autograd.grad(out, (x, weight), grad.to(dtype))
    wanted = expected, *torch.autograd.grad(expected, (wide_x, wide_weight), grad.to(dtype).double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * 4)


def test_gradients_are_the_slopes_of_the_function() -> None:
    """With wide steps, since the function is computed in float32 for float64 inputs too."""
    inputs = tuple(x.detach().double().requires_grad_() for x in make_inputs((5, 6)))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), inputs, eps=1e-2, atol=2e-3, rtol=2e-3)


def test_statistics_of_float64_inputs_are_those_of_float32() -> None:
    x, weight = exact(*make_inputs((4, 24)))
    assert torch.equal(rms_norm(x, weight, 1e-5).float(), rms_norm(x.float(), weight.float(), 1e-5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_the_same_to_the_last_bit_with_and_without_a_gradient(shape, dtype) -> None:
    x, weight = make_inputs(shape, dtype)
    with torch.no_grad():
        expected = rms_norm(x, weight, 1e-6)
    assert torch.equal(rms_norm(x, weight, 1e-6), expected)


def test_views_are_read_in_place() -> None:
    x, weight = make_inputs((6, 20))
    strided = torch.randn(6, 40)[:, ::2].copy_(x.detach()).requires_grad_()
    grad = torch.randn(20).expand(6, 20)
    expected = torch.autograd.grad(rms_norm(x, weight, 1e-5), (x, weight), grad.contiguous())
    found = torch.autograd.grad(rms_norm(strided, weight, 1e-5), (strided, weight), grad)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_a_frozen_input_gets_no_gradient(frozen: str) -> None:
    inputs = dict(zip(("x", "weight"), make_inputs((3, 8)), strict=True))
    inputs[frozen].requires_grad_(False)
    rms_norm(inputs["x"], inputs["weight"], 1e-5).sum().backward()
    assert [name for name, value in inputs.items() if value.grad is None] == [frozen]


def test_a_second_derivative_is_refused() -> None:
    x, weight = make_inputs((3, 8))
    (slope,) = torch.autograd.grad(rms_norm(x, weight, 1e-5).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="rms_norm_backward"):
        slope.sum().backward()


def test_a_norm_of_zeros_is_zero_and_one_of_nan_stays_in_its_row() -> None:
    x, weight = make_inputs((3, 8))
    with torch.no_grad():
        x[0], x[1] = 0.0, torch.nan
    out = rms_norm(x, weight, 1e-5)
    assert not out[0].any() and out[1].isnan().all() and out[2].isfinite().all()


def test_compiled_equals_eager() -> None:
    x, weight = make_inputs((2, 5, 48))

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return 2.0 * rms_norm(x + 1.0, weight, 1e-5)

    eager = function(x, weight)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)(x, weight)
    torch.testing.assert_close(compiled, eager)
    found, expected = (torch.autograd.grad(y.square().sum(), (x, weight)) for y in (compiled, eager))
    torch.testing.assert_close(found, expected)


def test_ops_pass_opcheck() -> None:
    x, weight = make_inputs((3, 4, 8))
    torch.library.opcheck(torch.ops.emu_kernels.rms_norm.default, (x, weight, 1e-5))
    fixed = x.detach(), weight.detach()
    out, inverse = torch.ops.emu_kernels.rms_norm(*fixed, 1e-5)
    torch.library.opcheck(torch.ops.emu_kernels.rms_norm_backward.default, (torch.ones_like(out), *fixed, inverse))


def test_autocast_ends_at_the_door_of_the_op() -> None:
    x, weight = make_inputs((3, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rms_norm(x, weight, 1e-5)
    assert torch.equal(found, rms_norm(x, weight, 1e-5))


def test_bad_input_is_named() -> None:
    x, weight = (tensor.detach() for tensor in make_inputs((3, 8)))
    with pytest.raises(ValueError, match=r"weight must have shape \(8,\) to match the features of x, got \(7,\)"):
        rms_norm(x, weight[:7], 1e-5)
    with pytest.raises(ValueError, match="weight is on meta but x is on cpu"):
        rms_norm(x, weight.to("meta"), 1e-5)
    with pytest.raises(TypeError, match="x must have one of the dtypes"):
        rms_norm(x.long(), weight, 1e-5)


def make_sum(dtype: torch.dtype = torch.float32, branch_dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """x, residual (2, 5, 24) and weight (24,)."""
    x, weight = make_inputs((2, 5, 24), dtype)
    residual = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(7)).to(dtype).requires_grad_()
    return x.detach().to(branch_dtype or dtype).requires_grad_(), residual, weight


@pytest.mark.parametrize("branch_dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_a_sum_is_the_sum_and_its_norm_to_the_last_bit(branch_dtype: torch.dtype) -> None:
    """Values and gradients, also where the sum alone goes on; so models trained before it are trained to the same weights."""
    inputs = make_sum(branch_dtype=branch_dtype)
    x, residual, weight = inputs
    fused = rms_norm(x, weight, 1e-5, residual)
    total = x + residual
    plain = rms_norm(total, weight, 1e-5), total
    grads = torch.randn(2, 2, 5, 24)
    for places in ([0, 1], [0], [1]):
        found, expected = (
            torch.autograd.grad([y[i] for i in places], inputs, [grads[i] for i in places], True, allow_unused=True)
            for y in (fused, plain)
        )
        assert all(
            torch.equal(a, b) for a, b in zip((*fused, *found), (*plain, *expected), strict=True) if b is not None
        )
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(rms_norm(x, weight, 1e-5, residual), plain, strict=True))


def test_the_norm_of_a_sum_passes_opcheck_and_compiles() -> None:
    x, residual, weight = make_sum()
    torch.library.opcheck(torch.ops.emu_kernels.add_rms_norm.default, (x, residual, weight, 1e-5))
    compiled = torch.compile(rms_norm, backend="aot_eager", fullgraph=True)(x, weight, 1e-5, residual)
    torch.testing.assert_close(compiled, rms_norm(x, weight, 1e-5, residual))


def test_a_bad_residual_is_named() -> None:
    x, residual, weight = (tensor.detach() for tensor in make_sum())
    with pytest.raises(ValueError, match=r"residual must have shape \(2, 5, 24\) to match x, got \(2, 4, 24\)"):
        rms_norm(x, weight, 1e-5, residual[:, :4])
    with pytest.raises(ValueError, match="residual is on meta but x is on cpu"):
        rms_norm(x, weight, 1e-5, residual.to("meta"))
