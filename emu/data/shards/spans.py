"""Spans of documents as numbers, and the table of kinds that they point into."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from emu.documents import Span

MAY_DROP = 1
"""Flag of a span that training may leave out, for guidance."""


class Kind(NamedTuple):
    """What spans of one kind have in common.

    Attributes:
        modality: "text" or the name of a modality.
        grid: of its codes; empty for text.
        meta: what the grid does not say, e.g. the rate of a clip.
        role: who says it in a conversation, else empty.
        source: where it comes from.
    """

    modality: str
    grid: tuple[int, ...] = ()
    meta: Mapping[str, Any] = {}
    role: str = ""
    source: str = ""

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Kind:
        """The inverse of `_asdict` after JSON."""
        return cls(**{**table, "grid": tuple(table["grid"])})


class KindTable:
    """Kinds by number, in the order in which they were asked for first."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, kind: Kind) -> int:
        """The number of a kind, new where it is not known yet."""
        return self._numbers.setdefault(json.dumps(kind._asdict(), sort_keys=True), len(self._numbers))

    def to_list(self) -> list[dict[str, Any]]:
        """The kinds as plain JSON types."""
        return [json.loads(kind) for kind in self._numbers]


def span_rows(
    spans: Sequence[Span],
    length: int,
    caption: tuple[int, int],
    roles: Sequence[str],
    source: str,
    kinds: KindTable,
) -> np.ndarray:
    """Spans of a document as rows (n, 4) uint32: start, length, kind, flags.

    Args:
        spans: of its segments, in order.
        length: tokens of the document.
        caption: (first token, number of tokens) that may be left out.
        roles: of the segments, or empty.
        source: of the document.
        kinds: is extended.

    Raises:
        ValueError: spans overlap or lie outside the document, the caption is not a run of whole segments, or there are more or fewer roles.
    """
    end = 0
    for span in spans:
        if span.start < end or span.length < 0 or span.start + span.length > length:
            raise ValueError(f"the spans {[(s.start, s.length) for s in spans]} do not lie in order in {length} tokens")
        end = span.start + span.length
    if roles and len(roles) != len(spans):
        raise ValueError(f"{len(roles)} roles for {len(spans)} segments; give one for each, or none")
    first, count = caption
    rows, found = np.zeros((len(spans), 4), np.uint32), 0
    for row, (number, span) in zip(rows, enumerate(spans), strict=True):
        kind = Kind(span.modality, tuple(span.grid), dict(span.meta), roles[number] if roles else "", source)
        inside = span.length > 0 and first <= span.start and span.start + span.length <= first + count
        found += span.length if inside else 0
        row[:] = span.start, span.length, kinds.number(kind), MAY_DROP if inside else 0
    if found != count:
        raise ValueError(f"the caption of {count} tokens from token {first} on is not a run of whole segments")
    return rows


def captions_of(span_starts: np.ndarray, spans: np.ndarray) -> np.ndarray | None:
    """(documents, 2) int64: first token and number of tokens that may be left out; None where no document has any.

    Args:
        span_starts: (documents + 1,) first span of each document.
        spans: (n, 4) rows of `span_rows`.
    """
    (flagged,) = np.nonzero(spans[:, 3] & MAY_DROP)
    if not len(flagged):
        return None
    owners = np.searchsorted(span_starts, flagged, side="right") - 1
    captions = np.zeros((len(span_starts) - 1, 2), np.int64)
    captions[owners[::-1], 0] = spans[flagged[::-1], 0]  # the first one of a document is written last
    np.add.at(captions[:, 1], owners, spans[flagged, 1].astype(np.int64))
    return captions


def spans_problem(starts: np.ndarray, span_starts: np.ndarray, spans: np.ndarray, num_kinds: int) -> str | None:
    """What is wrong with the numbers of a shard's offsets and spans; None where they are valid.

    Args:
        starts: (documents + 1,) first token of each document.
        span_starts: (documents + 1,) first span of each document.
        spans: (n, 4) rows of `span_rows`.
        num_kinds: entries of the table of kinds.
    """
    if not len(spans):
        return None
    owners = np.repeat(np.arange(len(starts) - 1), np.diff(span_starts))
    first, last = spans[:, 0].astype(np.int64), spans[:, 0].astype(np.int64) + spans[:, 1]
    if (last > np.diff(starts)[owners]).any():
        return "a span lies outside its document"
    if ((first[1:] < last[:-1]) & (owners[1:] == owners[:-1])).any():
        return "spans of a document overlap"
    if int(spans[:, 2].max()) >= num_kinds:
        return f"a span is of kind {int(spans[:, 2].max())}, there are {num_kinds}"
    return None
