"""How the queries of rows are cut into tiles, each against only the keys that it can see, and what of a tile is masked.

Tiles have at most TILE positions and end with documents where possible, so that packed rows of short documents cost what the documents
cost and memory stays linear in length; where torch's flash kernel computes the forward, a document of more than LONG positions is one
tile. Legend: see `emu_kernels.attention`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TILE = 96
# From here on the flash kernel walks over a document by itself faster: 1.10 times at 1,400 positions, 1.35 at 8,192. Its backward does not
# below 3,000, and sums up three times the error in the gradients of keys.
LONG = 1300
SHORT = 160  # rows up to here share one tile even when their documents differ


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
