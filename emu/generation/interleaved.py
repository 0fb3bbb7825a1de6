"""Documents of text and blocks in any order: the grammar says what may follow, the model what does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import takewhile

import torch
from torch import Tensor

from emu.documents import CodeSegment, Segment
from emu.generation.batch_requests import GridRequest
from emu.generation.linear import IdRange
from emu.generation.sampling import Keys, Sampling
from emu.generation.session import GenerationStats, Session
from emu.layouts import BlockTemplate, Cursor, Layout

OpenSession = Callable[[list[Tensor], int, int], AbstractContextManager[Session]]
"""(rows, guidance_rows, room) -> a session."""
DrawBlock = Callable[[GridRequest], tuple[Tensor, GenerationStats]]
"""A block -> its codes (*grid), with a last axis where there are several codebooks, and what was done for it."""


class Writer:
    """Writes one document after a prompt.

    Args:
        layout: the grammar.
        cursor: stands after the prompt.
        prompt: (n,) int64 ids from BOS on.
        open_session: makes sessions, for text.
        draw_block: draws blocks.
        text, codes: how tokens of text and of blocks are drawn.
        keys: of one sequence.
        max_text_tokens, max_blocks, positions: where a document ends that does not end by itself: tokens of text, blocks, and tokens of
            the whole. A block that does not fit is not written, unless the prompt asks for it.
        one_size: whether all blocks have the header of the first that is written.
        negative: what blocks are guided against: ids that the blocks written so far and the block's header follow; by default BOS, which
            the header alone follows.

    Attributes:
        passes, tokens: forward passes and sampled tokens so far.
    """

    def __init__(
        self,
        layout: Layout,
        cursor: Cursor,
        prompt: Tensor,
        open_session: OpenSession,
        draw_block: DrawBlock,
        *,
        text: Sampling,
        codes: Sampling,
        keys: Keys,
        max_text_tokens: int,
        max_blocks: int,
        positions: int,
        one_size: bool = False,
        negative: Tensor | None = None,
    ) -> None:
        self.layout, self.cursor, self.open_session, self.draw_block = layout, cursor, open_session, draw_block
        self.text, self.codes, self.keys = text, codes, keys
        self.prompt_length = len(prompt)
        self.ids: list[int] = prompt.tolist()
        self.text_left, self.blocks_left, self.positions = max_text_tokens, max_blocks, positions
        self.passes = self.tokens = 0
        self.negative, self.one_size = negative, one_size

    def segments(self) -> Iterator[Segment]:
        """The segments, each as soon as it is complete."""
        ends = (*self.layout.openings, self.layout.vocabulary.control("eos"))
        while not self.cursor.ended:
            begun = len(self.ids)
            if self.cursor.block is None:
                self._write_text()
            yield from self.layout.parse(list(takewhile(lambda index: index not in ends, self.ids[begun:])))
            if self.cursor.block is None or (len(self.ids) > begun and not self._fits(self.cursor.block)):
                return
            yield self._write_block(self.cursor.block)

    def _fits(self, template: BlockTemplate) -> bool:
        return len(self.ids) + len(template) <= self.positions

    def _write(self, index: int) -> None:
        self.cursor.advance(index)
        self.ids.append(index)

    def _write_text(self) -> None:
        """Text and the header after it, up to an open block or the end of the document."""
        longest = max(map(len, self.cursor.headers or [[]]))
        with self.open_session([torch.tensor(self.ids)], 1, self.text_left + longest + 4) as session:
            fed = len(self.ids)
            while self.cursor.block is None and not self.cursor.ended:
                allowed = self._allowed()
                if not allowed:
                    break
                # Forced tokens take no draw and no pass of their own: they are fed together with the next one that is drawn.
                if len(allowed) == 1 and allowed[0][1] == 1:
                    self._write(allowed[0][0])
                    continue
                if fed < len(self.ids):
                    session.advance(torch.tensor([self.ids[fed:]], device=session.hidden.device))
                    fed = len(self.ids)
                offset = int(self.keys.draw(session.logits(allowed), self.text, len(self.ids) - self.prompt_length))
                self._write(_pick(allowed, offset))
                self.text_left -= 1
                self.tokens += 1
            self.passes += session.passes

    def _allowed(self) -> tuple[IdRange, ...]:
        allowed = self.cursor.allowed()
        is_full = len(self.ids) >= self.positions
        if not self.blocks_left or is_full:
            allowed = tuple(span for span in allowed if not (span[1] == 1 and self.layout.opens(span[0])))
        if self.text_left <= 0 or is_full:
            # No more text: what is left is to end, or to open a block whose header is forced.
            allowed = tuple(span for span in allowed if span[1] == 1)[:1]
        return allowed

    def _write_block(self, template: BlockTemplate) -> CodeSegment:
        header = self.layout.own_header(torch.tensor(self.ids))
        assert header is not None
        name, grid, meta = self.layout.parse_header(header.tolist())
        negative = None
        if self.codes.guided:
            opening = torch.tensor([self.layout.vocabulary.controls["bos"]]) if self.negative is None else self.negative
            negative = torch.cat([opening, header])
        codes, stats = self.draw_block(
            GridRequest(
                torch.tensor(self.ids),
                negative,
                name,
                grid,
                self.codes,
                int(self.keys.seed),
                int(self.keys.stream),
                # The noise of a code is keyed by its place in the document, so that blocks of a document differ.
                start=len(self.ids) - self.prompt_length,
            )
        )
        self.passes += stats.passes
        self.tokens += stats.tokens
        ids = template.fill(codes)
        for index in ids.tolist():
            self._write(index)
        if self.negative is not None:
            self.negative = torch.cat([self.negative, header, ids])
        if self.one_size:
            self.cursor.headers = [header.tolist()]
        self.blocks_left -= 1
        return CodeSegment(name, codes, meta)


def _pick(ranges: tuple[IdRange, ...], offset: int) -> int:
    for first, count in ranges:
        if offset < count:
            return first + offset
        offset -= count
    raise AssertionError("an offset lies within its ranges")
