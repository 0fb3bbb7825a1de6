"""Random cases of norm, rotation, gate and products of few rows against float64, with bounds at each number.

A function draws its case, runs it in Triton's interpreter where `kernels` is set, else on the CPU path, and returns what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emu_kernels import reference
from emu_kernels.few_rows_linear import cpu as few_rows_cpu
from emu_kernels.rms_norm import cpu as norm_cpu
from emu_kernels.rotary import cpu as rotary_cpu
from emu_kernels.swiglu import cpu as gate_cpu
from tests.kernel_chance import Chance, Options, compare, draw_dtype, first_of, rounding

EPS32 = torch.finfo(torch.float32).eps


def norm_bounds(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of a norm's output, d x and d weight without their signs; all float64."""
    inverse = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed, grad = (x * inverse).abs(), grad.abs()
    product = grad * weight.abs()
    d_x = inverse * (product + normed * (product * normed).mean(-1, keepdim=True))
    return normed * weight.abs(), d_x, (grad * normed).reshape(-1, x.shape[-1]).sum(0)


def rms_norm(chance: Chance, kernels: bool) -> str | None:
    dtype, shape = draw_dtype(chance, kernels), [chance.size(9) for _ in range(chance.pick((0, 1, 1, 2)))]
    shape.append(chance.size(65))
    x, residual, grad, grad_sum = (chance.numbers(shape, dtype, 20.0) for _ in range(4))
    weight, eps = chance.numbers(shape[-1:], dtype, 5.0), chance.pick((1e-3, 1e-2, 1.0))
    run: Options = {"rms_norm": norm_cpu.normalise, "add": norm_cpu.normalise_sum}
    backward: Callable[..., tuple[Tensor, Tensor]] = norm_cpu.rms_norm_backward_torch
    if kernels:
        from emu_kernels.rms_norm import gpu

        run = {"rms_norm": gpu.rms_norm_triton, "add": gpu.add_rms_norm_triton}
        backward = gpu.rms_norm_backward_triton
    added = chance.often(0.5)
    if added:
        out, total, inverse = run["add"](x, residual, weight, eps)
        if not torch.equal(total, x + residual):
            return "the sum is not x + residual"
    else:
        total = x
        out, inverse = run["rms_norm"](x, weight, eps)
    found = out, *backward(grad, total, weight, inverse, grad_sum if added else None)
    exact = [t.double().requires_grad_() for t in (total, weight)]
    expected = reference.rms_norm(exact[0], exact[1], eps)
    d_x, d_weight = torch.autograd.grad(expected, exact, grad.double())
    bounds = norm_bounds(total.double(), weight.double(), grad.double(), eps)
    if added:
        d_x, bounds = d_x + grad_sum.double(), (bounds[0], bounds[1] + grad_sum.double().abs(), bounds[2])
    share, least = rounding(dtype)
    # A normed number that is below the normal ones of 16 bits loses digits before it is scaled.
    least = least * (1.0 + float(weight.double().abs().max()))
    truths = expected.detach(), d_x, d_weight
    names = "out", "d_x", "d_weight"
    return first_of(
        *(compare(n, f, t, b * share + least) for n, f, t, b in zip(names, found, truths, bounds, strict=True))
    )


def rotary(chance: Chance, kernels: bool) -> str | None:
    dtype = draw_dtype(chance, kernels)
    rows, length, width = chance.size(2), chance.size(3 if kernels else 7), 2 * chance.size(17)
    heads = chance.size(9)
    x, grad = (chance.numbers((rows, length, heads, width), dtype, 20.0) for _ in range(2))
    weight, eps = chance.numbers((width,), dtype, 5.0), chance.pick((1e-3, 1e-2, 1.0))
    angles = chance.pick((1.0, 100.0)) * chance.uniform(chance.pick((1, rows)), length, width // 2)
    cos, sin = angles.cos(), angles.sin()
    cos, sin = (torch.cat(pair, -1)[:, :, None].to(dtype) for pair in ((cos, cos), (-sin, sin)))
    plain, normed, backward = (
        rotary_cpu.rotary_torch,
        rotary_cpu.norm_rotary_torch,
        rotary_cpu.norm_rotary_backward_torch,
    )
    if kernels:
        from emu_kernels.rotary import gpu

        plain, normed, backward = gpu.rotary_triton, gpu.norm_rotary_triton, gpu.norm_rotary_backward_triton
    turned = plain(x, cos, sin)
    out, inverse = normed(x, weight, cos, sin, eps)
    found = turned, out, *backward(grad, x, weight, inverse, cos, sin)

    wide, scale, cosine, sine = (t.double() for t in (x, weight, cos, sin))
    exact = [wide.clone().requires_grad_(), scale.clone().requires_grad_()]
    expected = rotary_cpu.rotary_torch(reference.rms_norm(exact[0], exact[1], eps), cosine, sine)
    truths = (
        rotary_cpu.rotary_torch(wide, cosine, sine),
        expected.detach(),
        *torch.autograd.grad(expected, exact, grad.double()),
    )

    def terms(t: Tensor) -> Tensor:
        return rotary_cpu.rotary_torch(t.abs(), cosine.abs(), sine.abs())

    bounds = norm_bounds(wide, scale, terms(grad.double()), eps)
    share, least = rounding(dtype)
    least = least * (1.0 + float(scale.abs().max()))
    names, sizes = ("turned", "out", "d_x", "d_weight"), (terms(wide), terms(bounds[0]), bounds[1], bounds[2])
    return first_of(
        *(compare(n, f, t, b * share + least) for n, f, t, b in zip(names, found, truths, sizes, strict=True))
    )


def swiglu(chance: Chance, kernels: bool) -> str | None:
    dtype, shape = draw_dtype(chance, kernels), [chance.size(9) for _ in range(chance.pick((0, 1, 2)))]
    shape.append(chance.size(65))
    gate, up, grad = (chance.numbers(shape, dtype, 60.0) for _ in range(3))
    forward, backward = gate_cpu.swiglu_torch, gate_cpu.swiglu_backward_torch
    if kernels:
        from emu_kernels.swiglu import gpu

        forward, backward = gpu.swiglu_triton, gpu.swiglu_backward_triton
    found = forward(gate, up), *backward(grad, gate, up)
    exact = [x.double().requires_grad_() for x in (gate, up)]
    expected = reference.swiglu(exact[0], exact[1])
    truths = expected.detach(), *torch.autograd.grad(expected, exact, grad.double())
    own, other, slope = (x.double().abs() for x in (gate, up, grad))
    share, least = rounding(dtype)
    # exp(gate) loses as many digits as gate has before the point, and 16 bits round grad * up, too.
    share = share + 8 * EPS32 * own
    opened = gate.double().sigmoid()
    sizes = (
        truths[0].abs(),
        slope * other * opened * (1.0 + own * (1.0 - opened)) + slope * other * EPS32,
        truths[2].abs(),
    )
    names = "out", "d_gate", "d_up"
    return first_of(
        *(
            compare(n, f, t, b * share + least * (1.0 + other + slope))
            for n, f, t, b in zip(names, found, truths, sizes, strict=True)
        )
    )


def few_rows_linear(chance: Chance, kernels: bool) -> str | None:
    dtype, shape = draw_dtype(chance, kernels), [chance.size(9) for _ in range(chance.pick((0, 1, 2)))]
    width, gated, normed, added = chance.size(65), chance.often(0.5), chance.often(0.5), chance.often(0.5)
    columns = [chance.size(65) for _ in range(1 if gated else chance.pick((1, 2, 3)))] * (1 + gated)
    x = chance.numbers((*shape, width), dtype, 3.0)
    weights = [chance.numbers((count, width), dtype, 1.0) for count in columns]
    norm, eps = chance.numbers((width,), dtype, 2.0) if normed else None, chance.pick((1e-3, 1e-2, 1.0))
    residual = chance.numbers((*shape, columns[0] if gated else sum(columns)), dtype, 20.0) if added else None
    run = few_rows_cpu.few_rows_linear_torch
    if kernels:
        from emu_kernels.few_rows_linear.gpu import few_rows_linear_triton as run  # type: ignore[assignment]
    found = run(x, weights, norm, eps, gated, residual)
    wide, scale, rest = (None if part is None else part.double() for part in (x, norm, residual))
    assert wide is not None
    exact = [weight.double() for weight in weights]
    truth = reference.few_rows_linear(wide, exact, scale, eps, gated, rest)
    share, least = rounding(dtype)
    before = wide if scale is None else reference.rms_norm(wide, scale, eps)
    parts = [before @ weight.T for weight in exact]
    # What each product may be off by: its terms are rounded, and their sum.
    slips = [share * (before.abs() @ weight.abs().T) + least * width for weight in exact]
    bound = torch.cat(slips, -1)
    if gated:
        gate, up = (part.abs() for part in parts)
        bound = 1.1 * slips[0] * (up + slips[1]) + slips[1] * gate + (share + 8 * EPS32 * gate) * gate * up
    return compare("out", found, truth, bound + share * truth.abs() + least)
