"""The rotation against complex multiplication: values, gradients, dtypes, compiled, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emu_kernels import reference, rms_norm, rotary, rotary_into


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_rotation_of_a_norm_is_the_norm_and_its_rotation_to_the_last_bit(dtype: torch.dtype) -> None:
    """Values and gradients, so that models trained before it are trained to the same weights."""
    x, angles = make_inputs(1, dtype)
    weight = torch.linspace(0.5, 2.0, 8).to(dtype).requires_grad_()
    cos, sin = signed(angles, dtype)
    fused, plain = rotary(x, cos, sin, weight=weight, eps=1e-4), rotary(rms_norm(x, weight, 1e-4), cos, sin)
    grad = torch.randn(2, 5, 3, 8).to(dtype)
    found, expected = (torch.autograd.grad(y, (x, weight), grad) for y in (fused, plain))
    assert all(torch.equal(a, b) for a, b in zip((fused, *found), (plain, *expected), strict=True))
    with torch.no_grad():
        assert torch.equal(rotary(x, cos, sin, weight=weight, eps=1e-4), plain)


def test_the_rotation_of_a_norm_compiles_and_passes_opcheck() -> None:
    x, angles = make_inputs(1, torch.float32)
    weight, (cos, sin) = torch.linspace(0.5, 2.0, 8).requires_grad_(), signed(angles, torch.float32)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return 2.0 * rotary(x + 1.0, cos, sin, weight=weight)

    eager, compiled = function(x, weight), torch.compile(function, backend="aot_eager", fullgraph=True)(x, weight)
    torch.testing.assert_close(compiled, eager)
    torch.library.opcheck(torch.ops.emu_kernels.norm_rotary.default, (x, weight, cos, sin, 1e-5))
    fixed = x.detach(), weight.detach()
    out, inverse = torch.ops.emu_kernels.norm_rotary(*fixed, cos, sin, 1e-5)
    torch.library.opcheck(torch.ops.emu_kernels.norm_rotary_backward.default, (out, *fixed, inverse, cos, sin))


def make_step(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two rows of three new tokens and a cache of three rows of ten slots."""
    generator = torch.Generator().manual_seed(0)
    joint = torch.randn(2, 3, 9 * 8, generator=generator).to(dtype)
    q, k, v = joint.unflatten(-1, (9, 8)).split((5, 2, 2), dim=2)
    cos, sin = signed(6.0 * torch.rand(2, 3, 4, generator=generator), dtype)
    keys, values = torch.randn(2, 3, 2, 10, 8, generator=generator).to(dtype)
    places = torch.tensor([[4, 3, -1], [13, 30, 7]])
    return {"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "keys": keys, "values": values, "places": places}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [False, True])
def test_keys_and_values_go_to_their_places_in_the_cache(normed: bool, dtype: torch.dtype) -> None:
    step = make_step(dtype)
    weights = {"q_weight": torch.rand(8).to(dtype), "k_weight": torch.rand(8).to(dtype)} if normed else {}
    expected = [step[name].clone() for name in ("keys", "values")]
    options = [{"weight": weight, "eps": 1e-5} for weight in weights.values()] or [{}, {}]
    q, k = (rotary(step[name], step["cos"], step["sin"], **own) for name, own in zip("qk", options, strict=True))
    for (row, token), (to, slot) in {(0, 0): (0, 4), (0, 1): (0, 3), (1, 0): (1, 3), (1, 2): (0, 7)}.items():
        expected[0][to, :, slot], expected[1][to, :, slot] = k[row, token], step["v"][row, token]
    assert torch.equal(rotary_into(**step, **weights), q)
    assert torch.equal(step["keys"], expected[0]) and torch.equal(step["values"], expected[1])


def test_the_write_into_a_cache_passes_opcheck() -> None:
    step = make_step()
    arguments = *step.values(), torch.rand(8), torch.rand(8), 1e-5
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.emu_kernels.rotary_into.default, arguments, test_utils=checks)


BAD_STEPS = {
    "one weight": ({"q_weight": torch.ones(8)}, ValueError, "k_weight is missing"),
    "places of another shape": ({"places": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"places must have shape \(2, 3\)"),
    "places that are no integers": ({"places": torch.zeros(2, 3)}, TypeError, "places must have one of the dtypes"),
    "places elsewhere": ({"places": torch.zeros(2, 3, dtype=torch.int64, device="meta")}, ValueError, "places is on meta"),
    "a cache of other heads": ({"keys": torch.zeros(3, 4, 10, 8)}, ValueError, r"keys must have shape \(3, 2, 10, 8\)"),
    "values of another dtype": ({"values": torch.zeros(3, 2, 10, 8).double()}, TypeError, "values has dtype"),
    "keys of another length": ({"k": torch.zeros(2, 4, 2, 8)}, ValueError, r"k must have shape \(2, 3, 2, 8\)"),
    "weights of another width": ({"q_weight": torch.ones(7), "k_weight": torch.ones(8)}, ValueError, "q_weight must have shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STEPS)
def test_a_bad_argument_of_a_step_is_named(name: str) -> None:
    changes, error, message = BAD_STEPS[name]
    with pytest.raises(error, match=message):
        rotary_into(**(make_step() | changes))
