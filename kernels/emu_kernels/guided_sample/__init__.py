"""Guidance, temperature, top-k, top-p and one draw per row, in one op with reproducible noise.

The draw is an exponential race: candidate i with probability p[i] arrives at time E[i] / p[i], E[i] exponential, and the first
to arrive is the sample; its distribution is exactly p. E is keyed by (seed, stream, position, draw) and the candidate's
offset (`philox.py`), so a row draws the same token in every batch. Guidance mixes logits as in arXiv 2207.12598, with three
rows as in arXiv 2211.09800.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emu_kernels.checks import FLOATS, check_like, check_not_empty, check_shape, check_tensor
from emu_kernels.dispatch import triton_or_torch
from emu_kernels.philox import philox

ROW_GROUP = 2**17
MANY, SPARSE = 2**14, 8
"""From so many candidates on, of which top-k keeps one in so many, noise is made for those alone."""


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
            R = 3 row 2 keeps part of the condition (the image, without the text) and the mix is
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
    return _sample_op(logits, *numbers, seed, stream, position, draw)


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


# A decode step calls this op once; a plain definition costs half as much per call as torch.library.custom_op.
torch.library.define(
    "emu_kernels::guided_sample",
    "(Tensor logits, float scale, float part_scale, float temperature, int top_k, float top_p, "
    "Tensor seed, Tensor stream, Tensor position, int draw) -> Tensor",
)
_sample_op = torch.ops.emu_kernels.guided_sample.default


def _sample_torch(
    logits: Tensor,
    scale: float,
    part_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: Tensor,
    stream: Tensor,
    position: Tensor,
    draw: int,
) -> Tensor:
    """Offsets (B,), computed on the CPU; `top_k` 0 keeps all candidates."""
    num_rows, num_candidates = logits.shape[1:]
    seeds, streams, positions = (x.numpy(force=True) for x in (seed, stream, position))
    result = np.empty(num_rows, dtype=np.int64)
    step = max(ROW_GROUP // num_candidates, 1)
    for first in range(0, num_rows, step):
        rows = slice(first, first + step)
        scores = _mix(logits[:, rows], scale, part_scale)
        if temperature == 0.0:
            result[rows] = scores.argmax(1)
            continue
        probabilities = _filtered(scores, temperature, top_k, top_p)
        if MANY <= num_candidates >= SPARSE * top_k > 0:
            for row in range(rows.start, min(rows.stop, num_rows)):
                key = seeds[row : row + 1], streams[row : row + 1], positions[row : row + 1], draw
                result[row] = _draw_among_few(probabilities[row - first], *key)
            continue
        noise = exponential_noise(seeds[rows], streams[rows], positions[rows], draw, num_candidates).astype(
            scores.dtype
        )
        result[rows] = np.divide(probabilities, noise, out=probabilities).argmax(1)
    return torch.from_numpy(result).to(logits.device)


# On every device that has no implementation of its own.
torch.library.impl("emu_kernels::guided_sample", "CompositeExplicitAutograd", _sample_torch)


def _sample_cuda(*arguments: Any) -> Tensor:
    return triton_or_torch("guided_sample", arguments[0], _sample_kernels, _sample_torch, *arguments)


def _sample_kernels(*arguments: Any) -> Tensor:
    from emu_kernels.guided_sample.gpu import guided_sample_triton

    return guided_sample_triton(*arguments)


torch.library.impl("emu_kernels::guided_sample", "cuda", _sample_cuda)


@torch.library.register_fake("emu_kernels::guided_sample")
def _sample_fake(
    logits: Tensor,
    scale: float,
    part_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: Tensor,
    stream: Tensor,
    position: Tensor,
    draw: int,
) -> Tensor:
    return logits.new_empty(logits.shape[1], dtype=torch.int64)


def _draw_among_few(
    probabilities: NDArray,
    seed: NDArray[np.int64],
    stream: NDArray[np.int64],
    position: NDArray[np.int64],
    draw: int,
) -> int:
    """The winner of one row (K,); noise is made for the candidates that are left alone, each its own as in `exponential_noise`."""
    kept = np.flatnonzero(probabilities > 0)
    if not len(kept):
        return 0
    blocks = kept >> 2
    first = np.empty(len(blocks), dtype=bool)  # of the candidates of its block
    first[0] = True
    np.not_equal(blocks[1:], blocks[:-1], out=first[1:])
    words = philox(seed, (position, stream, draw), blocks[first])[:, 0]  # (4, blocks)
    noise = to_exponential(words[kept & 3, first.cumsum() - 1]).astype(probabilities.dtype)
    return int(kept[np.divide(probabilities[kept], noise).argmax()])


def _mix(logits: Tensor, scale: float, part_scale: float) -> NDArray:
    """(R, B, K) -> guided logits (B, K), a fresh array of float32 or float64."""
    rows = (logits if logits.dtype == torch.float64 else logits.float()).numpy(force=True)
    if rows.shape[0] == 1:
        return np.where(np.isnan(rows[0]), -np.inf, rows[0])
    with np.errstate(invalid="ignore"):
        if rows.shape[0] == 2:
            mixed = rows[1] + scale * (rows[0] - rows[1])
        else:
            mixed = rows[1] + part_scale * (rows[2] - rows[1]) + scale * (rows[0] - rows[2])
    mixed[np.isnan(mixed)] = -np.inf
    return mixed


def _filtered(scores: NDArray, temperature: float, top_k: int, top_p: float) -> NDArray:
    """Unnormalised probabilities (B, K) after temperature, top-k and top-p, 1 for the most likely; overwrites scores."""
    peak = scores.max(1, keepdims=True)
    np.subtract(scores, np.where(np.isfinite(peak), peak, 0.0), out=scores)
    np.multiply(scores, 1.0 / temperature, out=scores)
    if top_k:
        place = scores.shape[1] - top_k
        scores[scores < np.partition(scores, place, axis=1)[:, place, None]] = -np.inf
    probabilities = np.exp(scores, out=scores)
    if top_p < 1.0:
        ranked = -np.sort(-probabilities, axis=1)
        mass = ranked.cumsum(1)
        num_kept = (mass - ranked < top_p * mass[:, -1:]).sum(1, keepdims=True)
        probabilities[probabilities < np.take_along_axis(ranked, num_kept - 1, axis=1)] = 0.0
    return probabilities


def exponential_noise(
    seed: NDArray[np.int64],
    stream: NDArray[np.int64],
    position: NDArray[np.int64],
    draw: int,
    num_candidates: int,
) -> NDArray[np.float32]:
    """Standard exponential numbers (B, num_candidates); candidate i takes word i % 4 of the counter i // 4."""
    words = philox(seed, (position, stream, draw), -(-num_candidates // 4))  # (4, B, blocks)
    return to_exponential(words.transpose(1, 2, 0).reshape(seed.shape[0], -1)[:, :num_candidates])


def to_exponential(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """-log1p(-u) with u = (word + 1/2) / 2**32: full relative precision near zero, where the winners are, and never zero.

    u rounds up to 1 once in 2**25 words: infinity, which never wins.
    """
    uniform = words.astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(-(2.0**-32))
    with np.errstate(divide="ignore"):
        np.log1p(uniform, out=uniform)
    return np.negative(uniform, out=uniform)
