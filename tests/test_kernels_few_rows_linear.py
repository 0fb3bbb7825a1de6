"""Products of few rows equal norm, products, gate and sum one after the other: on the CPU, compiled, in Triton's interpreter; bad input."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from emu_kernels import few_rows_linear, reference, rms_norm, swiglu
from emu_kernels.testing import Interpreter, host_waits, launched_kernels

FORMS = {
    "one": ((20,), {}),
    "a sum": ((20,), {"residual"}),
    "queries, keys and values": ((33, 8, 17), {"norm"}),
    "a gate": ((21, 21), {"norm", "gated"}),
    "all": ((21, 21), {"norm", "gated", "residual"}),
}
LIMITS = {torch.float64: 1e-6, torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def inputs(form: str, dtype: torch.dtype = torch.float32, rows: tuple[int, ...] = (3, 1), width: int = 40) -> tuple:
    """x, weights, norm_weight, eps, gated and residual, as the op takes them."""
    columns, parts = FORMS[form]
    generator = torch.Generator().manual_seed(len(form))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    weights = [random(count, width) / width**0.5 for count in columns]
    total = columns[0] if "gated" in parts else sum(columns)
    norm, residual = random(width), random(*rows, total)
    return (
        random(*rows, width), weights, norm if "norm" in parts else None, 1e-5, "gated" in parts,
        residual if "residual" in parts else None,
    )  # fmt: skip


def call(
    x: Tensor, weights: list[Tensor], norm_weight: Tensor | None, eps: float, gated: bool, residual: Tensor | None
) -> Tensor:
    """The public function with the arguments of the op."""
    return few_rows_linear(x, weights, norm_weight=norm_weight, eps=eps, gated=gated, residual=residual)


def exact(case: tuple) -> Tensor:
    """The definition in float64."""
    wide = [
        [part.double() for part in x] if isinstance(x, list) else x.double() if isinstance(x, Tensor) else x
        for x in case
    ]
    return reference.few_rows_linear(*wide)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_definition(form: str, dtype: torch.dtype) -> None:
    case = inputs(form, dtype)
    found = call(*case)
    assert found.dtype == dtype and not found.requires_grad
    assert found.shape == exact(case).shape and error(found, exact(case)) < LIMITS[dtype]


def test_on_a_cpu_the_bits_are_those_of_the_operations_one_by_one() -> None:
    x, weights, norm, eps, _, residual = inputs("all")
    normed = rms_norm(x, norm, eps)
    plain = residual + swiglu(*(torch.nn.functional.linear(normed, weight) for weight in weights))
    assert torch.equal(call(x, weights, norm, eps, True, residual), plain)


def test_ops_pass_opcheck() -> None:
    for form in FORMS:
        torch.library.opcheck(torch.ops.emu_kernels.few_rows_linear.default, inputs(form))


def test_bad_input_is_named() -> None:
    x, (gate, up), norm, _, _, residual = inputs("all")
    with pytest.raises(
        ValueError, match=r"weights\[1\] must have shape \(20, 40\) to match the features of x, got \(20, 39\)"
    ):
        few_rows_linear(x, [gate, up[:20, :39]])
    with pytest.raises(
        ValueError, match=r"weights\[1\] must have shape \(21, 40\) to match weights\[0\] and x, got \(20, 40\)"
    ):
        few_rows_linear(x, [gate, up[:20]], gated=True)
    with pytest.raises(ValueError, match="weights has 4 tensors; expected 1 to 3 to multiply x with"):
        few_rows_linear(x, [gate] * 4)
    with pytest.raises(ValueError, match="weights has 1 tensors; expected 2, of gate and up, to multiply x with"):
        few_rows_linear(x, [gate], gated=True)
    with pytest.raises(ValueError, match=r"weights\[0\] has no columns"):
        few_rows_linear(x, [gate[:0]])
    with pytest.raises(
        ValueError, match=r"residual must have shape \(3, 1, 42\) to match the rows of x and the columns"
    ):
        few_rows_linear(x, [gate, up], residual=residual)
    with pytest.raises(ValueError, match=r"norm_weight must have shape \(40,\)"):
        few_rows_linear(x, [gate], norm_weight=norm[:30])
    with pytest.raises(TypeError, match=r"weights\[0\] has dtype torch.float64 but x has torch.float32"):
        few_rows_linear(x, [gate.double()])
    with pytest.raises(ValueError, match=r"weights\[0\] is on meta but x is on cpu"):
        few_rows_linear(x, [gate.to("meta")])


def run(*case: Any, **config: Any) -> Tensor:
    from emu_kernels.few_rows_linear.gpu import few_rows_linear_triton

    return few_rows_linear_triton(*case, **config)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_kernel_is_close_to_float64(interpreter: Interpreter, form: str) -> None:
    for dtype in (torch.float32, torch.float16):
        case = inputs(form, dtype)
        assert error(interpreter.call(run, *case), exact(case)) < LIMITS[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [1, 256, 300, 1024])
def test_widths_that_fill_blocks_and_widths_that_do_not(interpreter: Interpreter, form: str, width: int) -> None:
    for dtype in (torch.float32, torch.float16):
        case = inputs(form, dtype, (2, 17), width)
        assert error(interpreter.call(run, *case), exact(case)) < LIMITS[dtype]


@pytest.mark.slow
def test_a_row_has_the_same_bits_alone_and_among_others(interpreter: Interpreter) -> None:
    x, weights, norm, eps, gated, residual = inputs("all", rows=(19,))
    whole = interpreter.call(run, x, weights, norm, eps, gated, residual)
    for row in (0, 7, 18):
        own = slice(row, row + 1)
        assert torch.equal(interpreter.call(run, x[own], weights, norm, eps, gated, residual[own]), whole[own])


@pytest.mark.slow
def test_views_are_read_in_place_and_no_rows_give_no_rows(interpreter: Interpreter) -> None:
    x, weights, *others, residual = inputs("all", rows=(4,))
    wide = torch.cat([x, x, x], -1)[:, 40:80]
    assert not wide.is_contiguous()
    assert torch.equal(
        interpreter.call(run, wide, weights, *others, residual), interpreter.call(run, x, weights, *others, residual)
    )
    assert interpreter.call(run, x[:0], weights, *others, residual[:0]).shape == (0, 21)


@pytest.mark.slow
def test_large_numbers_do_not_overflow_float16_in_the_norm(interpreter: Interpreter) -> None:
    x, weights, norm, *others = inputs("queries, keys and values", torch.float16)
    case = 3e4 * x.clamp(-2, 2), weights, 8.0 + norm.abs(), *others
    assert error(interpreter.call(run, *case), exact(case)) < LIMITS[torch.float16]


def names_of(*case: Any) -> list[str]:
    from emu_kernels.few_rows_linear.gpu import few_rows_linear_triton

    return launched_kernels(few_rows_linear_triton, *case)


@pytest.mark.slow
def test_everything_is_one_launch_and_the_host_waits_for_nothing(interpreter: Interpreter) -> None:
    for form in FORMS:
        assert interpreter.call(names_of, *inputs(form)) == ["few_rows_kernel"]
        assert interpreter.call(host_waits, partial(run, *inputs(form))) == 0
