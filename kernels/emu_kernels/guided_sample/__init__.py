"""Guidance, temperature, top-k, top-p and one draw per row, in one op with reproducible noise.

The draw is an exponential race: candidate i with probability p[i] arrives at time E[i] / p[i], E[i] exponential, and the first
to arrive is the sample; its distribution is exactly p. E is keyed by (seed, stream, position, draw) and the candidate's
offset (Philox, in `cpu.py`), so a row draws the same token in every batch. Guidance mixes logits as in arXiv 2207.12598, with three
rows as in arXiv 2211.09800.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import FLOATS, check_like, check_not_empty, check_shape, check_tensor
from emu_kernels.guided_sample.op import sample_op


def guided_sample(
    logits: Tensor,
    scale: float | tuple[float, float] = 1.0,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Tensor,
    stream: Tensor,
    position: Tensor,
    draw: int = 0,
) -> Tensor:
    """Draw one candidate per row from guided logits; no gradient, no host sync on a GPU.

    In this order: mix the guidance rows, divide by the temperature, keep the `top_k` largest, keep the smallest set of most
    likely candidates whose mass reaches `top_p`, draw. Candidates that tie with the last one kept are kept. A logit of -inf
    (or a mix that is not a number, -inf minus -inf) is never drawn.

    Args:
        logits: (R, B, K), K candidates. Row 0 is conditional. With R = 2 row 1 is unconditional and the mix is u + s (c - u). With
            R = 3, for edits of a picture, row 2 keeps part of the condition (the picture, without the instruction) and the mix is
            u + s2 (part - u) + s (c - part) for `scale` (s, s2).
        scale: s, or (s, s2) with three rows; a plain number stands for (s, 1.0) there. Ignored when R = 1.
        temperature: 0 takes the most likely candidate, the lowest offset on ties.
        top_k: None, 0 or at least K keep all.
        top_p: None or 1.0 keep all.
        seed: (B,) int64, all bits count.
        stream: (B,) int64, which of the sequences that share a seed; the low 32 bits count.
        position: (B,) int64, place of the token in its sequence; the low 32 bits count.
        draw: number of the draw when one position needs several, below 2**31.

    Returns:
        (B,) int64, offsets of the candidates drawn.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: a dtype is not supported.
    """
    _check_tensors(logits, seed, stream, position)
    scale, part_scale = _scale_pair(scale)
    top_k = top_k or 0
    top_p = 1.0 if top_p is None else float(top_p)
    _check_numbers(temperature, top_k, top_p, draw)
    top_k = top_k if top_k < logits.shape[2] else 0
    numbers = float(scale), float(part_scale), float(temperature), top_k, top_p
    return sample_op(logits, *numbers, seed, stream, position, draw)


def _check_tensors(logits: Tensor, seed: Tensor, stream: Tensor, position: Tensor) -> None:
    check_tensor("logits", logits, "(R, B, K)", 3, FLOATS)
    check_not_empty("logits", logits, 2, "candidates")
    num_guides, num_rows, _ = logits.shape
    if num_guides not in (1, 2, 3):
        raise ValueError(f"logits must have 1, 2 or 3 guidance rows (R, B, K), got {num_guides}")
    for name, value in (("seed", seed), ("stream", stream), ("position", position)):
        check_tensor(name, value, "(B,)", 1, (torch.int64,))
        check_shape(name, value, (num_rows,), "the rows of logits")
        check_like(name, value, "logits", logits)


def _check_numbers(temperature: float, top_k: int, top_p: float, draw: int) -> None:
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number of at least 0, got {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0 (0 or None keep all), got {top_k}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if not 0 <= draw < 2**31:
        raise ValueError(f"draw must lie in 0..2**31 - 1, got {draw}")


def _scale_pair(scale: float | tuple[float, float]) -> tuple[float, float]:
    pair = (scale, 1.0) if isinstance(scale, (int, float)) else scale
    if not (isinstance(pair, (tuple, list)) and all(isinstance(value, (int, float)) for value in pair)):
        raise TypeError(f"scale must be a number or a pair of numbers, got {scale!r}")
    if len(pair) != 2 or not all(abs(value) < float("inf") for value in pair):
        raise ValueError(f"scale must be a finite number or a pair of them, got {scale!r}")
    return pair[0], pair[1]
