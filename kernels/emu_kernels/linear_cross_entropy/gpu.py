# mypy: allow-incomplete-defs, allow-untyped-defs
"""Triton implementation of the fused head and cross-entropy for 16-bit inputs on a GPU.

Per chunk of tokens: one Triton product whose epilogue turns the float32 logits of a tile into exp(logit - tile maximum), stored
in float16 (11 bits instead of the 8 of bfloat16, and half of float32's traffic), with the tile's maximum and sum beside it. The
log-sum-exp follows from the partial results, and the logit of the target from one row of the weight; a second kernel scales the
buffer to the gradient of the logits in place; two cuBLAS products make the gradients. The tile-wise exponentials are the idea
of QuACK's scaled-exp linear cross-entropy. The buffer's row stride is a multiple of the tile, since the size of a vocabulary
(184,622 in Emu3) is not aligned, and the products go over a multiple of 8 ids, then over what is left: cuBLAS takes twice the time for
184,622 as for 184,624. Everything is deterministic. The host waits once at the start of a call, to check targets and weights
and to learn how many tokens are kept, or never (`groups.py`).

Legend: T tokens, H features, V ids in the slice, C tokens of a chunk, P tiles of BLOCK_IDS ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from emu_kernels.configurations import configuration
from emu_kernels.configurations import loss as loss_blocks
from emu_kernels.dispatch import HALVES, launch
from emu_kernels.linear_cross_entropy.cpu import backward_chunked, forward_chunked
from emu_kernels.linear_cross_entropy.gpu_kernels import logits_kernel, scale_kernel, target_kernel
from emu_kernels.linear_cross_entropy.groups import Group, keep_tokens, mean_scale, skipped_values, token_groups
from emu_kernels.linear_cross_entropy.scaling import amplifier_of, scaled, z_loss_bound

SCRATCH_BYTES = 448 * 2**20  # of a chunk of tokens: what a call holds beside its inputs and results, or
SCRATCH_SHARE = 0.3  # of d weight where that is more
SCALE_TILES = 8
EVEN_IDS = 8  # 16 bytes, without which cuBLAS takes kernels that load number by number


@dataclass(frozen=True)
class ChunkResult:
    """Per token of a chunk, float32: log-sum-exp, logit of the target, most likely id within the slice (or None)."""

    lse: Tensor
    picked: Tensor
    best: Tensor | None


class TritonHead:
    """The products of the head on one slice of the vocabulary, over chunks of tokens that share one buffer."""

    def __init__(
        self,
        weight: Tensor,
        group: Group,
        softcap: float,
        store: bool,
        config: dict[str, Any],
        scratch_bytes: int,
    ) -> None:
        self.weight = weight[group.first : group.first + group.count]  # (V, H)
        self.count, self.softcap, self.config = group.count, softcap, config
        self.num_tiles = triton.cdiv(group.count, config["BLOCK_IDS"])
        self.stride = self.num_tiles * config["BLOCK_IDS"]  # whole tiles, so that rows stay aligned for any vocabulary
        # Of a token: exponentials in 16 bits, about six numbers a tile on the way to the log-sum-exp, its state and d hidden.
        row_bytes = 2 * self.stride + 24 * self.num_tiles + 6 * weight.shape[1]
        fitting = scratch_bytes // row_bytes // config["BLOCK_ROWS"] * config["BLOCK_ROWS"]
        fitting = max(fitting, config["BLOCK_ROWS"])
        # Chunks of equal size: a short last one would still read and write all of d weight.
        share = triton.cdiv(group.num_tokens, triton.cdiv(group.num_tokens, fitting))
        self.chunk = min(triton.cdiv(share, config["BLOCK_ROWS"]) * config["BLOCK_ROWS"], group.num_tokens)
        rows = self.chunk if store else 0
        self.buffer = weight.new_empty(rows, self.stride, dtype=torch.float16)
        self.store = store

    def _source(self, x: Tensor, rows: str) -> Tensor | TensorDescriptor:
        """Return what the kernel loads tiles of x (rows, H) from."""
        block = [self.config[rows], self.config["BLOCK_WIDTH"]]
        return TensorDescriptor.from_tensor(x, block) if self.config["DESCRIPTORS"] else x

    def logits(self, hidden: Tensor, target: Tensor, argmax: bool) -> ChunkResult:
        """Reduce the logits of hidden (C, H), with target (C,) in the slice or elsewhere; leave the tiles' exponentials in the buffer."""
        num_rows, width = hidden.shape
        partial = (num_rows, self.num_tiles)
        self.peak = hidden.new_empty(partial, dtype=torch.float32)
        total = torch.empty_like(self.peak)
        best = torch.empty(partial if argmax else (0,), dtype=torch.int32, device=hidden.device)
        self.target = target
        self.picked = hidden.new_empty(num_rows, dtype=torch.float32)
        launch(
            target_kernel, (num_rows,), hidden, hidden, self.weight, target, self.picked, self.count, width, self.softcap,
            SOFTCAP=self.softcap > 0, BLOCK_WIDTH=min(triton.next_power_of_2(width), 2048),
        )  # fmt: skip
        grid = (triton.cdiv(num_rows, self.config["BLOCK_ROWS"]) * self.num_tiles,)
        launch(
            logits_kernel, grid, hidden, self._source(hidden, "BLOCK_ROWS"), self._source(self.weight, "BLOCK_IDS"),
            self.buffer, self.peak, total, best, num_rows, self.count, width, self.stride, self.num_tiles, self.softcap,
            SOFTCAP=self.softcap > 0, STORE=self.store, ARGMAX=argmax, **self.config,
        )  # fmt: skip
        lse = torch.logsumexp(self.peak + total.log(), dim=1)  # of P tiles per token, too few for a kernel of their own
        if not argmax:
            return ChunkResult(lse, self.picked, None)
        tile = self.peak.argmax(1, keepdim=True)  # the first of equal tiles has the lowest ids
        return ChunkResult(lse, self.picked, best.gather(1, tile)[:, 0].long())

    def gradients(
        self,
        hidden: Tensor,
        lse: Tensor,
        on_softmax: Tensor,
        on_target: Tensor,
        d_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        """Write `d_weight` (V, H) float32, or add to it, for the chunk that `logits` saw last; return the logits' gradient (C, V)."""
        num_rows = hidden.shape[0]
        gradient = self.buffer.view(hidden.dtype)  # over the exponentials, which are not needed again
        launch(
            scale_kernel, (num_rows, triton.cdiv(self.num_tiles, SCALE_TILES)), hidden, self.buffer,
            gradient, self.peak, lse, on_softmax, on_target, self.picked, self.target, self.stride, self.num_tiles,
            self.softcap, SOFTCAP=self.softcap > 0, NUM_TILES=SCALE_TILES, BLOCK_IDS=self.config["BLOCK_IDS"], num_warps=4,
        )  # fmt: skip
        d_logits = gradient[:num_rows, : self.count]  # (C, V)
        if d_weight is not None:
            for ids in _even_parts(self.count):
                _write_product(d_weight[ids], d_logits[:, ids].t(), hidden, add)
        return d_logits

    def on_hidden(self, d_logits: Tensor) -> Tensor:
        """Return d hidden (C, H) float32 of the logits' gradient (C, V)."""
        total = d_logits.new_empty(len(d_logits), self.weight.shape[1], dtype=torch.float32)
        for ids in _even_parts(self.count):
            _write_product(total, d_logits[:, ids], self.weight[ids], ids.start > 0)
        return total


def _even_parts(count: int) -> list[slice]:
    """Split ids into as many as are a multiple of EVEN_IDS and the rest."""
    even = count - count % EVEN_IDS
    return [part for part in (slice(0, even), slice(even, count)) if part.start < part.stop]


def _write_product(total: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
    """Write total = left @ right, or total += left @ right; total in float32 and the factors in 16 bits."""
    if not left.is_cuda:
        total.addmm_(left.float(), right.float(), beta=float(add))
    elif add:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        torch.mm(left, right, out_dtype=torch.float32, out=total)


def loss_scratch(weight: Tensor, grad_weight: bool) -> int:
    """Return the bytes that a chunk of tokens may take for a head of weight (V, H).

    Each chunk reads and writes all of d weight, so that the chunks of a large head are larger: on an H200 8,192 tokens take 55 ms in four
    chunks and 61 in eight at V = 184,622 and H = 4096. In 16 bits no call holds more for it: d weight is rounded when the chunk is gone.
    """
    return max(SCRATCH_BYTES, int(SCRATCH_SHARE * 4 * weight.numel()) if grad_weight else 0)


def _empty_gradient(weight: Tensor, groups: list[Group]) -> Tensor:
    """Allocate d weight in float32, zero where no group writes or several add."""
    d_weight = weight.new_empty(weight.shape, dtype=torch.float32)
    # Not zeros throughout: to fill them and read them again costs as much as writing the product's output.
    if len(groups) == 1:
        d_weight[: groups[0].first].zero_()
        d_weight[groups[0].first + groups[0].count :].zero_()
        return d_weight
    return d_weight.zero_()


def aligned(x: Tensor) -> Tensor:
    """Return x in rows without gaps, from an address that a tensor descriptor takes."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def even_width(x: Tensor) -> Tensor:
    """Return x (rows, H) with features of zeros up to a multiple of 8: a tensor descriptor and the tensor cores want whole 16 bytes."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % 8)) if x.shape[1] % 8 else x


def narrow(x: Tensor, width: int) -> Tensor:
    """Return the first features of x (rows, H), or an empty x, without gaps."""
    return x[..., :width].contiguous()


def forward_triton(
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
    config: dict[str, Any] | None = None,
    scratch_bytes: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `op.forward_op`."""
    if hidden.dtype not in HALVES:
        return forward_chunked(
            hidden, weight, target, weights, first, count, ranges, softcap, ignore_index, z_loss, reduction, argmax,
            grad_hidden, grad_weight, check,
        )  # fmt: skip
    width = hidden.shape[1]
    hidden, weight = aligned(even_width(hidden)), aligned(even_width(weight.to(hidden.dtype)))
    num_tokens = hidden.shape[0]
    # Zeros, since tokens that are skipped belong to no group and nothing writes them.
    losses, lse = (hidden.new_zeros(num_tokens, dtype=torch.float32) for _ in range(2))
    best = target.new_full((num_tokens if argmax else 0,), -1, dtype=torch.int64)
    d_hidden = hidden.new_zeros(hidden.shape if grad_hidden else (0,), dtype=torch.float32)
    kept, factors = keep_tokens(target, weights, ignore_index, torch.float32)
    scale = mean_scale(kept, weights, factors) if reduction == "mean" else factors.new_ones(())
    with_gradients = grad_hidden or grad_weight
    amplifier = amplifier_of(factors * scale, hidden.dtype)
    if hidden.dtype == torch.float16 and z_loss:
        amplifier /= z_loss_bound(hidden, weight, kept, softcap, z_loss)
    own_weights = None if weights is None else factors
    groups = token_groups(target, kept, first, count, ranges, weight.shape[0], own_weights, check)
    scratch_bytes = scratch_bytes or loss_scratch(weight, grad_weight)
    d_weight = _empty_gradient(weight, groups) if grad_weight else weight.new_empty(0, dtype=torch.float32)
    for group in groups:
        head = TritonHead(
            weight, group, softcap, with_gradients, config or configuration(loss_blocks, hidden.device), scratch_bytes
        )
        for number, rows in enumerate(chunk_rows(group, head.chunk)):
            add = number > 0 or len(groups) > 1
            states = group.states(hidden, rows)
            result = head.logits(states, target[rows].long() - group.first, argmax)
            if result.best is not None:
                best[rows] = result.best + group.first
            on_target = factors[rows] * scale
            lse[rows] = result.lse
            losses[rows] = on_target * (result.lse - result.picked + z_loss * result.lse.square())
            if with_gradients:
                on_target = on_target * amplifier
                on_softmax = on_target * (1.0 + 2.0 * z_loss * result.lse)
                part = d_weight[group.first : group.first + group.count] if grad_weight else None
                d_logits = head.gradients(states, result.lse, on_softmax, on_target, part, add)
                if grad_hidden:
                    d_hidden[rows] = head.on_hidden(d_logits)
    if not check:
        lse, best = skipped_values(kept, lse, best)
    loss = losses if reduction == "none" else losses.sum()
    return loss, lse, best, narrow(d_hidden, width), narrow(d_weight, width), amplifier.reciprocal()


def backward_triton(
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
    config: dict[str, Any] | None = None,
    scratch_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `op.backward_op`."""
    if hidden.dtype not in HALVES:
        return backward_chunked(
            hidden, weight, target, on_softmax, on_target, lse, first, count, ranges, softcap, grad_hidden, grad_weight, check
        )  # fmt: skip
    width, weight_dtype = hidden.shape[1], weight.dtype
    hidden, weight = aligned(even_width(hidden)), aligned(even_width(weight.to(hidden.dtype)))
    d_hidden = hidden.new_zeros(hidden.shape if grad_hidden else (0,), dtype=torch.float32)
    kept = on_softmax != 0 if on_target is None else (on_softmax != 0) | (on_target != 0)
    on_target = torch.zeros_like(on_softmax) if on_target is None else on_target
    amplifier = amplifier_of(torch.maximum(on_softmax.abs(), on_target.abs()), hidden.dtype)
    on_softmax, on_target = on_softmax * amplifier, on_target * amplifier
    groups = token_groups(None, kept, first, count, ranges, weight.shape[0], check=check)
    scratch_bytes = scratch_bytes or loss_scratch(weight, grad_weight)
    d_weight = _empty_gradient(weight, groups) if grad_weight else weight.new_empty(0, dtype=torch.float32)
    for group in groups:
        head = TritonHead(
            weight, group, softcap, True, config or configuration(loss_blocks, hidden.device), scratch_bytes
        )
        for number, rows in enumerate(chunk_rows(group, head.chunk)):
            add = number > 0 or len(groups) > 1
            states = group.states(hidden, rows)
            ids = (
                lse.new_full((len(states),), -1, dtype=torch.int64)
                if target is None
                else target[rows].long() - group.first
            )
            head.logits(states, ids, argmax=False)
            part = d_weight[group.first : group.first + group.count] if grad_weight else None
            d_logits = head.gradients(states, lse[rows], on_softmax[rows], on_target[rows], part, add)
            if grad_hidden:
                d_hidden[rows] = head.on_hidden(d_logits)
    unit = amplifier.reciprocal()
    return scaled(narrow(d_hidden, width), unit, hidden.dtype), scaled(narrow(d_weight, width), unit, weight_dtype)


def chunk_rows(group: Group, chunk: int) -> list[slice | Tensor]:
    """Return the indices of the chunks' tokens."""
    slices = [slice(start, min(start + chunk, group.num_tokens)) for start in range(0, group.num_tokens, chunk)]
    return list(slices) if group.index is None else [group.index[rows] for rows in slices]
