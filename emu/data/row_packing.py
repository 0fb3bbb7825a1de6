"""Thousands of documents into a fixed number of rows: best-fit decreasing over a histogram of lengths."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

LEFT_OUT = -1
"""The row of a document that has none."""


def pack_block(lengths: np.ndarray, row_length: int, num_rows: int | None = None) -> np.ndarray:
    """Give every document a row by best-fit decreasing; documents are never cut.

    The rows are those of `emu.packing.plan_rows`, which goes through documents one at a time. Here documents of one length and rows of one
    free space are taken together, so that the work grows with the number of different lengths: pictures of a few sizes cost next to
    nothing. (The histogram is that of Krell et al., 2021, arXiv 2107.02027, whose packs are chosen in another order.)

    Args:
        lengths: (n,) tokens of each document.
        row_length: positions of a row.
        num_rows: that there are; None opens as many as are needed.

    Returns:
        (n,) int64 row of each document; `LEFT_OUT` for those that no row has room for. A pure function of the arguments.

    Raises:
        ValueError: documents are empty or longer than a row.
    """
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= row_length:
        raise ValueError(
            f"documents have {lengths.min()} to {lengths.max()} tokens; expected 1 to {row_length}, the length of a row"
        )
    order = np.argsort(-lengths, kind="stable")
    values, counts = np.unique(-lengths, return_counts=True)
    rows = _Rows(row_length, len(lengths) if num_rows is None else num_rows)
    placed: list[int] = []
    for value, count in zip((-values).tolist(), counts.tolist(), strict=True):
        placed += rows.place(value, count)
    found = np.empty(len(lengths), np.int64)
    found[order] = placed
    return found


class _Rows:
    """Rows by their free space.

    Args:
        length: positions of a row.
        number: of rows.
    """

    def __init__(self, length: int, number: int) -> None:
        self._length, self._number = length, number
        self._opened = 0
        self._spaces: list[int] = []  # the different free spaces of opened rows, ascending
        self._with: dict[int, list[int]] = {}  # free space -> rows that have it

    def place(self, length: int, count: int) -> list[int]:
        """The row of each of `count` documents of one length."""
        placed: list[int] = []
        while count:
            chosen, space = self._best(length, count)
            if not chosen:
                return placed + [LEFT_OUT] * count
            # The row that was filled up first is still the best fit for the next document of this length, as long as it has room.
            each = space // length
            full, rest = divmod(min(count, each * len(chosen)), each)
            for row in chosen[:full]:
                placed += [row] * each
            self._add(space - each * length, chosen[:full])
            if rest:
                placed += [chosen[full]] * rest
                self._add(space - rest * length, chosen[full:])
            count -= full * each + rest
        return placed

    def _best(self, length: int, count: int) -> tuple[list[int], int]:
        """Rows of the smallest free space that has room, no more than `count` documents fill, taken out; and that space."""
        at = bisect_left(self._spaces, length)
        if at == len(self._spaces):
            wanted = -(-count // (self._length // length))
            first, self._opened = self._opened, min(self._number, self._opened + wanted)
            return list(range(first, self._opened)), self._length
        space = self._spaces[at]
        rows, wanted = self._with[space], -(-count // (space // length))
        if wanted < len(rows):
            self._with[space] = rows[wanted:]
            return rows[:wanted], space
        del self._spaces[at]
        return self._with.pop(space), space

    def _add(self, space: int, rows: list[int]) -> None:
        if not rows or not space:
            return
        if space not in self._with:
            insort(self._spaces, space)
            self._with[space] = rows
        else:
            self._with[space] = sorted(self._with[space] + rows)  # which row is taken first is a part of the result


def fill_empty_rows(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """The rows of documents with half of the fullest rows' documents moved to rows that have none.

    A row without any document gives a rank nothing to learn from; rows of several documents can spare some.

    Args:
        rows: (n,) row of each document, or `LEFT_OUT`.
        num_rows: that there are.
    """
    counts = np.bincount(rows[rows >= 0], minlength=num_rows)
    empty = np.flatnonzero(counts == 0)
    donors = np.argsort(-counts, kind="stable")[: len(empty)]
    donors = donors[counts[donors] > 1]
    if not len(donors):
        return rows
    takers = np.full(num_rows + 1, LEFT_OUT)  # the last one stands for LEFT_OUT, which is an index too
    takers[donors] = empty[: len(donors)]
    order = np.argsort(rows, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)]) + (len(rows) - int(counts.sum()))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows)) - starts[rows[order]]
    moves = (takers[rows] >= 0) & (place >= -(-counts[rows] // 2))
    return np.where(moves, takers[rows], rows)
