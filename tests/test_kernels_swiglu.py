"""The gate against its plain definition: values, gradients, dtypes, views, what it keeps, compiled, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from emu_kernels import reference, swiglu


def make_inputs(shape: tuple[int, ...] = (2, 5, 24), dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    gate, up = (3.0 * torch.randn(shape, generator=generator) for _ in range(2))
    return gate.to(dtype).requires_grad_(), up.to(dtype).requires_grad_()


TOLERANCES = [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
@pytest.mark.parametrize("shape", [(), (1,), (7, 33), (2, 5, 24), (0, 8)])
def test_values_and_gradients_are_those_of_the_definition(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    inputs = make_inputs(shape, dtype)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out, expected = swiglu(*inputs), reference.swiglu(*wide)
    grad = torch.randn(shape)
    found = out, *torch.autograd.grad(out, inputs, grad.to(dtype))
    wanted = expected, *torch.autograd.grad(expected, wide, grad.to(dtype).double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * 10)


def test_gradients_are_the_slopes_of_the_function() -> None:
    assert torch.autograd.gradcheck(torch.ops.emu_kernels.swiglu, make_inputs((3, 4), torch.float64))


@pytest.mark.parametrize("function", [swiglu, torch.ops.emu_kernels.swiglu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_autograd_with_and_without_a_gradient(dtype: torch.dtype, function: Any) -> None:
    """So that models that were trained before it are trained to the same weights."""
    inputs = make_inputs((3, 7, 43), dtype)
    grad = torch.randn(3, 7, 43).to(dtype)
    plain, out = F.silu(inputs[0]) * inputs[1], function(*inputs)
    found, expected = (torch.autograd.grad(y, inputs, grad) for y in (out, plain))
    assert torch.equal(out, plain)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    with torch.no_grad():
        assert torch.equal(function(*inputs), plain)


def test_views_of_one_product_are_read_in_place() -> None:
    joint = torch.randn(2, 5, 48)
    gate, up = joint.chunk(2, -1)
    torch.testing.assert_close(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))
    grad = torch.randn(24).expand(2, 5, 24)
    whole = [part.contiguous().requires_grad_() for part in (gate, up)]
    views = [part.detach().requires_grad_() for part in (gate, up)]
    found, expected = (torch.autograd.grad(swiglu(*x), x, grad) for x in (views, whole))
    torch.testing.assert_close(found, expected)


def test_no_more_than_the_inputs_is_kept_for_the_backward() -> None:
    inputs, kept = make_inputs(), []

    def pack(x: Tensor) -> Tensor:
        kept.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        torch.ops.emu_kernels.swiglu(*inputs)
    assert sorted(kept) == sorted(x.data_ptr() for x in inputs)


def test_a_frozen_input_gets_no_gradient() -> None:
    gate, up = make_inputs()
    swiglu(gate, up.detach()).sum().backward()
    assert gate.grad is not None and up.grad is None


def test_a_second_derivative_of_the_op_is_refused() -> None:
    gate, up = make_inputs()
    (slope,) = torch.autograd.grad(torch.ops.emu_kernels.swiglu(gate, up).sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="swiglu_backward"):
        slope.sum().backward()


def test_large_gates_do_not_overflow() -> None:
    gate = torch.tensor([-1e4, -200.0, 0.0, 200.0, 1e4], requires_grad=True)
    out = swiglu(gate, torch.ones(5))
    assert torch.equal(out, torch.tensor([0.0, 0.0, 0.0, 200.0, 1e4]))
    assert torch.equal(torch.autograd.grad(out.sum(), gate)[0], torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_compiled_equals_eager() -> None:
    inputs = make_inputs()
    compiled = torch.compile(lambda gate, up: 2.0 * swiglu(gate + 1.0, up), backend="aot_eager", fullgraph=True)(
        *inputs
    )
    eager = 2.0 * swiglu(inputs[0] + 1.0, inputs[1])
    torch.testing.assert_close(compiled, eager)
    found, expected = (torch.autograd.grad(y.square().sum(), inputs) for y in (compiled, eager))
    torch.testing.assert_close(found, expected)


def test_ops_pass_opcheck() -> None:
    inputs = make_inputs((3, 4))
    torch.library.opcheck(torch.ops.emu_kernels.swiglu.default, inputs)
    fixed = [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.emu_kernels.swiglu_backward.default, (fixed[0], *fixed))


def test_bad_input_is_named() -> None:
    gate, up = (x.detach() for x in make_inputs())
    with pytest.raises(ValueError, match=r"up must have shape \(2, 5, 24\) to match gate, got \(2, 5, 23\)"):
        swiglu(gate, up[..., :23])
    with pytest.raises(ValueError, match="up is on meta but gate is on cpu"):
        swiglu(gate, up.to("meta"))
    with pytest.raises(TypeError, match="up has dtype torch.float64 but gate has torch.float32"):
        swiglu(gate, up.double())
    with pytest.raises(TypeError, match="gate must have one of the dtypes"):
        swiglu(gate.long(), up)
