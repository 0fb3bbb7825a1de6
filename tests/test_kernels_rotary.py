"""The rotation against complex multiplication: values, gradients, dtypes, compiled, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emu_kernels import reference, rotary


def make_inputs(rows: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x (2, 5, 3, 8) and angles (rows, 5, 4) float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 8, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return x, 6.0 * torch.rand(rows, 5, 4, generator=generator, dtype=torch.float64)


def signed(angles: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (B, S, 1, D)."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1)[:, :, None].to(dtype), torch.cat([-sin, sin], -1)[:, :, None].to(dtype)


TOLERANCES = [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]


@pytest.mark.parametrize("dtype, tolerance", TOLERANCES)
@pytest.mark.parametrize("rows", [1, 2])
def test_pairs_are_turned_as_complex_numbers_are(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    x, angles = make_inputs(rows, dtype)
    wide = x.detach().double().requires_grad_()
    out, expected = rotary(x, *signed(angles, dtype)), reference.rotary(wide, angles)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=0.0, atol=tolerance)
    grad = torch.randn(2, 5, 3, 8, dtype=torch.float64).to(dtype)
    (found,), (wanted,) = torch.autograd.grad(out, x, grad), torch.autograd.grad(expected, wide, grad.double())
    torch.testing.assert_close(found.double(), wanted, rtol=0.0, atol=tolerance)


def test_gradients_of_first_and_second_order_are_slopes() -> None:
    x, angles = make_inputs()
    assert torch.autograd.gradcheck(lambda x: rotary(x, *signed(angles)), (x,))
    assert torch.autograd.gradgradcheck(lambda x: rotary(x, *signed(angles)).pow(3), (x,))


def test_scores_depend_on_the_distance_alone() -> None:
    """What the embedding is for: queries and keys that are shifted together keep their products."""
    q, k = (torch.randn(1, 9, 2, 8, dtype=torch.float64) for _ in range(2))
    speeds = torch.tensor([1.0, 0.3, 0.05, 0.002], dtype=torch.float64)
    scores = []
    for shift in (0, 1000):
        angles = (torch.arange(9) + shift)[None, :, None] * speeds
        turned_q, turned_k = (rotary(x, *signed(angles)) for x in (q, k))
        scores.append(torch.einsum("bshd,bthd->bhst", turned_q, turned_k))
    torch.testing.assert_close(scores[0], scores[1], rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_are_the_same_to_the_last_bit_with_and_without_a_gradient(dtype: torch.dtype) -> None:
    x, angles = make_inputs(1, dtype)
    with torch.no_grad():
        expected = rotary(x, *signed(angles, dtype))
    assert torch.equal(rotary(x, *signed(angles, dtype)), expected)


def test_views_of_one_projection_are_read_in_place() -> None:
    joint = torch.randn(2, 5, 9 * 8)
    angles = signed(make_inputs()[1], torch.float32)
    q, k = joint.unflatten(-1, (9, 8)).split((6, 3), dim=2)
    for part in (q, k):
        assert torch.equal(rotary(part, *angles), rotary(part.contiguous(), *angles))


def test_compiled_equals_eager() -> None:
    x, angles = make_inputs()

    def function(x: Tensor) -> Tensor:
        return 2.0 * rotary(x + 1.0, *signed(angles))

    eager, compiled = function(x), torch.compile(function, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, eager)
    found, expected = (torch.autograd.grad(y.square().sum(), x) for y in (compiled, eager))
    torch.testing.assert_close(found, expected)


def test_op_passes_opcheck() -> None:
    x, angles = make_inputs(1)
    torch.library.opcheck(torch.ops.emu_kernels.rotary.default, (x, *signed(angles)))


def test_bad_input_is_named() -> None:
    x, angles = make_inputs()
    cos, sin = signed(angles)
    with pytest.raises(ValueError, match=r"cos must have shape \(2, 5, 1, 8\) to match x, got \(2, 4, 1, 8\)"):
        rotary(x, cos[:, :4], sin)
    with pytest.raises(ValueError, match=r"sin must have shape \(2, 5, 1, 8\) to match cos, got \(1, 5, 1, 8\)"):
        rotary(x, cos, sin[:1])
    with pytest.raises(ValueError, match="heads of 7 features, which do not form pairs"):
        rotary(x[..., :7], cos, sin)
    with pytest.raises(ValueError, match="cos and sin are taken as constants"):
        rotary(x, cos.clone().requires_grad_(), sin)
    with pytest.raises(TypeError, match="sin has dtype torch.float32 but cos has torch.float64"):
        rotary(x, cos, sin.float())
