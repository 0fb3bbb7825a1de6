"""The fused head and cross-entropy in plain torch over chunks of tokens: the CPU path, and float32 and float64 on a GPU.

Legend: T tokens, H features, V ids in the slice, C tokens of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from emu_kernels.checks import accumulation_dtype

BUFFER_BYTES = {"cpu": 128 * 2**20, "cuda": 384 * 2**20}
CACHE_BYTES = {"cpu": 2**20, "cuda": 128 * 2**20}  # below this a larger chunk gains nothing
MIN_CHUNK = {"cpu": 256, "cuda": 1024}


@dataclass(frozen=True)
class Group:
    """Tokens that share one slice of the vocabulary; `index` None stands for all tokens in order."""

    index: Tensor | None
    num_tokens: int
    first: int
    count: int


class ChunkedHead:
    """The head's three products on one slice of the vocabulary, with the logits of a chunk of tokens in one buffer."""

    def __init__(self, hidden: Tensor, weight: Tensor, group: Group, softcap: float) -> None:
        self.hidden = hidden
        self.weight = weight[group.first : group.first + group.count]  # (V, H)
        self.group = group
        self.softcap = softcap
        self.dtype = accumulation_dtype(hidden.dtype)
        row_bytes = group.count * self.dtype.itemsize * (2 if softcap else 1)
        self.chunk = min(chunk_size(row_bytes, hidden.device.type), group.num_tokens)
        self.buffer = hidden.new_empty(self.chunk, group.count, dtype=self.dtype)
        self.tanh = torch.empty_like(self.buffer) if softcap else None
        num_blocks = (
            1
            if weight.dtype == self.dtype
            else -(-group.count * hidden.shape[1] * 4 // BUFFER_BYTES[hidden.device.type])
        )
        self.block = -(-group.count // num_blocks)

    def chunks(self) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Pairs (tokens of the chunk as an index, hidden states (C, H) in the accumulation dtype)."""
        for start in range(0, self.group.num_tokens, self.chunk):
            rows: slice | Tensor = slice(start, min(start + self.chunk, self.group.num_tokens))
            if self.group.index is not None:
                rows = self.group.index[rows]
            yield rows, self.hidden[rows].to(self.dtype)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self.group.count, self.block):
            ids = slice(start, min(start + self.block, self.group.count))
            yield ids, self.weight[ids].to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """(C, H) -> (C, V), a view of the buffer, soft-capped."""
        logits = self.buffer[: hidden.shape[0]]
        for ids, weight in self._blocks():
            torch.mm(hidden, weight.t(), out=logits[:, ids])
        if self.tanh is not None:
            torch.tanh(logits.div_(self.softcap), out=self.tanh[: hidden.shape[0]])
            torch.mul(self.tanh[: hidden.shape[0]], self.softcap, out=logits)
        return logits

    def gradients(self, d_logits: Tensor, hidden: Tensor, d_weight: Tensor | None, wants_hidden: bool) -> Tensor | None:
        """Add to `d_weight` (all ids, H) and return d hidden (C, H); `d_logits` (C, V) is overwritten."""
        if self.tanh is not None:
            d_logits.mul_(self.tanh[: hidden.shape[0]].square_().neg_().add_(1.0))
        if d_weight is not None:
            first = self.group.first
            d_weight[first : first + self.group.count].addmm_(d_logits.t(), hidden)
        if not wants_hidden:
            return None
        d_hidden = torch.zeros_like(hidden)
        for ids, weight in self._blocks():
            d_hidden.addmm_(d_logits[:, ids], weight)
        return d_hidden


def chunk_size(row_bytes: int, device: str) -> int:
    """Tokens per chunk: buffers in the cache when that leaves enough rows for a good product, else in BUFFER_BYTES."""
    rows = max(CACHE_BYTES[device] // row_bytes, MIN_CHUNK[device])
    return max(min(rows, BUFFER_BYTES[device] // row_bytes), 1)


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
    z_loss: float,
    reduction: str,
    argmax: bool,
    grad_hidden: bool,
    grad_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `linear_cross_entropy._forward_op`."""
    dtype = accumulation_dtype(hidden.dtype)
    num_tokens = hidden.shape[0]
    losses = hidden.new_zeros(num_tokens, dtype=dtype)
    lse = hidden.new_zeros(num_tokens, dtype=dtype)
    best = target.new_full((num_tokens if argmax else 0,), -1, dtype=torch.int64)
    d_hidden = hidden.new_zeros(hidden.shape if grad_hidden else (0,), dtype=dtype)
    d_weight = hidden.new_zeros(weight.shape if grad_weight else (0,), dtype=dtype)
    kept, factors = keep_tokens(target, weights, ignore_index, dtype)
    scale = 1.0
    if reduction == "mean":
        total = float(kept.sum() if weights is None else factors.sum())
        scale = 1.0 / total if total else 0.0
    for group in token_groups(target, kept, first, count, ranges, weight.shape[0]):
        head = ChunkedHead(hidden, weight, group, softcap)
        for rows, states in head.chunks():
            ids = (target[rows] - group.first).long()[:, None]  # (C, 1)
            logits = head.logits(states)
            if argmax:
                best[rows] = logits.argmax(1) + group.first
            on_target = factors[rows] * scale
            picked = logits.gather(1, ids)[:, 0]
            total_exp, chunk_lse = _softmax_numerator(logits)
            lse[rows] = chunk_lse
            losses[rows] = on_target * (chunk_lse - picked + z_loss * chunk_lse.square())
            if grad_hidden or grad_weight:
                logits.mul_((on_target * (1.0 + 2.0 * z_loss * chunk_lse) / total_exp)[:, None])
                logits.scatter_add_(1, ids, -on_target[:, None])
                gradient = head.gradients(logits, states, d_weight if grad_weight else None, grad_hidden)
                if gradient is not None:
                    d_hidden[rows] = gradient
    loss = losses if reduction == "none" else losses.sum()
    return loss, lse, best, d_hidden, d_weight


def _softmax_numerator(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite (C, V) logits by exp(logits - row maximum); returns the row sums and the log-sum-exp, (C,) each."""
    peak = logits.amax(1)
    logits.sub_(peak[:, None]).exp_()
    total = logits.sum(1)
    return total, peak + total.log()


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
) -> tuple[Tensor, Tensor]:
    """See `linear_cross_entropy._backward_op`."""
    dtype = accumulation_dtype(hidden.dtype)
    d_hidden = hidden.new_zeros(hidden.shape if grad_hidden else (0,))
    d_weight = hidden.new_zeros(weight.shape if grad_weight else (0,), dtype=dtype)
    kept = on_softmax != 0
    if on_target is not None:
        kept = kept | (on_target != 0)
    for group in token_groups(target, kept, first, count, ranges, weight.shape[0]):
        head = ChunkedHead(hidden, weight, group, softcap)
        for rows, states in head.chunks():
            logits = head.logits(states)
            logits.sub_(lse[rows, None]).exp_().mul_(on_softmax[rows, None])
            if target is not None and on_target is not None:
                logits.scatter_add_(1, (target[rows] - group.first).long()[:, None], -on_target[rows, None])
            gradient = head.gradients(logits, states, d_weight if grad_weight else None, grad_hidden)
            if gradient is not None:
                d_hidden[rows] = gradient.to(d_hidden.dtype)
    return d_hidden, d_weight.to(weight.dtype)


def keep_tokens(target: Tensor, weights: Tensor | None, ignore_index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Which tokens have a loss, (T,) bool, and the factor of each, (T,), zero where there is none."""
    kept = target != ignore_index
    if weights is None:
        return kept, kept.to(dtype)
    factors = torch.where(kept, weights.to(dtype), 0.0)
    if not bool(torch.isfinite(factors).all()) or bool((factors < 0).any()):
        raise ValueError("weights must be finite and not negative at tokens with a target")
    return kept & (factors != 0), factors


def token_groups(
    target: Tensor | None, kept: Tensor, first: int, count: int, ranges: Tensor | None, vocab_size: int
) -> list[Group]:
    """Tokens with a loss by their slice of the vocabulary; raises when a kept target lies outside of its slice."""
    index = kept.nonzero()[:, 0]
    num_tokens = index.shape[0]
    if num_tokens == 0:
        return []
    if ranges is None:
        groups = [Group(None if num_tokens == kept.shape[0] else index, num_tokens, first, count)]
    else:
        slices, inverse = torch.unique(ranges[index], dim=0, return_inverse=True)
        members = [index[inverse == number] for number in range(len(slices))]
        groups = [Group(m, len(m), f, c) for m, (f, c) in zip(members, slices.tolist(), strict=True)]
    for group in groups:
        _check_group(group, target, vocab_size)
    return groups


def _check_group(group: Group, target: Tensor | None, vocab_size: int) -> None:
    last = group.first + group.count - 1
    if group.first < 0 or group.count < 1 or last >= vocab_size:
        found = (group.first, group.count)
        raise ValueError(f"vocab_range (first, number) = {found} does not lie in a vocabulary of {vocab_size} ids")
    if target is None:
        return
    ids = target if group.index is None else target[group.index]
    low, high = (int(bound) for bound in ids.aminmax())
    if low < group.first or high > last:
        raise ValueError(f"target must lie in {group.first}..{last}, got ids from {low} to {high}")
