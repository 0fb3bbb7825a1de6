"""Documents that are longer than a row: left out, or cut into pieces at the borders of their segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from emu.data.shards.shard import Shard

LONG_DOCUMENTS = ("refuse", "drop", "cut")
"""What can be done about documents that are longer than a row."""


class Pieces(NamedTuple):
    """What is read of a shard in place of its documents.

    Attributes:
        rows: (n, 6) int64 in the order of the documents: number of the document, tokens of its beginning that are repeated (BOS), first
            and last + 1 of its tokens that follow, and what may be left out of the piece: first token and number of tokens.
        long: documents that are longer than a row.
        left_out: of these, those nothing of which is kept.
        blocks_left_out: blocks of codes that are longer than a row, left out of documents that are cut.
    """

    rows: np.ndarray
    long: int
    left_out: int
    blocks_left_out: int

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64 tokens of each piece."""
        return self.rows[:, 1] + self.rows[:, 3] - self.rows[:, 2]


def make_pieces(shard: Shard, row_length: int, cut: bool) -> Pieces:
    """The documents of a shard that fit into a row, and the pieces of the others where they are to be cut.

    A piece is a run of whole segments that fits into a row, after the document's beginning (BOS); the last one ends as the document does.
    Text that is longer than a row by itself is cut between tokens, a block of codes that is longer is left out. A pure function of the
    shard and the length.

    Args:
        shard: the documents.
        row_length: tokens of a row.
        cut: whether long documents are cut; they are left out otherwise.
    """
    lengths = np.diff(shard.starts)
    numbers = np.arange(len(lengths))
    whole = np.zeros((len(lengths), 6), np.int64)
    whole[:, 0], whole[:, 3] = numbers, lengths
    if shard.captions is not None:
        whole[:, 4:] = shard.captions
    is_long = lengths > row_length
    if not cut:
        return Pieces(whole[~is_long], int(is_long.sum()), int(is_long.sum()), 0)
    parts, previous, left_out, blocks = [], 0, 0, 0
    for number in np.flatnonzero(is_long).tolist():
        cut_rows, lost = _cut(shard, number, row_length)
        parts += [whole[previous:number], np.array(cut_rows, np.int64).reshape(-1, 6)]
        previous, left_out, blocks = number + 1, left_out + (not cut_rows), blocks + lost
    rows = np.concatenate([*parts, whole[previous:]])
    return Pieces(rows, int(is_long.sum()), left_out, blocks)


def last_kinds(shard: Shard, chosen: np.ndarray, pieces: Pieces | None) -> np.ndarray:
    """(n,) int64: the last segment of each document, or piece, that is of a chosen kind; the number of its kind, -1 without any.

    Args:
        shard: whose segments are known.
        chosen: (kinds,) bool.
        pieces: what is read in place of the documents.
    """
    counts = np.diff(shard.span_starts)
    owners = np.repeat(np.arange(len(counts)), counts)
    (places,) = np.nonzero(chosen[shard.spans[:, 2]]) if len(shard.spans) else (np.empty(0, np.int64),)
    last = np.full(len(counts), -1)
    np.maximum.at(last, owners[places], places)
    if pieces is not None:
        document, start, stop = (pieces.rows[:, column] for column in (0, 2, 3))
        last = last[document]
        for row in np.flatnonzero((start > 0) | (stop < np.diff(shard.starts)[document])).tolist():
            first, end = shard.span_starts[document[row] : document[row] + 2].tolist()
            within = places[(places >= first) & (places < end)]
            within = within[(shard.spans[within, 0] >= start[row]) & (shard.spans[within, 0] < stop[row])]
            last[row] = within[-1] if len(within) else -1
    kinds = np.append(shard.spans[:, 2].astype(np.int64), -1)
    return kinds[last]


def _cut(shard: Shard, number: int, row_length: int) -> tuple[list[tuple[int, ...]], int]:
    """(rows of `Pieces` for one document, blocks left out)."""
    spans = shard.spans[shard.span_starts[number] : shard.span_starts[number + 1]].astype(np.int64)
    if not len(spans):
        return [], 0
    length = int(shard.starts[number + 1] - shard.starts[number])
    lead = int(spans[0, 0])
    room = row_length - lead
    borders = [*spans[:, 0].tolist(), length]  # the end of the document (EOS) goes with its last segment
    runs: list[tuple[int, int]] = []  # first and last + 1 token of each piece, the beginning apart
    lost, joins = 0, False
    for segment, (start, stop) in enumerate(zip(borders, borders[1:], strict=False)):
        if joins and stop - runs[-1][0] <= room:
            runs[-1] = (runs[-1][0], stop)
        elif stop - start <= room:
            runs.append((start, stop))
        elif _is_plain_text(shard, spans[segment]) and room > 0:
            runs += _even(start, stop, room)
        else:
            lost += 1
            joins = False
            continue
        joins = True
    captions = (0, 0) if shard.captions is None else tuple(shard.captions[number].tolist())
    return [_row(number, lead, start, stop, captions) for start, stop in runs], lost


def _row(number: int, lead: int, start: int, stop: int, caption: tuple[int, ...]) -> tuple[int, ...]:
    # The first piece has its beginning in front of it already.
    repeated, start = (0, 0) if start == lead else (lead, start)
    first, count = caption
    inside = start <= first and first + count <= stop and count < stop - max(start, lead)
    return (number, repeated, start, stop, *((first - start + repeated, count) if count and inside else (0, 0)))


def _even(start: int, stop: int, room: int) -> Iterator[tuple[int, int]]:
    """Stretches of nearly equal length, none longer than `room`."""
    count = -(-(stop - start) // room)
    borders = [start + (stop - start) * i // count for i in range(count + 1)]
    return zip(borders, borders[1:], strict=False)


def _is_plain_text(shard: Shard, span: np.ndarray) -> bool:
    kind = shard.kinds[int(span[2])]
    return kind.modality == "text" and not kind.meta  # a plan ends with a mark, which must stay with it
