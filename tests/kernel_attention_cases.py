"""Random cases of attention to rows and to a cache against float64: as close as float32 is, and some roundings of the largest term.

A function draws its case, runs it in Triton's interpreter where `kernels` is set, else on the CPU path, and returns what is wrong with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels import attention, decode_attention, reference
from tests.kernel_chance import Chance, Options, compare, draw_dtype, first_of, rounding

LENGTHS = (45, 45, 45, 45, 210)
"""The longest rows of attention on the CPU path; the last has several tiles."""


def draw_documents(chance: Chance, rows: int, length: int) -> Options:
    """Documents of any lengths, empty ones and padding among them, as numbers of segments or as offsets; or none."""
    form = chance.pick(("none", "segments", "segments", "offsets" if rows == 1 else "none"))
    if form == "segments":
        steps = chance.uniform(rows, length) < chance.pick((0.05, 0.2, 0.9))
        ids = steps.cumsum(1) % chance.pick((2, 3, 50))
        return {"segment_ids": chance.laid_out(ids)}
    if form == "offsets":
        stops = chance.integers(0, length + 1, chance.size(5)).sort().values
        return {"cu_seqlens": torch.cat([stops.new_zeros(1), stops]).int()}
    return {}


def draw_heads(chance: Chance, rows: int, length: int, queries: int, dtype: torch.dtype, most: int = 3) -> list[Tensor]:
    """q, k, v and grad, whose scores do not reach so far that float32 tells nothing."""
    groups, key_heads, width = chance.size(most), chance.size(most), chance.size(16)
    shapes = [(rows, n, h, width) for n, h in ((queries, groups * key_heads), (length, key_heads), (length, key_heads))]
    largest = chance.pick((3.0, 3.0, 12.0))
    found = [chance.numbers(shape, dtype, largest) for shape in shapes]
    return [*found, chance.numbers(shapes[0], dtype, 5.0)]


def attention_case(chance: Chance, kernels: bool) -> str | None:
    dtype = draw_dtype(chance, kernels)
    # The interpreter takes its time for each program.
    rows, length = (chance.size(2), chance.size(33)) if kernels else (chance.size(3), chance.size(chance.pick(LENGTHS)))
    options = draw_documents(chance, rows, length) | {"causal": chance.often(0.7)}
    if chance.often(0.4):
        options["window"] = chance.size(length + 3)
    first, queries = 0, length
    if chance.often(0.3):
        first = int(chance.number(0, length))
        queries = int(chance.number(0, length - first)) + 1
    q, k, v, grad = draw_heads(chance, rows, length, queries, dtype, 2 if kernels else 3)
    softcap, scale = chance.pick((0.0, 0.0, 2.0)), chance.pick((0.3, q.shape[3] ** -0.5))
    if kernels:
        found = run_attention(chance, (q, k, v, grad), options, softcap, scale, first)
    else:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attention(*inputs, **options, softcap=softcap or None, scale=scale, query_offset=first)
        found = out.detach(), *torch.autograd.grad(out, inputs, grad)
    mask = reference.visible(rows, length, **options)[:, first : first + queries]

    def plain(kind: torch.dtype) -> tuple[Tensor, ...]:
        inputs = [x.to(kind).requires_grad_() for x in (q, k, v)]
        out = reference.attention(inputs[0], inputs[1], inputs[2], mask, softcap or None, scale)
        return out.detach(), *torch.autograd.grad(out, inputs, grad.to(kind))

    truths, near = plain(torch.float64), plain(torch.float32)
    most_q, most_k, most_v, most_grad = (float(x.detach().double().abs().max()) for x in (q, k, v, grad))
    width, group = q.shape[3], q.shape[2] // k.shape[2]
    # The largest that one query sends to one key, and for keys the sum of all that send to it.
    slope = 2.0 * width * most_grad * most_v * scale
    seen = float(mask.sum(1).max()) * group
    sizes = most_v, slope * most_k, slope * most_q * seen, most_grad * seen
    share, least = rounding(dtype)
    share *= 1.0 + 0.02 * most_q * most_k * width * scale
    names = "out", "d_q", "d_k", "d_v"
    return first_of(
        *(
            compare(n, f, t, 4.0 * (t - p.double()).abs().max() + share * size + least)
            for n, f, t, p, size in zip(names, found, truths, near, sizes, strict=True)
        )
    )


def run_attention(
    chance: Chance, tensors: tuple[Tensor, ...], options: Options, softcap: float, scale: float, first: int
) -> tuple[Tensor, ...]:
    """Output and gradients of the kernels, in blocks of any sizes, by pointer or by descriptor."""
    from emu_kernels.attention.gpu import attention_triton
    from emu_kernels.attention.gpu_backward import attention_backward_triton

    q, k, v, grad = tensors
    half = q.dtype == torch.float16
    form = {"BLOCK_WIDTH": 16, "DESCRIPTORS": half and chance.often(0.5), "PRODUCT": None if half else "tf32x3"}
    blocks = [{"BLOCK_QUERIES": chance.pick((16, 32)), "BLOCK_KEYS": chance.pick((16, 32))} | form for _ in range(3)]
    documents = options.get("segment_ids"), options.get("cu_seqlens")
    arguments = *documents, options["causal"], options.get("window", 0), softcap, scale
    out, lse = attention_triton(q, k, v, *arguments, None, first, config=blocks[0])
    gradients = attention_backward_triton(
        grad, q, k, v, out, lse, *arguments, None, first, configs=(blocks[1], blocks[2])
    )
    return out, *gradients


def decode_attention_case(chance: Chance, kernels: bool) -> str | None:
    dtype = draw_dtype(chance, kernels)
    rows, capacity, queries = chance.size(4), chance.size(65), chance.pick((1, 1, 2, 5, 16))
    q, keys, values, _ = draw_heads(chance, rows, capacity, queries, dtype)
    end = chance.integers(min(queries, capacity), capacity + 1, rows)
    begin = (end * chance.uniform(rows)).long()
    scale = q.shape[3] ** -0.5
    cache = [chance.laid_out(x.transpose(1, 2)) for x in (keys, values)]
    if queries > capacity:
        return None
    if kernels:
        from emu_kernels.decode_attention.gpu import decode_attention_triton

        found = decode_attention_triton(q, cache[0], cache[1], begin, end, scale)
    else:
        found = decode_attention(q, cache[0], cache[1], begin, end)
    slots, own = torch.arange(capacity), end[:, None] - queries + torch.arange(queries)
    mask = (slots >= begin[:, None, None]) & (slots <= own[..., None])
    truth, near = (
        reference.attention(q.to(kind), keys.to(kind), values.to(kind), mask) for kind in (torch.float64, torch.float32)
    )
    most_q, most_k, most_v = (float(x.double().abs().max()) for x in (q, keys, values))
    share = rounding(dtype)[0] * (1.0 + 0.02 * most_q * most_k * q.shape[3] * scale)
    return compare("out", found, truth, 4.0 * (truth - near.double()).abs().max() + share * most_v + 1e-30)
