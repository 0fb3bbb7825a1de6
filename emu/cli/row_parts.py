"""The documents of a packed row, taken apart into what people can look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emu.documents import Span, TextSegment
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.packing import Packed
from emu.vocabulary import Vocabulary


@dataclass(frozen=True)
class Part:
    """A stretch of a row: a piece of text of one loss weight, a block of codes, or tokens that cannot be read.

    Attributes:
        start: its first position in the row.
        length: number of its tokens.
        kind: "text", the modality and grid ("image 8*8"), or whose ids they are.
        value: what the tokenizer makes of it: words, a picture, a `Video`, ...; None where it is not known.
        weight: the largest loss weight of its tokens.
    """

    start: int
    length: int
    kind: str
    value: Any
    weight: float


@dataclass(frozen=True)
class RowDocument:
    """A document of a row.

    Attributes:
        start: its first position in the row.
        length: number of its tokens.
        source: name of its source.
        weighed: number of its tokens with a loss weight.
        parts: what it consists of, without BOS and EOS.
        unread: why it was not taken apart by the tokenizer; empty where it was.
    """

    start: int
    length: int
    source: str
    weighed: int
    parts: tuple[Part, ...]
    unread: str = ""


def documents_of(
    packed: Packed, row: int, vocabulary: Vocabulary, tokenizer: MultimodalTokenizer | None, sources: Sequence[str]
) -> list[RowDocument]:
    """The documents of a row, in order.

    Args:
        packed: rows, tensors (R, S).
        row: number of the row.
        vocabulary: of the ids.
        tokenizer: that made the documents; without one they are runs of ids of one kind.
        sources: names that `source_ids` counts.
    """
    ids, weights = packed.input_ids[row], packed.loss_weights[row]
    found = []
    for segment in range(1, int(packed.segment_ids[row].max()) + 1):
        (where,) = torch.nonzero(packed.segment_ids[row] == segment, as_tuple=True)
        start, stop = int(where[0]), int(where[-1]) + 1
        inside, weighed = ids[start:stop], weights[start:stop]
        unread = "no tokenizer is named; --tokenizer FOLDER reads the documents"
        parts: tuple[Part, ...] = ()
        if tokenizer is not None:
            try:
                parts, unread = tuple(_read(inside, weighed, start, tokenizer)), ""
            except ValueError as error:  # documents of another layout, or none that a tokenizer wrote
                unread = str(error)
        if unread:
            parts = tuple(_runs(inside, weighed, start, vocabulary))
        source = sources[int(packed.source_ids[row, start])]
        found.append(RowDocument(start, stop - start, source, int((weighed > 0).sum()), parts, unread))
    return found


def _read(ids: Tensor, weights: Tensor, start: int, tokenizer: MultimodalTokenizer) -> Iterator[Part]:
    """The segments of a document; texts beside one another are one segment and are told apart by their weights."""
    layout = tokenizer.layout
    for segment, span in zip(layout.parse(ids), layout.spans(ids), strict=True):
        inside = weights[span.start : span.start + span.length]
        if isinstance(segment, TextSegment) and not segment.plan:
            for first, length in _equal_runs(inside.tolist()):
                words = layout.decode_text(segment.ids[first : first + length].tolist())
                yield Part(start + span.start + first, length, "text", words, float(inside[first]))
        else:
            value = tokenizer.decode_segment(segment)
            yield Part(start + span.start, span.length, _kind(span), value, float(inside.max()))


def _kind(span: Span) -> str:
    meta = [f"{name} {value}" for name, value in span.meta.items()]
    return " ".join(word for word in (span.modality, "*".join(map(str, span.grid)), *meta) if word)


def _runs(ids: Tensor, weights: Tensor, start: int, vocabulary: Vocabulary) -> Iterator[Part]:
    """Runs of ids of one kind, where nothing more is known."""
    owners = [_owner(index, vocabulary) for index in ids.tolist()]
    for first, length in _equal_runs(owners):
        weight = float(weights[first : first + length].max())
        yield Part(start + first, length, owners[first], None, weight)


def _owner(index: int, vocabulary: Vocabulary) -> str:
    first, count = vocabulary.text
    if first <= index < first + count:
        return "text"
    for name, (first, count) in vocabulary.ranges.items():
        if first <= index < first + count:
            return f"{name} codes"
    return "controls"


def _equal_runs(values: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """(first, length) of each run of equal values."""
    first = 0
    for place in range(1, len(values) + 1):
        if place == len(values) or values[place] != values[first]:
            yield first, place - first
            first = place
