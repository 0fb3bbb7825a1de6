"""A layout says how a document becomes a token sequence; one object builds, parses and constrains.

    BOS text header block text ... EOS

A header opens a block and states its modality and grid; its form is the layout's (`header` and the two methods that read it), and so is
the arrangement of the codes after it (`grid_block`). Emu3 writes BOI, the grid as plain text and an image mark (`meta_text.py`); a layout
of a single grid may do with BOI alone. Plain text can never become a control or a code: its ids come from the text range alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from emu.documents import CodeSegment, Segment, Span, TextSegment, TokenDocument
from emu.layouts.cursor import Cursor
from emu.layouts.grammar import BlockTemplate, IdRange
from emu.layouts.infill import hide
from emu.layouts.parse import parse_segments
from emu.modalities import MODALITIES, Grid, Modality
from emu.vocabulary import HOLE, Vocabulary


class TextCodec(Protocol):
    """What a layout needs of a text tokenizer: an exact pair of plain text and ids below the size of the text range."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Layout(ABC):
    """Sequence format of documents over one vocabulary.

    A layout of your own gives `name`, `controls`, `header`, `header_choices`, `parse_header` and `grid_block`, and is registered with
    `emu.layouts.register(name, the class)`.

    Args:
        vocabulary: the table of ids.
        text: tokenizer of plain text; without one, text is not encoded, and headers that hold text are neither written nor read.
        modalities: names of the modalities that documents may hold; by default every registered one whose codebook the vocabulary has.

    Attributes:
        openings: ids that open a block.
        hole: id that stands for a hidden code, where the vocabulary has one (see `emu/layouts/infill.py`).

    Raises:
        ValueError: a modality is unknown, or the vocabulary lacks its codebook or a control that the layout needs.
    """

    name: str
    controls: tuple[str, ...]
    """Controls that the vocabulary must have, in the order in which a new one numbers them (`Vocabulary.build`)."""
    opening_controls: tuple[str, ...] = ("boi",)
    """Those that open a block."""
    header_end = "complete header"
    """What a cut header lacks, for messages."""
    plan_marks: Mapping[str, tuple[str, str]] = {}
    """What a `Plan` is for -> the controls before and after its text, where the vocabulary has them."""
    answer_marks: tuple[str, str] | None = None
    """Controls before and after an answer, where the vocabulary has them: the first belongs to prompts, after the second comes EOS."""

    def __init__(
        self, vocabulary: Vocabulary, text: TextCodec | None = None, modalities: Iterable[str] | None = None
    ) -> None:
        missing = [name for name in (*self.controls, *self.opening_controls) if name not in vocabulary.controls]
        if missing:
            raise ValueError(
                f"layout {self.name!r} needs the controls {missing}, and the vocabulary has {list(vocabulary.controls)}; "
                "make it with Vocabulary.build(..., controls=Layout.controls), or choose another layout"
            )
        self.vocabulary = vocabulary
        self.text = text
        self.openings = tuple(vocabulary.control(name) for name in self.opening_controls)
        if modalities is None:
            modalities = [name for name, modality in MODALITIES.items() if self._has_codebook(modality.codebook)]
        self.modalities: dict[str, Modality] = {name: MODALITIES.find(name) for name in modalities}
        # A training run builds the same few geometries again and again.
        self._blocks: dict[tuple[str, Grid], BlockTemplate] = {}
        for modality in self.modalities.values():
            self.code_ranges(modality.codebook)
        controls = vocabulary.controls
        self.plans: Mapping[str, tuple[int, int]] = {
            scope: (controls[before], controls[after])
            for scope, (before, after) in self.plan_marks.items()
            if before in controls and after in controls
        }
        self.hole = controls.get(HOLE)
        begin, end = self.answer_marks or ("", "")
        self.begin_answer, self.end_answer = controls.get(begin), controls.get(end)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.modalities)})"

    @abstractmethod
    def header(self, modality: str, grid: Grid, meta: Mapping[str, Any] | None = None) -> list[int]:
        """Ids of the header of a block, the control that opens it first.

        Raises:
            ValueError: the layout has no header for such a block.
        """

    @abstractmethod
    def header_choices(self, begun: Sequence[int]) -> tuple[IdRange, ...]:
        """The ids that may follow a header that was begun; none where it is complete."""

    @abstractmethod
    def parse_header(self, ids: Sequence[int]) -> tuple[str, Grid, dict[str, Any]]:
        """(modality name, grid, meta) of a complete header.

        Raises:
            ValueError: it is not a header of this layout.
        """

    @abstractmethod
    def grid_block(self, grid: Sequence[int], ranges: Sequence[IdRange]) -> BlockTemplate:
        """Template of what follows the header for a grid of codes, the end of the block included."""

    @property
    def reads_headers(self) -> bool:
        """Whether `parse_header` is possible."""
        return True

    def header_length(self, ids: Tensor) -> int | None:
        """Number of tokens of the header that ids (n,), a control that opens a block first, begin with; None where its end is missing."""
        lengths = range(1, len(ids) + 1)
        return next((length for length in lengths if not self.header_choices(ids[:length].tolist())), None)

    def opens(self, index: int) -> bool:
        """Whether an id opens a block."""
        return index in self.openings

    def own_header(self, ids: Tensor) -> Tensor | None:
        """The complete header that ids (n,) end in, or None."""
        begins = torch.isin(ids, torch.tensor(self.openings)).nonzero()
        if not len(begins):
            return None
        # From the last opening on: earlier blocks are complete, or the ids end in none.
        header = ids[int(begins[-1]) :]
        return header if self.header_length(header) == len(header) else None

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
        """Template of a block of this modality, from after its header to its end.

        Raises:
            ValueError: the grid has another number of axes than the modality.
        """
        known, key = self.modality(modality), (modality, tuple(grid))
        if key not in self._blocks:
            if len(grid) != known.rank:
                raise ValueError(f"a grid of {modality!r} has {known.rank} axes, got {tuple(grid)}")
            self._blocks[key] = self.grid_block(grid, self.code_ranges(known.codebook))
        return self._blocks[key]

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
            before, after = self.plans[segment.plan]
            ids = torch.cat([torch.tensor([before]), ids, torch.tensor([after])])
        return [(ids, torch.full((len(ids),), segment.weight))]

    def _code_pieces(self, segment: CodeSegment) -> list[tuple[Tensor, Tensor]]:
        modality = self.modality(segment.modality)
        grid = modality.check_codes(segment.codes, len(self.code_ranges(modality.codebook)))
        template = self.block(segment.modality, grid)
        header = _weighted(self.header(segment.modality, grid, segment.meta), segment.weight)
        block = template.fill(segment.codes), template.free.float() * segment.weight
        return [header, block] if segment.hidden is None else [header, *hide(self, template, *block, segment.hidden)]

    def parse(self, ids: Tensor | Sequence[int]) -> list[Segment]:
        """Read a sequence back into segments; BOS, EOS and the padding after it are optional.

        Raises:
            ValueError: the sequence is not of this layout; the message names the position.
        """
        return [segment for segment, _, _ in parse_segments(self, ids)]

    def spans(self, ids: Tensor | Sequence[int]) -> tuple[Span, ...]:
        """Where the segments of a sequence lie, neighbouring texts as one; errors as in `parse`."""
        return tuple(self._span(segment, start, stop - start) for segment, start, stop in parse_segments(self, ids))

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
            headers: the headers that may be opened; None allows any that the layout can read.

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
