"""The fused head and cross-entropy in plain torch over chunks of tokens: the CPU path, float32 and
float64 on a GPU, and devices without kernels.

A chunk of tokens goes over the slice of the vocabulary in blocks, which one thread keeps in its cache: logits, their exponentials
against the block's own maximum, and sums in one go. Once the log-sum-exp is known, a second pass scales each stored block to the
gradient of its logits and feeds it to the two other products while it is at hand.

Legend: T tokens, H features, V ids in the slice, C tokens of a chunk, P blocks of N ids.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from emu_kernels.checks import accumulation_dtype
from emu_kernels.linear_cross_entropy.groups import Group, keep_tokens, mean_scale, skipped_values, token_groups

BUFFER_BYTES = {"cpu": 256 * 2**20, "gpu": 384 * 2**20}  # of the stored blocks of a chunk
# One thread works in its cache. Several meet after every operation, which is dear when a core is busy elsewhere: large blocks.
CACHE_BYTES = 2 * 2**20
BLOCK_BYTES = {"cpu": 64 * 2**20, "gpu": 128 * 2**20}
CHUNK = {"cpu": 512, "gpu": 1024}
MIN_BLOCK = 256


class ChunkedHead:
    """The head's three products on one slice of the vocabulary; with `stored` the blocks of a chunk are kept for gradients."""

    def __init__(self, hidden: Tensor, weight: Tensor, group: Group, softcap: float, stored: bool) -> None:
        self.hidden = hidden
        self.weight = weight[group.first : group.first + group.count]  # (V, H)
        self.group = group
        self.softcap = softcap
        self.stored = stored
        self.dtype = accumulation_dtype(hidden.dtype)
        item_bytes = self.dtype.itemsize * (2 if softcap else 1)
        self.chunk, self.block = sizes(
            group.num_tokens, group.count, item_bytes, stored, "cpu" if hidden.device.type == "cpu" else "gpu"
        )
        self.num_blocks = -(-group.count // self.block)
        shape = (self.num_blocks if stored else 1, self.chunk, self.block)
        self.buffer = hidden.new_empty(shape, dtype=self.dtype)
        self.slopes = torch.empty_like(self.buffer) if softcap else None
        self.peaks = hidden.new_empty((self.chunk, self.num_blocks), dtype=self.dtype)

    def chunks(self) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Yield pairs (tokens of the chunk as an index, hidden states (C, H) in the accumulation dtype)."""
        for start in range(0, self.group.num_tokens, self.chunk):
            rows: slice | Tensor = slice(start, min(start + self.chunk, self.group.num_tokens))
            if self.group.index is not None:
                rows = self.group.index[rows]
            yield rows, self.group.states(self.hidden, rows).to(self.dtype)

    def _blocks(self, num_rows: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield (number, first id, weight (N, H), buffer (C, N)) of each block."""
        for number, start in enumerate(range(0, self.group.count, self.block)):
            weight = self.weight[start : start + self.block].to(self.dtype)
            yield number, start, weight, self.buffer[number if self.stored else 0, :num_rows, : len(weight)]

    def _slope(self, number: int, block: Tensor) -> Tensor | None:
        """Return where the soft cap's derivative for a block is kept, (C, N)."""
        if self.slopes is None:
            return None
        return self.slopes[number if self.stored else 0, : block.shape[0], : block.shape[1]]

    def _logits(self, hidden: Tensor, weight: Tensor, block: Tensor, slope: Tensor | None) -> None:
        """Write the soft-capped logits of a block, and the cap's derivative."""
        torch.mm(hidden, weight.t(), out=block)
        if slope is not None:
            torch.tanh(block.div_(self.softcap), out=block)
            torch.mul(block, block, out=slope).neg_().add_(1.0)
            block.mul_(self.softcap)

    def statistics(self, hidden: Tensor, target: Tensor, argmax: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Compute log-sum-exp, logit of the target within the slice, and the most likely id if `argmax`; (C,) each.

        Leaves exp(logit - maximum of the block) in the buffer, and the maxima in `peaks`.
        """
        num_rows = hidden.shape[0]
        peaks = self.peaks[:num_rows]
        totals = torch.empty_like(peaks)  # (C, P)
        picked = hidden.new_zeros(num_rows)
        best = target.new_zeros((num_rows, self.num_blocks if argmax else 0), dtype=torch.int64)
        for number, start, weight, block in self._blocks(num_rows):
            self._logits(hidden, weight, block, self._slope(number, block))
            inside, place = within(target, start, len(weight))
            picked = torch.where(inside, block.gather(1, place)[:, 0], picked)
            if argmax:
                best[:, number] = block.argmax(1) + start
            peak = block.amax(1)
            peaks[:, number] = peak
            totals[:, number] = block.sub_(peak[:, None]).exp_().sum(1)
        # Each block against its own maximum: that of the row is not known until the last block, and a block is in the cache once.
        lse = (peaks + totals.log_()).logsumexp(1)
        if argmax:
            best = best.gather(1, peaks.argmax(1, keepdim=True))  # the first of equal blocks has the lowest ids
        return lse, picked, best.flatten()

    def gradients(
        self,
        hidden: Tensor,
        target: Tensor | None,
        lse: Tensor,
        on_softmax: Tensor,
        on_target: Tensor | None,
        d_weight: Tensor | None,
        wants_hidden: bool,
    ) -> Tensor | None:
        """Add to `d_weight` (V, H) and return d hidden (C, H), of the stored blocks or of recomputed ones."""
        num_rows = hidden.shape[0]
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        for number, start, weight, block in self._blocks(num_rows):
            slope = self._slope(number, block)
            if self.stored:
                # exp(l - peak) * exp(peak - lse) = softmax; one factor per row and block, no second exp of the block.
                block.mul_((on_softmax * (self.peaks[:num_rows, number] - lse).exp())[:, None])
            else:
                self._logits(hidden, weight, block, slope)
                block.sub_(lse[:, None]).exp_().mul_(on_softmax[:, None])
            if target is not None and on_target is not None:
                inside, place = within(target, start, len(weight))
                block.scatter_add_(1, place, torch.where(inside, -on_target, 0.0)[:, None])
            if slope is not None:
                block.mul_(slope)
            if d_weight is not None:
                d_weight[start : start + len(weight)].addmm_(block.t(), hidden)
            if d_hidden is not None:
                d_hidden.addmm_(block, weight)
        return d_hidden


def within(target: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Tell whether each target (C,) lies in a block, and its column there, (C, 1), clamped to the block."""
    place = target - start
    return (place >= 0) & (place < count), place.clamp(0, count - 1)[:, None]


def sizes(num_tokens: int, count: int, item_bytes: int, stored: bool, device: str) -> tuple[int, int]:
    """Choose tokens per chunk and ids per block: a chunk's stored blocks fit BUFFER_BYTES, and one block fits the cache or BLOCK_BYTES."""
    chunk = CHUNK[device]
    if stored:
        chunk = min(chunk, max(BUFFER_BYTES[device] // (count * item_bytes), 1))
    chunk = min(chunk, num_tokens)
    block_bytes = CACHE_BYTES if device == "cpu" and torch.get_num_threads() == 1 else BLOCK_BYTES[device]
    block = max(block_bytes // (chunk * item_bytes), MIN_BLOCK)
    num_blocks = -(-count // block)
    return chunk, -(-count // num_blocks)


def forward_chunked(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    weights: Tensor | None,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    ignore_index: int,
    z_loss: Tensor,
    reduction: str,
    argmax: bool,
    grad_hidden: bool,
    grad_weight: bool,
    check: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `op.forward_op`."""
    dtype = accumulation_dtype(hidden.dtype)
    num_tokens = hidden.shape[0]
    weight = weight.to(hidden.dtype)
    losses = hidden.new_zeros(num_tokens, dtype=dtype)
    lse = hidden.new_zeros(num_tokens, dtype=dtype)
    best = target.new_full((num_tokens if argmax else 0,), -1, dtype=torch.int64)
    d_hidden = hidden.new_zeros(hidden.shape if grad_hidden else (0,), dtype=dtype)
    d_weight = hidden.new_zeros(weight.shape if grad_weight else (0,), dtype=dtype)
    kept, factors = keep_tokens(target, weights, ignore_index, dtype)
    scale = mean_scale(kept, weights, factors) if reduction == "mean" else 1.0
    own_weights = None if weights is None else factors
    for group in token_groups(target, kept, first, count, ranges, weight.shape[0], own_weights, check):
        head = ChunkedHead(hidden, weight, group, softcap, grad_hidden or grad_weight)
        part = d_weight[group.first : group.first + group.count] if grad_weight else None
        for rows, states in head.chunks():
            ids = target[rows].long() - group.first  # (C,)
            chunk_lse, picked, chunk_best = head.statistics(states, ids, argmax)
            if argmax:
                best[rows] = chunk_best + group.first
            on_target = factors[rows] * scale
            lse[rows] = chunk_lse
            losses[rows] = on_target * (chunk_lse - picked + z_loss * chunk_lse.square())
            if head.stored:
                on_softmax = on_target * (1.0 + 2.0 * z_loss * chunk_lse)
                gradient = head.gradients(states, ids, chunk_lse, on_softmax, on_target, part, grad_hidden)
                if gradient is not None:
                    d_hidden[rows] = gradient
    if not check:
        lse, best = skipped_values(kept, lse, best)
    loss = losses if reduction == "none" else losses.sum()
    return loss, lse, best, d_hidden, d_weight, loss.new_ones(())


def backward_chunked(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor | None,
    on_softmax: Tensor,
    on_target: Tensor | None,
    lse: Tensor,
    first: int,
    count: int,
    ranges: Tensor | None,
    softcap: float,
    grad_hidden: bool,
    grad_weight: bool,
    check: bool = True,
) -> tuple[Tensor, Tensor]:
    """See `op.backward_op`."""
    dtype = accumulation_dtype(hidden.dtype)
    weight_dtype, weight = weight.dtype, weight.to(hidden.dtype)
    d_hidden = hidden.new_zeros(hidden.shape if grad_hidden else (0,))
    d_weight = hidden.new_zeros(weight.shape if grad_weight else (0,), dtype=dtype)
    kept = on_softmax != 0
    if on_target is not None:
        kept = kept | (on_target != 0)
    for group in token_groups(None, kept, first, count, ranges, weight.shape[0], check=check):
        head = ChunkedHead(hidden, weight, group, softcap, stored=False)
        part = d_weight[group.first : group.first + group.count] if grad_weight else None
        for rows, states in head.chunks():
            ids = None if target is None else target[rows].long() - group.first
            factor = None if on_target is None else on_target[rows]
            gradient = head.gradients(states, ids, lse[rows], on_softmax[rows], factor, part, grad_hidden)
            if gradient is not None:
                d_hidden[rows] = gradient.to(d_hidden.dtype)
    return d_hidden, d_weight.to(weight_dtype)
