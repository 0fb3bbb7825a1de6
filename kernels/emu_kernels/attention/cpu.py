"""Attention in torch over tiles of queries, each against only the keys that it can see: the CPU path, float64 on a GPU, and
devices without kernels.

The queries of a row are cut into tiles of at most TILE positions along document boundaries where possible, so that packed rows of
short documents cost what the documents cost and memory stays linear in length; the forward takes a document of more than LONG positions as
one tile. Tiles run in torch's flash kernel on a CPU, or in plain products under a soft cap and on other devices. Short documents share
a tile; where the result is not finite it is computed again with a tile for each, since 0 * NaN would carry a NaN or infinity from one
document to its neighbours.

Legend: see `emu_kernels.attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emu_kernels.checks import accumulation_dtype

TILE = 96
# From here on the flash kernel walks over a document by itself faster: 1.10 times at 1,400 positions, 1.35 at 8,192. Its backward does not
# below 3,000, and sums up three times the error in the gradients of keys.
LONG = 1300
SHORT = 160  # rows up to here share one tile even when their documents differ
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class AttentionTile:
    """Queries `first..last` (exclusive) of some rows against keys `key_first..key_last`, all as positions of the row.

    Their documents are `spans`, the same in all rows; or rows with documents of their own carry `runs` (B, S), padding 0.
    """

    rows: slice
    first: int
    last: int
    key_first: int
    key_last: int
    spans: tuple[tuple[int, int], ...]
    runs: Tensor | None = None

    @property
    def square(self) -> bool:
        """Whether the keys are those of the queries."""
        return self.first == self.key_first and self.last == self.key_last

    @property
    def shared(self) -> bool:
        """Whether several documents, or documents and padding, are in it."""
        return len(self.spans) > 1 or self.runs is not None

    def covers(self, num_rows: int, length: int) -> bool:
        """Tell whether the tile is all there is."""
        return self.square and self.first == 0 and self.last == length and self.rows == slice(0, num_rows)


def attention_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `op.forward_op`."""
    documents = k.shape[0], k.shape[1], segment_ids, cu_seqlens, causal, window, _is_flash(q, softcap)
    options = offset, causal, window, softcap, scale
    q, k, v = (_side_by_side(x) for x in (q, k, v))
    tiles = cut_tiles(plan_tiles(*documents), offset, q.shape[1], causal)
    # Numbers are finite nearly always: share tiles first, and look afterwards.
    found = _forward(tiles, q, k, v, *options)
    if _all_finite(tiles, found):
        return found
    return _forward(cut_tiles(plan_tiles(*documents, alone=True), offset, q.shape[1], causal), q, k, v, *options)


def _is_flash(q: Tensor, softcap: float) -> bool:
    """Tell whether tiles run in torch's flash kernel, whose memory is linear in their length."""
    return not softcap and q.device.type == "cpu"


def _side_by_side(x: Tensor) -> Tensor:
    """Return x (B, S, H, D) with the features of a head side by side, without which torch's kernels in 16 bits fail."""
    return x if x.stride(3) == 1 else x.contiguous()


def _all_finite(tiles: list[AttentionTile], results: tuple[Tensor, ...]) -> bool:
    """Tell whether no document can have spoilt another one: none shares a tile, or all results are finite."""
    # One sum instead of a mask of all entries: it is finite only if they are.
    return not any(tile.shared for tile in tiles) or all(
        math.isfinite(x.sum(dtype=accumulation_dtype(x.dtype))) for x in results
    )


def _forward(
    tiles: list[AttentionTile],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offset: int,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute output and log-sum-exp of the tiles, zeros elsewhere."""
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=accumulation_dtype(q.dtype))
    for tile in tiles:
        rows, keys = tile.rows, slice(tile.key_first, tile.key_last)
        queries = slice(tile.first - offset, tile.last - offset)
        tile_q, tile_k, tile_v = (
            x[rows, part].transpose(1, 2) for x, part in ((q, queries), (k, keys), (v, keys))
        )  # (B, H, S, D)
        mask, is_causal = tile_mask(tile, causal, window, q)
        if not _is_flash(q, softcap):
            tile_out, tile_lse = _plain_forward(tile_q, tile_k, tile_v, mask, is_causal, softcap, scale)
        else:
            tile_out, tile_lse = _flash(tile_q, tile_k, tile_v, 0.0, is_causal, attn_mask=mask, scale=scale)
        if tile.covers(k.shape[0], k.shape[1]):
            return tile_out.transpose(1, 2).contiguous(), tile_lse.contiguous()
        out[rows, queries] = tile_out.transpose(1, 2)
        lse[rows, :, queries] = tile_lse
    return out, lse


def attention_backward_tiled(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.backward_op`."""
    documents = k.shape[0], k.shape[1], segment_ids, cu_seqlens, causal, window
    grad, q, k, v, out = (_side_by_side(x) for x in (grad, q, k, v, out))
    arguments = grad, q, k, v, out, lse, offset, causal, window, softcap, scale
    tiles = cut_tiles(plan_tiles(*documents), offset, q.shape[1], causal)
    found = _backward(tiles, *arguments)
    if _all_finite(tiles, found):
        return found
    return _backward(cut_tiles(plan_tiles(*documents, alone=True), offset, q.shape[1], causal), *arguments)


def _backward(
    tiles: list[AttentionTile],
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offset: int,
    causal: bool,
    window: int,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of the tiles, zeros elsewhere."""
    d_q = torch.zeros_like(q, memory_format=torch.contiguous_format)
    dtype = accumulation_dtype(q.dtype)
    # In the dtype of sums, since several tiles of queries add to one key.
    d_k, d_v = (torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in (k, v))
    for tile in tiles:
        rows, keys = tile.rows, slice(tile.key_first, tile.key_last)
        queries = slice(tile.first - offset, tile.last - offset)
        tile_grad, tile_q, tile_out = (x[rows, queries].transpose(1, 2) for x in (grad, q, out))  # (B, H, S, D)
        tile_k, tile_v = (x[rows, keys].transpose(1, 2) for x in (k, v))
        tile_lse = lse[rows, :, queries]
        mask, is_causal = tile_mask(tile, causal, window, q)
        tensors = tile_grad, tile_q, tile_k, tile_v, tile_out, tile_lse
        if not _is_flash(q, softcap):
            grads = _plain_backward(*tensors, mask, is_causal, softcap, scale)
        else:
            grads = _flash_backward(*tensors, 0.0, is_causal, attn_mask=mask, scale=scale)
        tile_d_q, tile_d_k, tile_d_v = (x.transpose(1, 2) for x in grads)
        if tile.covers(k.shape[0], k.shape[1]):
            return tile_d_q.contiguous(), tile_d_k.to(k.dtype).contiguous(), tile_d_v.to(v.dtype).contiguous()
        d_q[rows, queries] = tile_d_q
        if tile.square:  # the first tile to see its keys
            d_k[rows, keys], d_v[rows, keys] = tile_d_k, tile_d_v
        else:
            d_k[rows, keys] += tile_d_k
            d_v[rows, keys] += tile_d_v
    return d_q, d_k.to(k.dtype), d_v.to(v.dtype)


def plan_tiles(
    num_rows: int,
    length: int,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    causal: bool,
    window: int,
    flash: bool = False,
    alone: bool = False,
) -> list[AttentionTile]:
    """Plan tiles that cover every position of a document once; with `alone` none holds more than one document.

    With `flash` a long document may be one tile.
    """
    if num_rows == 0 or length == 0:
        return []
    if segment_ids is None:
        spans = [(0, length)] if cu_seqlens is None else _spans_of_offsets(cu_seqlens.tolist(), length)
        return _row_tiles(slice(0, num_rows), spans, causal, window, flash, alone)
    spans_of_rows = _spans_of_segments(segment_ids)
    if all(spans == spans_of_rows[0] for spans in spans_of_rows):
        return _row_tiles(slice(0, num_rows), spans_of_rows[0], causal, window, flash, alone)
    if length <= SHORT and not alone:
        return [AttentionTile(slice(0, num_rows), 0, length, 0, length, (), _runs(segment_ids))]
    tiles = []
    for row, spans in enumerate(spans_of_rows):
        tiles += _row_tiles(slice(row, row + 1), spans, causal, window, flash, alone)
    return tiles


def cut_tiles(tiles: list[AttentionTile], offset: int, num_queries: int, causal: bool) -> list[AttentionTile]:
    """Cut tiles of a row down to the queries that there are, `num_queries` from position `offset` on."""
    stop = offset + num_queries
    found = []
    for tile in tiles:
        first, last = max(tile.first, offset), min(tile.last, stop)
        if (first, last) == (tile.first, tile.last):
            found.append(tile)
            continue
        for start in range(first, last, TILE):  # not one for all, which would want a mask of its own
            end = min(start + TILE, last)
            key_last = min(tile.key_last, end) if causal else tile.key_last
            found.append(replace(tile, first=start, last=end, key_last=key_last))
    return found


def _spans_of_offsets(offsets: list[int], length: int) -> list[tuple[int, int]]:
    pairs = list(zip(offsets[:-1], offsets[1:], strict=True))
    if offsets[0] != 0 or offsets[-1] > length or any(first > last for first, last in pairs):
        raise ValueError(f"cu_seqlens must increase from 0 to at most {length}, got {offsets[:8]}... to {offsets[-1]}")
    return [(first, last) for first, last in pairs if first < last]


def _spans_of_segments(segment_ids: Tensor) -> list[list[tuple[int, int]]]:
    """Find (first, last) of each document of each row, padding left out."""
    num_rows, length = segment_ids.shape
    row, position = (segment_ids[:, 1:] != segment_ids[:, :-1]).nonzero(as_tuple=True)
    starts: list[list[int]] = [[0] for _ in range(num_rows)]
    for r, p in zip(row.tolist(), position.tolist(), strict=True):
        starts[r].append(p + 1)
    spans = []
    for r, first in enumerate(starts):
        ids = segment_ids[r, first].tolist()
        spans.append([(a, b) for a, b, i in zip(first, first[1:] + [length], ids, strict=True) if i != 0])
    return spans


def _runs(segment_ids: Tensor) -> Tensor:
    """Number the documents of each row, (B, S), 0 for padding."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    runs = torch.nn.functional.pad(changes.cumsum(1), (1, 0)) + 1
    return runs.masked_fill_(segment_ids == 0, 0).int()


def _row_tiles(
    rows: slice, spans: list[tuple[int, int]], causal: bool, window: int, flash: bool, alone: bool
) -> list[AttentionTile]:
    """Tile one row: neighbouring short documents share a tile unless `alone`, a long document is cut into several."""
    tiles = []
    waiting: list[tuple[int, int]] = []
    for first, last in [*spans, (-1, -1)]:  # the last pair follows on nothing and sends off those that wait
        if waiting and (alone or first != waiting[-1][1] or last - waiting[0][0] > TILE):
            tiles.append(
                AttentionTile(rows, waiting[0][0], waiting[-1][1], waiting[0][0], waiting[-1][1], tuple(waiting))
            )
            waiting = []
        if last - first <= TILE:
            waiting.append((first, last))
            continue
        whole = flash and last - first > LONG and not 0 < window < last - first
        step = last - first if whole else TILE
        for start in range(first, last, step):
            stop = min(start + step, last)
            key_first = max(first, start - window + 1) if window else first
            key_last = stop if causal else (min(last, stop + window - 1) if window else last)
            tiles.append(AttentionTile(rows, start, stop, key_first, key_last, ((first, last),)))
    return tiles


def tile_mask(tile: AttentionTile, causal: bool, window: int, like: Tensor) -> tuple[Tensor | None, bool]:
    """Return the additive mask (..., queries, keys) of a tile or None, and whether the kernel's own causal mask does."""
    length = tile.last - tile.first
    no_window = not window or window >= tile.key_last - tile.key_first
    if len(tile.spans) == 1 and no_window and (tile.square or not causal):
        return None, causal
    query = torch.arange(tile.first, tile.last, device=like.device)[:, None]
    key = torch.arange(tile.key_first, tile.key_last, device=like.device)[None]
    visible = key <= query if causal else (key == key).expand(length, -1)
    if not no_window:
        visible = visible & ((query - key).abs() < window)
    if tile.runs is not None:
        of_query, of_key = tile.runs[:, tile.first : tile.last], tile.runs[:, tile.key_first : tile.key_last]
        same = (of_query[:, :, None] == of_key[:, None]) & (of_key != 0)[:, None]
        visible = (visible & same)[:, None]  # (B, 1, queries, keys)
    elif len(tile.spans) > 1:
        lengths = torch.tensor([last - first for first, last in tile.spans], device=like.device)
        document = torch.repeat_interleave(torch.arange(len(lengths), device=like.device), lengths)
        begin = tile.spans[0][0]
        of_query = document[tile.first - begin : tile.last - begin]
        visible = visible & (of_query[:, None] == document[tile.key_first - begin : tile.key_last - begin])
    zero, hidden = like.new_tensor([0.0, -math.inf])
    return torch.where(visible, zero, hidden), False


def _plain_scores(
    q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, softcap: float, scale: float
) -> tuple[Tensor, Tensor | None]:
    """Compute the masked scores and the tanh of the soft cap in them, (B, Hkv, Hq / Hkv, Sq, Sk) each."""
    scores = q @ k.transpose(-1, -2) * scale
    tanh = None
    if softcap:
        tanh = torch.tanh(scores / softcap)
        scores = softcap * tanh
    if is_causal:
        hidden = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
        scores = scores.masked_fill_(hidden, -math.inf)
    elif mask is not None:
        scores += mask if mask.dim() == 2 else mask[:, None]
    return scores, tanh


def _by_group(x: Tensor, num_groups: int) -> Tensor:
    """Group heads, (B, H, S, D) -> (B, Hkv, H / Hkv, S, D), in the dtype that sums run in."""
    return x.unflatten(1, (num_groups, -1)).to(accumulation_dtype(x.dtype))


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, softcap: float, scale: float
) -> tuple[Tensor, Tensor]:
    grouped_q, grouped_k, grouped_v = (_by_group(x, k.shape[1]) for x in (q, k, v))
    scores, _ = _plain_scores(grouped_q, grouped_k, mask, is_causal, softcap, scale)
    lse = scores.logsumexp(-1).nan_to_num_(neginf=0.0)  # padding sees nothing
    out = scores.sub_(lse[..., None]).exp_() @ grouped_v
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def _plain_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    num_groups = k.shape[1]
    grad, q, out, k, v = (_by_group(x, num_groups) for x in (grad, q, out, k, v))
    scores, tanh = _plain_scores(q, k, mask, is_causal, softcap, scale)
    p = scores.sub_(lse.unflatten(1, (num_groups, -1))[..., None]).exp_()  # (B, Hkv, G, Sq, Sk)
    d_v = (p.transpose(-1, -2) @ grad).sum(2)
    d_p = grad @ v.transpose(-1, -2)
    d_scores = p * (d_p - (grad * out).sum(-1, keepdim=True)) * scale
    if tanh is not None:
        d_scores *= 1.0 - tanh.square()
    d_q = d_scores @ k
    d_k = (d_scores.transpose(-1, -2) @ q).sum(2)
    return d_q.flatten(1, 2), d_k, d_v
