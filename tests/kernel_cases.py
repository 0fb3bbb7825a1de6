"""Random cases of every op against float64, those of the loss, the sampler and the search for codes here.

A function draws its case, runs it in Triton's interpreter where `kernels` is set, else on the CPU path, and returns what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emu_kernels import guided_sample, linear_cross_entropy, nearest_code, reference
from tests.kernel_attention_cases import attention_case, decode_attention_case
from tests.kernel_chance import Chance, Options, compare, draw_dtype, first_of, rounding
from tests.kernel_row_cases import few_rows_linear, rms_norm, rotary, swiglu

EPS32 = torch.finfo(torch.float32).eps


def nearest_code_case(chance: Chance, kernels: bool) -> str | None:
    dtype = draw_dtype(chance, kernels)
    width, sizes = chance.size(21), (17, 65) if kernels else (45, 130)
    z, codebook = (chance.numbers((chance.size(n), width), dtype, chance.pick((3.0, 3e3))) for n in sizes)
    if chance.often(0.3):
        codebook = torch.cat([codebook, codebook.flip(0)])  # ties, of which the lowest index wins
    if chance.often(0.3):
        z[0] = codebook[len(codebook) // 2]
    if kernels:
        from emu_kernels.nearest_code.gpu import nearest_code_triton

        found = nearest_code_triton(z, codebook, {"BLOCK_VECTORS": 64, "BLOCK_CODES": 64, "BLOCK_EXACT": 64})
    else:
        found = nearest_code(z, codebook)
    distance = (z.double()[:, None] - codebook.double()).square().sum(2)
    # Not to the last bit, for the reference's sums depend on where a code lies; and of equal codes the first.
    own = distance.gather(1, found[:, None])[:, 0]
    first = (codebook[found][:, None] == codebook).all(2).int().argmax(1)
    least = distance.amin(1)
    return first_of(compare("distance", own, least, 1e-12 * least), compare("code", found, first.double(), 0.0))


def guided_sample_case(chance: Chance, kernels: bool) -> str | None:
    """That a candidate is one that may be drawn; and the kernels draw those of the CPU path."""
    guides, rows, number = chance.pick((1, 2, 3)), chance.size(3), chance.size(65)
    logits = chance.numbers((guides, rows, number), torch.float32, chance.pick((5.0, 50.0)))
    if chance.often(0.3) and number > 2:
        logits[:, :, number // 2 :] = -torch.inf
    temperature, top_k, top_p = chance.pick((0.0, 0.5, 1.0, 3.0)), chance.size(70), chance.pick((None, 0.05, 0.5, 0.99))
    scale = chance.number(0.0, 4.0), chance.number(0.0, 4.0)
    key = [chance.integers(0, 2**40, rows) for _ in range(3)]
    names = dict(zip(("seed", "stream", "position"), key, strict=True))
    found = guided_sample(logits, scale, temperature=temperature, top_k=top_k, top_p=top_p, **names)
    if kernels:
        from emu_kernels.guided_sample.gpu import guided_sample_triton

        numbers = scale[0], scale[1], temperature, top_k if top_k < number else 0, top_p or 1.0
        return compare("candidate", guided_sample_triton(logits, *numbers, *key, 0), found.double(), 0.0)
    if int(found.min()) < 0 or int(found.max()) >= number:
        return f"candidates {found.tolist()} are not in 0..{number - 1}"
    wide = logits.double()
    mixed = wide[0]
    if guides == 2:
        mixed = wide[1] + scale[0] * (wide[0] - wide[1])
    elif guides == 3:
        mixed = wide[1] + scale[1] * (wide[2] - wide[1]) + scale[0] * (wide[0] - wide[2])
    mixed = mixed.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    drawn, slack = mixed.gather(1, found[:, None]), 1e-4 * (1.0 + float(logits[logits.isfinite()].abs().max()))
    # A mix that differs by no more than rounding counts as equal.
    ahead = mixed > drawn + slack
    if temperature == 0.0:
        return None if not bool(ahead.any()) else f"{found.tolist()} are not the most likely candidates"
    if bool((ahead.sum(1) >= top_k).any()):
        return f"{found.tolist()} are not among the {top_k} most likely"
    kept = mixed.masked_fill(mixed < mixed.topk(min(top_k, number), 1).values[:, -1:] - slack, -torch.inf)
    mass = torch.where(ahead, (kept / temperature).softmax(1), 0.0).sum(1)
    return (
        None if top_p is None or bool((mass < top_p + 1e-4).all()) else f"{found.tolist()} lie beyond the mass {top_p}"
    )


def linear_cross_entropy_case(chance: Chance, kernels: bool) -> str | None:
    dtype = torch.float16 if kernels else draw_dtype(chance, kernels)
    tokens, ids, width = chance.size(45), chance.size(130), chance.size(33)
    largest = chance.pick((1.0, 4.0))
    hidden, weight = (chance.numbers((n, width), dtype, largest) for n in (tokens, ids))
    options: Options = {"z_loss": chance.pick((0.0, 0.0, 1e-3)), "softcap": chance.pick((None, None, 3.0))}
    first, count = 0, ids
    if chance.often(0.4):
        first = int(chance.number(0, ids))
        count = int(chance.number(0, ids - first)) + 1
        options["vocab_range"] = (first, count)
        if chance.often(0.4):
            options["vocab_range"] = torch.tensor([[first, count], [0, ids]]).repeat(tokens, 1)[:tokens]
    target = first + chance.integers(0, count, tokens)
    target[chance.uniform(tokens) < chance.pick((0.0, 0.1, 1.0))] = -100
    if chance.often(0.4):
        options["weights"] = 10.0 ** (4.0 * chance.uniform(tokens) - 3.0)
        options["weights"][chance.uniform(tokens) < 0.2] = 0.0
    reduction = chance.pick(("mean", "sum", "none"))
    factor = chance.uniform(tokens)
    if kernels:
        found = run_loss(hidden, weight, target, options, reduction, factor)
    else:
        inputs = [x.detach().requires_grad_() for x in (hidden, weight)]
        loss, lse = linear_cross_entropy(*inputs, target, **options, reduction=reduction, return_lse=True)
        total = (loss * factor).sum() if reduction == "none" else loss
        found = loss.detach(), lse.detach(), *torch.autograd.grad(total, inputs)

    def plain(kind: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.to(kind).requires_grad_() for x in (hidden, weight)]
        own = dict(options, weights=options["weights"].to(kind)) if "weights" in options else options
        loss, lse, _ = reference.linear_cross_entropy(inputs[0], inputs[1], target, **own, reduction=reduction)
        total = (loss * factor.to(kind)).sum() if reduction == "none" else loss
        return loss.detach(), lse.detach(), *torch.autograd.grad(total, inputs)

    truths, near = plain(torch.float64), plain(torch.float32)
    most_hidden, most_weight = (float(x.detach().double().abs().max()) for x in (hidden, weight))
    logit = 1.0 + width * most_hidden * most_weight
    factors = options.get("weights", torch.ones(tokens)) * (target != -100)
    heaviest = float(factors.sum()) if reduction == "sum" else max(float(factors.max()), 1.0)
    slope = (1.0 + 2.0 * options["z_loss"] * logit) * (float(factors.max()) if reduction != "mean" else 1.0)
    share, least = rounding(dtype)
    sums = 16 * EPS32 * logit
    sizes = (
        sums * heaviest * (1.0 + options["z_loss"] * logit),
        sums,
        share * slope * most_weight * 2,
        share * slope * most_hidden * tokens,
    )
    names = "loss", "lse", "d_hidden", "d_weight"
    return first_of(
        *(
            compare(n, f, t, 4.0 * (t - p.double()).abs().max() + size + least)
            for n, f, t, p, size in zip(names, found, truths, near, sizes, strict=True)
        )
    )


def run_loss(
    hidden: Tensor, weight: Tensor, target: Tensor, options: Options, reduction: str, factor: Tensor
) -> tuple[Tensor, ...]:
    """Loss, log-sum-exp and gradients of the kernels; of a loss for each token those of its sum with factors."""
    from emu_kernels.linear_cross_entropy.gpu import backward_triton, forward_triton

    blocks = {"BLOCK_ROWS": 32, "BLOCK_IDS": 128, "BLOCK_WIDTH": 32, "GROUP_ROWS": 2, "DESCRIPTORS": True}
    ranges = options.get("vocab_range")
    own = isinstance(ranges, Tensor)
    first, count = (0, len(weight)) if ranges is None or own else ranges
    softcap, z_loss, weights = options["softcap"] or 0.0, torch.tensor(options["z_loss"]), options.get("weights")
    numbers = first, count, ranges if own else None, softcap
    each = reduction == "none"
    loss, lse, _, d_hidden, d_weight, factor_of_both = forward_triton(
        hidden, weight, target, weights, *numbers, -100, z_loss, reduction, False, not each, not each, config=blocks
    )
    gradients = [d_hidden * factor_of_both, d_weight * factor_of_both]
    if each:
        kept = target != -100
        on_target = torch.where(kept, factor * (1.0 if weights is None else weights), 0.0)
        on_softmax = on_target * (1.0 + 2.0 * z_loss.float() * lse)
        gradients = list(
            backward_triton(hidden, weight, target, on_softmax, on_target, lse, *numbers, True, True, config=blocks)
        )
    return loss, lse, *gradients


CASES: dict[str, Callable[[Chance, bool], str | None]] = {
    "attention": attention_case,
    "decode_attention": decode_attention_case,
    "few_rows_linear": few_rows_linear,
    "linear_cross_entropy": linear_cross_entropy_case,
    "guided_sample": guided_sample_case,
    "nearest_code": nearest_code_case,
    "rms_norm": rms_norm,
    "rotary": rotary,
    "swiglu": swiglu,
}


def failures(op: str, first: int, count: int, kernels: bool) -> list[str]:
    """What is wrong with the cases of an op from number `first` on; the number says which case to run again."""
    found = []
    for number in range(first, first + count):
        problem = CASES[op](Chance(op, number), kernels)
        if problem is not None:
            found.append(f"{op} {number}: {problem}")
    return found
