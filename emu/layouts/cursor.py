"""The grammar step by step: which tokens may follow what was written so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emu.layouts.grammar import BlockTemplate, Grammar, IdRange


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
        return bool(self._header) or self._place > 0

    def allowed(self) -> tuple[IdRange, ...]:
        """Disjoint id ranges of the next token."""
        controls = self._controls
        if self._ended:
            return ((controls["pad"], 1),)
        if not self._started:
            return ((controls["bos"], 1),)
        if self._template is not None:
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
        # A mark of prompts: it may be read here, and `allowed` does not offer it, so that no model writes it.
        if self._between and index == self.layout.begin_answer:
            return
        if not any(first <= index < first + count for first, count in self.allowed()):
            raise ValueError(
                f"{self.layout.describe(index)} (id {index}) cannot stand here; allowed id ranges: {self.allowed()}"
            )
        controls = self._controls
        if self._template is not None:
            self._place += 1
            if self._place == len(self._template):
                self._template, self._place = None, 0
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
