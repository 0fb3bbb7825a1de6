"""The grammar step by step: which tokens may follow what was written so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emu.layouts.grammar import FREE, BlockTemplate, Grammar, IdRange
from emu.layouts.infill import hidden_template


class Cursor:
    """A place in a document that is being written.

    Args:
        layout: the grammar.
        headers: the headers that may be opened; none (an empty list) forbids blocks, None allows any readable one.
    """

    def __init__(self, layout: Grammar, headers: Sequence[Sequence[int]] | None = None) -> None:
        self.layout = layout
        self.headers = None if headers is None else [list(header) for header in headers]
        self._controls = layout.vocabulary.controls
        self._started = self._ended = False
        self._header: list[int] = []  # the open header, from the control that opens it on; empty outside headers
        self._template: BlockTemplate | None = None
        self._place = 0
        self._codes = 0  # written in the open block
        self._holes: list[int] = []  # its places that are hidden
        self._hides_cell = False  # whether its last code was a hole
        self._fills = False  # whether it is the part that says what the holes stand for
        self._plan_end: int | None = None  # what closes the open plan
        self._answered = False

    @property
    def ended(self) -> bool:
        """Whether EOS was written."""
        return self._ended

    @property
    def block(self) -> BlockTemplate | None:
        """The template of the block that is being written, if any."""
        return self._template

    @property
    def is_within_block(self) -> bool:
        """Whether a header or a block was begun and is not complete; after a complete header a prompt may end."""
        return bool(self._header) or self._place > 0 or self._fills

    def allowed(self) -> tuple[IdRange, ...]:
        """Disjoint id ranges of the next token."""
        controls = self._controls
        if self._ended:
            return ((controls["pad"], 1),)
        if not self._started:
            return ((controls["bos"], 1),)
        if self._template is not None:
            if self._hides_cell and self._codes % self._template.codebooks and self.layout.hole is not None:
                return ((self.layout.hole, 1),)  # all codes of a cell are hidden, or none is
            return (self._template.allowed(self._place),)
        if self._header:
            return self._allowed_in_header()
        if self._plan_end is not None:
            return (self.layout.vocabulary.text, (self._plan_end, 1))
        if self._answered:
            return ((controls["eos"], 1),)
        openings = self.layout.openings
        # Not an opening whose headers are all forbidden: the next token would have no choice left.
        if self.headers is not None:
            openings = tuple(index for index in openings if any(header[:1] == [index] for header in self.headers))
        blocks = [(index, 1) for index in openings]
        end = () if self.layout.end_answer is None else ((self.layout.end_answer, 1),)
        plans = [(before, 1) for before, _ in self.layout.plans.values()]
        return (self.layout.vocabulary.text, (controls["eos"], 1), *blocks, *end, *plans)

    def _allowed_in_header(self) -> tuple[IdRange, ...]:
        if self.headers is not None:
            place = len(self._header)
            following = {
                header[place] for header in self.headers if header[:place] == self._header and len(header) > place
            }
            return tuple((index, 1) for index in sorted(following))
        return self.layout.header_choices(self._header)

    def advance(self, index: int) -> None:
        """Write one token.

        Raises:
            ValueError: the grammar does not allow it here.
        """
        # Marks of prompts: they may be read here, and `allowed` does not offer them, so that no model writes them.
        if self._between and index == self.layout.begin_answer:
            return
        if index == self.layout.hole and self._may_hide:
            self._advance_in_block(is_hole=True)
            return
        if not any(first <= index < first + count for first, count in self.allowed()):
            raise ValueError(
                f"{self.layout.describe(index)} (id {index}) cannot stand here; allowed id ranges: {self.allowed()}"
            )
        controls = self._controls
        if self._template is not None:
            self._advance_in_block(is_hole=False)
        elif self._header or index in self.layout.openings:
            self._extend_header(index)
        elif index == controls["eos"]:
            self._ended = True
        elif index == controls["bos"]:
            self._started = True
        elif index == self._plan_end:
            self._plan_end = None
        elif index == self.layout.end_answer:
            self._answered = True
        elif self._plan_end is None:
            self._plan_end = dict(self.layout.plans.values()).get(index)

    @property
    def _may_hide(self) -> bool:
        """Whether a cell may be hidden here: the next token is its first code, or the first one was a hole."""
        template = self._template
        if template is None or self._fills or int(template.forced[self._place]) != FREE:
            return False
        return self._hides_cell or self._codes % template.codebooks == 0

    def _advance_in_block(self, is_hole: bool) -> None:
        template = self._template
        assert template is not None
        if int(template.forced[self._place]) == FREE:
            self._codes, self._hides_cell = self._codes + 1, is_hole
            self._holes += [self._place] if is_hole else []
        self._place += 1
        if self._place == len(template):
            self._fills = bool(self._holes)
            self._template = hidden_template(template, torch.tensor(self._holes)) if self._holes else None
            self._place, self._codes, self._holes, self._hides_cell = 0, 0, [], False

    def _extend_header(self, index: int) -> None:
        self._header.append(index)
        # A header may be complete with the control that opens it, where the layout has a single grid.
        if self.layout.header_length(torch.tensor(self._header)) == len(self._header):
            name, grid, _ = self.layout.parse_header(self._header)
            self._header, self._template = [], self.layout.block(name, grid)

    @property
    def _between(self) -> bool:
        """Whether an item may begin here."""
        in_item = self._template is not None or self._header or self._plan_end is not None
        return self._started and not (in_item or self._answered or self._ended)
