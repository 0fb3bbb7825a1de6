"""Documents of text and blocks in any order: the grammar says what may follow, the model what does."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from emu.documents import CodeSegment, Segment
from emu.generation.batch_requests import DocumentTextRequest, GridRequest
from emu.generation.linear import IdRange
from emu.generation.sampling import Sampling
from emu.layouts import BlockTemplate, Cursor, Layout

Work = Generator[Segment | GridRequest | DocumentTextRequest, Tensor | None, None]
"""Segments of a document, and requests whose outcomes are sent back."""
ROOM = 32
"""Tokens that a grammar may force within a text, beside a header that it knows."""


class Writer:
    """Writes one document after a prompt, piece by piece: it says what is to be done next, and whoever runs the model does it.

    Args:
        layout: the grammar.
        cursor: stands after the prompt.
        prompt: (n,) int64 ids from BOS on.
        text, codes: how tokens of text and of blocks are drawn.
        seed, stream: of the noise.
        max_text_tokens, max_blocks, positions: where a document ends that does not end by itself: tokens of text, blocks, and tokens of
            the whole. A block that does not fit is not written, unless the prompt asks for it.
        one_size: whether all blocks have the header of the first that is written.
        negative: what blocks are guided against: ids that the blocks written so far and the block's header follow; by default BOS, which
            the header alone follows.
    """

    def __init__(
        self,
        layout: Layout,
        cursor: Cursor,
        prompt: Tensor,
        *,
        text: Sampling,
        codes: Sampling,
        seed: int,
        stream: int,
        max_text_tokens: int,
        max_blocks: int,
        positions: int,
        one_size: bool = False,
        negative: Tensor | None = None,
    ) -> None:
        self.layout, self.cursor = layout, cursor
        self.text, self.codes, self.seed, self.stream = text, codes, seed, stream
        self.prompt_length = len(prompt)
        self.ids: list[int] = prompt.tolist()
        self.text_left, self.blocks_left, self.positions = max_text_tokens, max_blocks, positions
        self.negative, self.one_size = negative, one_size

    def work(self) -> Work:
        """Segments, each as soon as it is complete, and before them requests to a batch, whose outcomes are to be sent back."""
        ends = (*self.layout.openings, self.layout.vocabulary.control("eos"))
        while not self.cursor.ended:
            begun = len(self.ids)
            self._force()
            if following := self._following():
                yield self._text_request(following)
            yield from self.layout.parse(list(takewhile(lambda index: index not in ends, self.ids[begun:])))
            if self.cursor.block is None or (len(self.ids) > begun and not self._fits(self.cursor.block)):
                return
            request = self._block_request()
            codes = yield request
            assert codes is not None
            yield self._written(request, self.cursor.block, codes)

    def _fits(self, template: BlockTemplate) -> bool:
        return len(self.ids) + len(template) <= self.positions

    def _write(self, index: int) -> None:
        self.cursor.advance(index)
        self.ids.append(index)

    def _text_request(self, following: tuple[IdRange, ...]) -> DocumentTextRequest:
        """Text and the header after it, up to an open block or the end of the document."""
        longest = max(map(len, self.cursor.headers or [[]]))
        return DocumentTextRequest(
            torch.tensor(self.ids),
            self.text,
            following,
            self._follow,
            limit=max(0, self.text_left) + longest + ROOM,
            seed=self.seed,
            stream=self.stream,
            # The noise of a token is keyed by its place in the document, so that pieces of a document differ.
            start=len(self.ids) - self.prompt_length,
        )

    def _follow(self, index: int) -> tuple[Sequence[int], tuple[IdRange, ...]]:
        """Write a token that was drawn; what is forced after it, and what the next one may be."""
        self._write(index)
        self.text_left -= 1
        return self._force(), self._following()

    def _force(self) -> list[int]:
        """Write the tokens of text and header that the grammar leaves no choice of."""
        begun = len(self.ids)
        while len(following := self._following()) == 1 and following[0][1] == 1:
            self._write(following[0][0])
        return self.ids[begun:]

    def _following(self) -> tuple[IdRange, ...]:
        """What the next token of text or of a header may be; nothing within a block and at the end."""
        if self.cursor.block is not None or self.cursor.ended:
            return ()
        allowed = self.cursor.allowed()
        is_full = len(self.ids) >= self.positions
        if not self.blocks_left or is_full:
            allowed = tuple(span for span in allowed if not (span[1] == 1 and self.layout.opens(span[0])))
        if self.text_left <= 0 or is_full:
            # No more text: what is left is to end, or to open a block whose header is forced.
            allowed = tuple(span for span in allowed if span[1] == 1)[:1]
        return allowed

    def _block_request(self) -> GridRequest:
        header = self.layout.own_header(torch.tensor(self.ids))
        assert header is not None
        name, grid, _ = self.layout.parse_header(header.tolist())
        negative = None
        if self.codes.guided:
            opening = torch.tensor([self.layout.vocabulary.controls["bos"]]) if self.negative is None else self.negative
            negative = torch.cat([opening, header])
        start = len(self.ids) - self.prompt_length
        return GridRequest(
            torch.tensor(self.ids), negative, name, grid, self.codes, self.seed, self.stream, start=start
        )

    def _written(self, request: GridRequest, template: BlockTemplate, codes: Tensor) -> CodeSegment:
        """The segment of a block (*grid) that was drawn; the document goes on after it."""
        header = self.layout.own_header(request.prompt)
        assert header is not None
        meta = self.layout.parse_header(header.tolist())[2]
        ids = template.fill(codes)
        for index in ids.tolist():
            self._write(index)
        if self.negative is not None:
            self.negative = torch.cat([self.negative, header, ids])
        if self.one_size:
            self.cursor.headers = [header.tolist()]
        self.blocks_left -= 1
        return CodeSegment(request.modality, codes, meta)


def next_piece(work: Work, outcome: Tensor | None) -> Segment | GridRequest | DocumentTextRequest | None:
    """What comes after the outcome of a request, or after a segment (None); None at the end."""
    try:
        return work.send(outcome)
    except StopIteration:
        return None
