"""A layout says how a document becomes a token sequence; one object builds, parses and constrains.

    BOS text BOI meta IMG codes... EOI text ... EOS

`meta` is plain text that names the geometry of the block, and so the modality; the arrangement of the codes behind the image mark is the
layout's (`grid_block`). Plain text can never become a control or a code: its ids come from the text range alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from emu.documents import CodeSegment, Segment, Span, TextSegment, TokenDocument
from emu.layouts.cursor import Cursor
from emu.layouts.grammar import BlockTemplate, IdRange
from emu.modalities import Grid, Modality, get_modality, registered
from emu.vocabulary import Vocabulary


class TextCodec(Protocol):
    """What a layout needs of a text tokenizer: an exact pair of plain text and ids below the size of the text range."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Layout(ABC):
    """Sequence format of documents over one vocabulary.

    Args:
        vocabulary: the table of ids.
        text: tokenizer for the meta text of headers; without one, `header`, `build` of codes and `parse` of blocks are not possible, and
            prompts must come with their header.
        modalities: names of the modalities that documents may hold; by default every registered one whose codebook the vocabulary has.

    Raises:
        ValueError: a modality is unknown or the vocabulary lacks its codebook.
    """

    name: str
    plan_marks: Mapping[str, tuple[str, str]] = {}
    """What a `Plan` is for -> the controls before and behind its text, where the vocabulary has them."""
    answer_marks: tuple[str, str] | None = None
    """Controls before and behind an answer, where the vocabulary has them: the first belongs to prompts, behind the second is the end."""

    def __init__(
        self, vocabulary: Vocabulary, text: TextCodec | None = None, modalities: Iterable[str] | None = None
    ) -> None:
        self.vocabulary = vocabulary
        self.text = text
        if modalities is None:
            modalities = [name for name, modality in registered().items() if self._has_codebook(modality.codebook)]
        self.modalities: dict[str, Modality] = {name: get_modality(name) for name in modalities}
        self._blocks: dict[
            tuple[str, Grid], BlockTemplate
        ] = {}  # a training run builds the same few geometries again and again
        for modality in self.modalities.values():
            self.code_ranges(modality.codebook)
        controls = vocabulary.controls
        self.plans = {
            scope: (controls[before], controls[behind])
            for scope, (before, behind) in self.plan_marks.items()
            if before in controls and behind in controls
        }
        begin, end = self.answer_marks or ("", "")
        self.begin_answer, self.end_answer = controls.get(begin), controls.get(end)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.modalities)})"

    @abstractmethod
    def grid_block(self, grid: Sequence[int], ranges: Sequence[IdRange]) -> BlockTemplate:
        """Template of what follows the image mark for a grid of codes, up to and with EOI."""

    def _has_codebook(self, name: str) -> bool:
        return name in self.vocabulary.ranges or f"{name}.0" in self.vocabulary.ranges

    def code_ranges(self, codebook: str) -> tuple[IdRange, ...]:
        """Id ranges of the codebooks at one position: `codebook` alone, or `codebook.0`, `codebook.1`, ... in order.

        Raises:
            ValueError: the vocabulary has none of them.
        """
        if codebook in self.vocabulary.ranges:
            return (self.vocabulary.ranges[codebook],)
        ranges: list[IdRange] = []
        while (name := f"{codebook}.{len(ranges)}") in self.vocabulary.ranges:
            ranges.append(self.vocabulary.ranges[name])
        return tuple(ranges) or (self.vocabulary.range(codebook),)

    def modality(self, name: str) -> Modality:
        """The modality of this name, if documents of this layout may hold it.

        Raises:
            ValueError: they may not.
        """
        if name not in self.modalities:
            raise ValueError(f"this layout holds no {name!r}; it knows {sorted(self.modalities)}")
        return self.modalities[name]

    def block(self, modality: str, grid: Grid) -> BlockTemplate:
        """Template of a block of this modality, from behind the image mark up to and with EOI.

        Raises:
            ValueError: the grid has another number of axes than the modality.
        """
        known, key = self.modality(modality), (modality, tuple(grid))
        if key not in self._blocks:
            if len(grid) != known.rank:
                raise ValueError(f"a grid of {modality!r} has {known.rank} axes, got {tuple(grid)}")
            self._blocks[key] = self.grid_block(grid, self.code_ranges(known.codebook))
        return self._blocks[key]

    def header(self, modality: str, grid: Grid, meta: Mapping[str, Any] | None = None) -> list[int]:
        """Ids of BOI, the meta text and the image mark."""
        controls = self.vocabulary.controls
        text = self.modality(modality).meta_text(tuple(grid), meta or {})
        return [controls["boi"], *self.encode_text(text), controls["image"]]

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text.

        Raises:
            ValueError: the layout has no text tokenizer, or the tokenizer gave ids outside the vocabulary's text range.
        """
        if self.text is None:
            raise ValueError(
                "this layout was built without a text tokenizer; pass Layout(vocabulary, text=...) to write text or headers"
            )
        first, count = self.vocabulary.text
        ids = self.text.encode(text)
        if ids and not 0 <= min(ids) <= max(ids) < count:
            raise ValueError(
                f"the text tokenizer gave id {max(ids)}, but the vocabulary holds {count} text ids; use the tokenizer it was made for"
            )
        return [first + index for index in ids]

    def decode_text(self, ids: Sequence[int]) -> str:
        """The inverse of `encode_text`.

        Raises:
            ValueError: the layout has no text tokenizer.
        """
        if self.text is None:
            raise ValueError(
                "this layout was built without a text tokenizer; pass Layout(vocabulary, text=...) to read text or headers"
            )
        first = self.vocabulary.text[0]
        return self.text.decode([int(index) - first for index in ids])

    def build(self, segments: Sequence[Segment], add_special: bool = True) -> TokenDocument:
        """Lay segments out as one sequence.

        Text, headers and codes weigh what their segment weighs; what the grammar forces (BOS, ends of rows, frames and blocks) weighs 0,
        and the closing EOS as much as the segment before it.

        Args:
            segments: in order.
            add_special: whether BOS and EOS are included.

        Returns:
            The document, with the span of each segment.

        Raises:
            ValueError: a segment does not fit the vocabulary.
        """
        pieces: list[tuple[Tensor, Tensor]] = []
        spans: list[Span] = []
        controls = self.vocabulary.controls
        if add_special:
            pieces.append(_weighted([controls["bos"]], 0.0))
        start = len(pieces)
        for segment in segments:
            added = self._text_piece(segment) if isinstance(segment, TextSegment) else self._code_pieces(segment)
            pieces.extend(added)
            spans.append(self._span(segment, start, sum(len(ids) for ids, _ in added)))
            start += spans[-1].length
        if add_special:
            pieces.append(_weighted([controls["eos"]], segments[-1].weight if segments else 1.0))
        if not pieces:
            return TokenDocument(torch.empty(0, dtype=torch.int64), torch.empty(0))
        ids, weights = torch.cat([ids for ids, _ in pieces]), torch.cat([weights for _, weights in pieces])
        return TokenDocument(ids, weights, tuple(spans))

    def _span(self, segment: Segment, start: int, length: int) -> Span:
        if isinstance(segment, TextSegment):
            return Span(start, length, meta={"plan": segment.plan} if segment.plan else {})
        grid = tuple(segment.codes.shape[: self.modality(segment.modality).rank])
        return Span(start, length, segment.modality, grid, dict(segment.meta))

    def _text_piece(self, segment: TextSegment) -> list[tuple[Tensor, Tensor]]:
        first, count = self.vocabulary.text
        ids = segment.ids.to(torch.int64)
        if len(ids) and not (ids.ge(first) & ids.lt(first + count)).all():
            raise ValueError(f"a text segment holds ids outside the text range {first}..{first + count - 1}")
        if segment.plan:
            if segment.plan not in self.plans:
                raise ValueError(
                    f"a plan for {segment.plan!r}; this layout and vocabulary have plans for {sorted(self.plans)}"
                )
            before, behind = self.plans[segment.plan]
            ids = torch.cat([torch.tensor([before]), ids, torch.tensor([behind])])
        return [(ids, torch.full((len(ids),), segment.weight))]

    def _code_pieces(self, segment: CodeSegment) -> list[tuple[Tensor, Tensor]]:
        modality = self.modality(segment.modality)
        grid = modality.check_codes(segment.codes, len(self.code_ranges(modality.codebook)))
        template = self.block(segment.modality, grid)
        header = _weighted(self.header(segment.modality, grid, segment.meta), segment.weight)
        return [header, (template.fill(segment.codes), template.free.float() * segment.weight)]

    def parse(self, ids: Tensor | Sequence[int]) -> list[Segment]:
        """Read a sequence back into segments; BOS, EOS and the padding after it are optional.

        Raises:
            ValueError: the sequence is not of this layout; the message names the position.
        """
        return [segment for segment, _ in self._parse(ids)]

    def spans(self, ids: Tensor | Sequence[int]) -> tuple[Span, ...]:
        """Where the segments of a sequence lie, neighbouring texts as one; errors as in `parse`."""
        return tuple(span for _, span in self._parse(ids))

    def _parse(self, ids: Tensor | Sequence[int]) -> Iterator[tuple[Segment, Span]]:
        ids = torch.as_tensor(ids, dtype=torch.int64).cpu()
        controls = self.vocabulary.controls
        place, end = 0, len(ids)
        if end and ids[0] == controls["bos"]:
            place = 1
        while end > place and ids[end - 1] == controls["pad"]:
            end -= 1
        if end > place and ids[end - 1] == controls["eos"]:
            end -= 1
        segment: Segment
        openings = {before: scope for scope, (before, _) in self.plans.items()}
        while place < end:
            start, index = place, int(ids[place])
            if index in (self.begin_answer, self.end_answer):
                place += 1
                continue
            if index == controls["boi"]:
                segment, place = self._parse_block(ids, place, end)
            elif index in openings:
                segment, place = self._parse_plan(ids, place, end, openings[index])
            else:
                segment, place = self._parse_text(ids, place, end)
            yield segment, self._span(segment, start, place - start)

    def _parse_plan(self, ids: Tensor, place: int, end: int, scope: str) -> tuple[Segment, int]:
        behind = self.plans[scope][1]
        mark = (ids[place:end] == behind).nonzero()
        if not len(mark):
            raise ValueError(f"the plan that begins at position {place} has no end ({self.describe(behind)})")
        stop = place + int(mark[0])
        if stop == place + 1:
            return TextSegment(ids[:0], plan=scope), stop + 1
        text, found = self._parse_text(ids, place + 1, stop)
        if found != stop:
            raise ValueError(
                f"position {found} holds id {int(ids[found])} ({self.describe(int(ids[found]))}) within a plan"
            )
        return TextSegment(text.ids, plan=scope), stop + 1

    def _parse_text(self, ids: Tensor, place: int, end: int) -> tuple[TextSegment, int]:
        first, count = self.vocabulary.text
        is_text = (ids[place:end] >= first) & (ids[place:end] < first + count)
        stop = place + int(is_text.long().cumprod(0).sum())
        if stop == place:
            raise ValueError(
                f"position {place} holds id {int(ids[place])} ({self.describe(int(ids[place]))}) where text or a block should begin"
            )
        return TextSegment(ids[place:stop]), stop

    def _parse_block(self, ids: Tensor, place: int, end: int) -> tuple[CodeSegment, int]:
        mark = (ids[place:end] == self.vocabulary.controls["image"]).nonzero()
        if not len(mark):
            raise ValueError(f"the block that begins at position {place} has no image mark")
        start = place + int(mark[0]) + 1
        name, grid, meta = self.parse_header(ids[place:start].tolist())
        template = self.block(name, grid)
        try:
            codes = template.read(ids[start:end])
        except ValueError as error:
            raise ValueError(f"in the {name!r} block that begins at position {place}: {error}") from error
        return CodeSegment(name, codes, meta), start + len(template)

    def parse_header(self, ids: Sequence[int]) -> tuple[str, Grid, dict[str, Any]]:
        """(modality name, grid, meta) of a header BOI ... IMG.

        Raises:
            ValueError: no modality of this layout writes such a meta text.
        """
        first, count = self.vocabulary.text
        inner = list(ids[1:-1])
        text = self.decode_text(inner) if all(first <= index < first + count for index in inner) else ""
        for name, modality in self.modalities.items():
            read = modality.parse_meta(text)
            if read is not None:
                return name, *read
        raise ValueError(f"no modality of {sorted(self.modalities)} writes the header {text!r}")

    def describe(self, index: int) -> str:
        """Who owns an id, in words, for messages."""
        for name, control in self.vocabulary.controls.items():
            if index == control:
                return name.upper()
        for name, (first, count) in self.vocabulary.ranges.items():
            if first <= index < first + count:
                return f"{name} code {index - first}"
        first, count = self.vocabulary.text
        return "text" if first <= index < first + count else "no token of this vocabulary"

    def constrain(
        self, ids: Tensor | Sequence[int], headers: Sequence[Sequence[int]] | None = None
    ) -> tuple[IdRange, ...]:
        """The ids that may follow a sequence that starts with BOS.

        Args:
            ids: what was written so far.
            headers: the headers (BOI ... IMG) that may be opened; None allows any meta text that the modalities can read.

        Returns:
            Id ranges, disjoint; one range of one id where the grammar forces the next token.

        Raises:
            ValueError: what was written is not of this layout.
        """
        cursor = Cursor(self, headers)
        for index in torch.as_tensor(ids, dtype=torch.int64).tolist():
            cursor.advance(index)
        return cursor.allowed()


def _weighted(ids: Sequence[int], weight: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(ids, dtype=torch.int64), torch.full((len(ids),), weight)
