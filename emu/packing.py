"""Documents into rows: best-fit decreasing, never cut, never attending one another.

Cutting a document would start rows inside pictures; best-fit decreasing without cutting fills rows nearly as well (arXiv 2404.10830 uses
the same rule to avoid needless truncation of text).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from emu.documents import TokenDocument

IGNORE_INDEX = -100
"""Label of a token that is not predicted, as everywhere in PyTorch."""


class Packed(NamedTuple):
    """Rows of whole documents; R rows of S positions.

    Attributes:
        input_ids: (R, S) int64; padding holds the pad id.
        labels: (R, S) int64, the input ids where a token is predicted, `IGNORE_INDEX` in padding; the model shifts them.
        segment_ids: (R, S) int64, 1..n for the documents of a row, 0 for padding.
        loss_weights: (R, S) float32, the weight of predicting each token; 0 in padding and at the first token of each document.
        source_ids: (R, S) int64, the number of the source that each token came from, -1 in padding.
    """

    input_ids: Tensor
    labels: Tensor
    segment_ids: Tensor
    loss_weights: Tensor
    source_ids: Tensor

    def to(self, device: torch.device | str) -> Packed:
        """The same rows on a device."""
        return Packed(*(tensor.to(device, non_blocking=True) for tensor in self))

    def passes(self, rows: int) -> Iterator[Packed]:
        """The rows in order, at most `rows` at a time, each time without the columns that are padding in all of them."""
        for start in range(0, len(self.input_ids), rows):
            some = slice(start, start + rows)
            used = int((self.segment_ids[some] > 0).sum(dim=1).max())
            yield Packed(*(tensor[some, : max(1, used)] for tensor in self))


def plan_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Assign documents to rows by best-fit decreasing.

    Args:
        lengths: number of tokens of each document.
        row_length: number of positions of a row.

    Returns:
        For each row the numbers of its documents; every document is in exactly one row. A pure function of the lengths.

    Raises:
        ValueError: documents are empty or longer than a row; the message names them all.
    """
    bad = [f"{i} ({length} tokens)" for i, length in enumerate(lengths) if not 0 < length <= row_length]
    if bad:
        raise ValueError(
            f"documents must have 1 to {row_length} tokens, the length of a row, since they are never cut; these have not: "
            f"{', '.join(bad[:8])}{' and more' if len(bad) > 8 else ''}; raise row_length or leave them out"
        )
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (free positions, row), ascending
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(spaces, (lengths[i], -1))
        if at < len(spaces):
            space, row = spaces.pop(at)
        else:
            space, row = row_length, len(rows)
            rows.append([])
        rows[row].append(i)
        insort(spaces, (space - lengths[i], row))
    return rows


def fill_rows(
    rows: Sequence[Sequence[TokenDocument]],
    row_length: int,
    *,
    source_ids: Sequence[Sequence[int]] | None = None,
    pad_token_id: int = 0,
) -> Packed:
    """Lay documents out in rows.

    Args:
        rows: for each row its documents; a row may be empty.
        row_length: number of positions of a row.
        source_ids: for each row the source numbers of its documents; 0 for all by default.
        pad_token_id: id of the padding.

    Returns:
        Packed rows, tensors (R, row_length).
    """
    shape = (len(rows), row_length)
    packed = Packed(
        input_ids=torch.full(shape, pad_token_id, dtype=torch.int64),
        labels=torch.full(shape, IGNORE_INDEX, dtype=torch.int64),
        segment_ids=torch.zeros(shape, dtype=torch.int64),
        loss_weights=torch.zeros(shape, dtype=torch.float32),
        source_ids=torch.full(shape, -1, dtype=torch.int64),
    )
    for r, documents in enumerate(rows):
        if not documents:
            continue
        # One assignment a row for all of its documents: assignments, not tokens, are what takes the time.
        lengths = torch.tensor([len(document) for document in documents])
        ends = lengths.cumsum(0)
        used = slice(0, int(ends[-1]))
        ids = torch.cat([document.ids for document in documents])
        weights = torch.cat([document.weights for document in documents])
        weights[ends - lengths] = 0.0  # nothing comes before the first token of a document
        sources = torch.tensor([0] * len(documents) if source_ids is None else source_ids[r])
        packed.input_ids[r, used] = ids
        packed.labels[r, used] = ids
        packed.segment_ids[r, used] = torch.arange(1, len(documents) + 1).repeat_interleave(lengths)
        packed.loss_weights[r, used] = weights
        packed.source_ids[r, used] = sources.repeat_interleave(lengths)
    return packed


def pack(
    documents: Sequence[TokenDocument],
    row_length: int,
    *,
    source_ids: Sequence[int] | None = None,
    pad_token_id: int = 0,
    multiple: int = 1,
) -> Packed:
    """Pack documents into as few rows as best-fit decreasing finds.

    Args:
        documents: any number of documents.
        row_length: number of positions of a row.
        source_ids: the number of each document's source; 0 for all by default. With `range(len(documents))` each position of the
            rows says which document it belongs to.
        pad_token_id: id of the padding.
        multiple: empty rows are added until their number is a multiple of this.

    Returns:
        Packed rows, tensors (R, row_length).

    Raises:
        ValueError: a document is empty or longer than a row.
    """
    plan = pad_plan(plan_rows([len(document) for document in documents], row_length), multiple)
    return fill_rows(
        [[documents[i] for i in row] for row in plan],
        row_length,
        source_ids=None if source_ids is None else [[source_ids[i] for i in row] for row in plan],
        pad_token_id=pad_token_id,
    )


def pad_plan(rows: list[list[int]], multiple: int) -> list[list[int]]:
    """The rows, with empty ones added until their number is a positive multiple of `multiple`."""
    wanted = max(1, -(-len(rows) // multiple)) * multiple
    return rows + [[] for _ in range(wanted - len(rows))]
