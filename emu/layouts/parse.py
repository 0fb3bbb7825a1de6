"""A sequence read back: where its text, plans and blocks begin and end, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from emu.documents import CodeSegment, Segment, TextSegment
from emu.layouts.grammar import Grammar
from emu.layouts.infill import read_hidden


def parse_segments(layout: Grammar, ids: Tensor | Sequence[int]) -> Iterator[tuple[Segment, int, int]]:
    """Segments of a sequence with their first token and the one after their last; BOS, EOS and the padding after it are optional.

    Raises:
        ValueError: the sequence is not of this layout; the message names the position.
    """
    ids = torch.as_tensor(ids, dtype=torch.int64).cpu()
    controls = layout.vocabulary.controls
    place, end = 0, len(ids)
    if end and ids[0] == controls["bos"]:
        place = 1
    while end > place and ids[end - 1] == controls["pad"]:
        end -= 1
    if end > place and ids[end - 1] == controls["eos"]:
        end -= 1
    segment: Segment
    scopes = {before: scope for scope, (before, _) in layout.plans.items()}
    while place < end:
        start, index = place, int(ids[place])
        if index in (layout.begin_answer, layout.end_answer):
            place += 1
            continue
        if index in layout.openings:
            segment, place = _block(layout, ids, place, end)
        elif index in scopes:
            segment, place = _plan(layout, ids, place, end, scopes[index])
        else:
            segment, place = _text(layout, ids, place, end)
        yield segment, start, place


def _plan(layout: Grammar, ids: Tensor, place: int, end: int, scope: str) -> tuple[Segment, int]:
    closing = layout.plans[scope][1]
    mark = (ids[place:end] == closing).nonzero()
    if not len(mark):
        raise ValueError(f"the plan that begins at position {place} has no end ({layout.describe(closing)})")
    stop = place + int(mark[0])
    if stop == place + 1:
        return TextSegment(ids[:0], plan=scope), stop + 1
    text, found = _text(layout, ids, place + 1, stop)
    if found != stop:
        raise ValueError(
            f"position {found} holds id {int(ids[found])} ({layout.describe(int(ids[found]))}) within a plan"
        )
    return TextSegment(text.ids, plan=scope), stop + 1


def _text(layout: Grammar, ids: Tensor, place: int, end: int) -> tuple[TextSegment, int]:
    first, count = layout.vocabulary.text
    is_text = (ids[place:end] >= first) & (ids[place:end] < first + count)
    stop = place + int(is_text.long().cumprod(0).sum())
    if stop == place:
        raise ValueError(
            f"position {place} holds id {int(ids[place])} ({layout.describe(int(ids[place]))}) where text or a block should begin"
        )
    return TextSegment(ids[place:stop]), stop


def _block(layout: Grammar, ids: Tensor, place: int, end: int) -> tuple[CodeSegment, int]:
    length = layout.header_length(ids[place:end])
    if length is None:
        raise ValueError(f"the block that begins at position {place} has no {layout.header_end}")
    start = place + length
    name, grid, meta = layout.parse_header(ids[place:start].tolist())
    template = layout.block(name, grid)
    try:
        if layout.hole is not None and bool((ids[start : start + len(template)] == layout.hole).any()):
            codes, hidden, used = read_hidden(template, ids[start:end], layout.hole)
            return CodeSegment(name, codes, meta, hidden=hidden), start + used
        codes = template.read(ids[start:end])
    except ValueError as error:
        raise ValueError(f"in the {name!r} block that begins at position {place}: {error}") from error
    return CodeSegment(name, codes, meta), start + len(template)
