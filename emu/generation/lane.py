"""One sequence of a running batch: what it begins with, what is drawn step by step, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emu.generation.batch_requests import BatchRequest, DocumentTextRequest, FillRequest, GridRequest, TextRequest
from emu.generation.filling import PartialBlock, partial_blocks
from emu.generation.grid_schedule import OpenSteps, Step, read_codes, schedule_grid
from emu.generation.limits import check_whole, room_for_text
from emu.generation.prompt_ids import check_prompts, known_codes
from emu.generation.sampling import Sampling
from emu.generation.ticket import Ticket
from emu.layouts import BlockTemplate, Layout

OnRow = Callable[[int, Tensor], None]
OnText = Callable[[Tensor], None]


@dataclass(eq=False)
class Lane:
    """A request while it waits and runs; made and read by the batch alone.

    Attributes:
        ticket: its outcome.
        prompts: (n,) ids of each of its rows: the conditional one, then with guidance the unconditional one.
        ids: (n,) int64 of what is written: forced and known tokens in place, 0 where one will be drawn.
        steps: the draws, in order.
        sampling, seed, stream, start: of the draws; `start` is the position of the first id in the noise.
        finish: what the ids (n,) of the whole become; the outcome.
        template: of a block; None for text.
        window: tokens of a pass.
        after: called with each token that is drawn; returns the ids that are forced after it, None where it ends the sequence before it.
        report: called with (ids on any device, steps done before, steps done now) while it runs.
        bytes: of memory that it takes.
        rows: where its rows are in the cache.
        reported: draws that `report` was told of.
        done: draws so far.
        is_stopped: whether its last draw was the token that ends it.
        fed: tokens that each of its rows had in the last pass.
        place: position that is drawn next, where a pass settles several.
        broken_at: length of the sequence of which the next logits held NaN or infinity.
        error: what `after` raised.
    """

    ticket: Ticket
    prompts: list[Tensor]
    ids: Tensor
    steps: Sequence[Step]
    sampling: Sampling
    seed: int
    stream: int
    finish: Callable[[Tensor], Tensor]
    template: BlockTemplate | None = None
    window: int = 1
    start: int = 0
    after: Callable[[int], Sequence[int] | None] | None = None
    report: Callable[[Tensor, int, int], None] | None = None
    bytes: int = 0
    rows: list[int] = field(default_factory=list)
    reported: int = 0
    done: int = 0
    is_stopped: bool = False
    fed: int = 1
    place: int = 0
    broken_at: int | None = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.place = self.given

    @property
    def given(self) -> int:
        """Ids that belong to the prompts."""
        return self.steps[0].slot if len(self.steps) else len(self.ids)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to draw."""
        return self.is_stopped or self.done == len(self.steps)

    @property
    def draws(self) -> int:
        """Tokens drawn so far, the one that stopped it included."""
        return self.done + self.is_stopped

    @property
    def length(self) -> int:
        """Ids that are final."""
        return self.steps[self.done - 1].stop if self.done else self.given

    @property
    def longest(self) -> int:
        """Tokens of its longest prompt."""
        return max(map(len, self.prompts))

    @property
    def room(self) -> int:
        """Slots that each of its rows needs after its prompt."""
        return len(self.ids) - self.given + (self.window if self.window > 1 else 0)


def lane_of(
    request: BatchRequest, layout: Layout, positions: int, on_row: OnRow | None = None, on_text: OnText | None = None
) -> Lane:
    """Check a request and lay out what will be drawn.

    Args:
        positions: of the model.
        on_row: of a block, called with (row number, codes of that row) when a line along the grid's fastest axis is done.
        on_text: of a `TextRequest`, called with the ids (n,) so far after each token.

    Raises:
        TypeError, ValueError: it is no request, or a part of it does not fit.
    """
    if isinstance(request, TextRequest):
        return _text_lane(request, layout, positions, on_text)
    if isinstance(request, GridRequest):
        return _grid_lane(request, layout, on_row)
    if isinstance(request, FillRequest):
        return _fill_lane(request, layout, on_row)
    if isinstance(request, DocumentTextRequest):
        return _document_lane(request, layout)
    raise TypeError(
        f"the request is {type(request).__name__}; expected a GridRequest, a FillRequest, a TextRequest or a DocumentTextRequest"
    )


def _text_lane(request: TextRequest, layout: Layout, positions: int, on_text: OnText | None) -> Lane:
    (prompt,) = check_prompts([request.prompt], layout.vocabulary.size, "prompt")
    most = check_whole("max_new_tokens", request.max_new_tokens, least=1)
    if request.sampling.guided:
        raise ValueError(
            f"guidance_scale is {request.sampling.guidance_scale}; text is written without guidance, with 1"
        )
    (limit,) = room_for_text([prompt], positions, most)
    end = layout.vocabulary.control("eos")

    def report(ids: Tensor, before: int, now: int) -> None:
        if on_text is not None:
            on_text(ids[:now].cpu())

    return Lane(
        Ticket(),
        [prompt],
        torch.zeros(limit, dtype=torch.int64),
        OpenSteps(limit, (layout.vocabulary.text, (end, 1))),
        request.sampling,
        *_noise(request),
        finish=lambda ids: ids,
        after=lambda index: None if index == end else (),
        report=report if on_text is not None else None,
    )


def _document_lane(request: DocumentTextRequest, layout: Layout) -> Lane:
    (prompt,) = check_prompts([request.prompt], layout.vocabulary.size, "prompt")
    steps = [Step(0, 1, request.ranges)]

    def after(index: int) -> Sequence[int]:
        forced, following = request.follow(index)
        slot, ranges = steps[-1].slot, steps[-1].ranges
        stop = slot + 1 + len(forced)
        steps[-1] = Step(slot, stop, ranges)
        if following:
            steps.append(Step(stop, stop + 1, following))
        return forced

    return Lane(
        Ticket(),
        [prompt],
        torch.zeros(check_whole("limit", request.limit, least=1), dtype=torch.int64),
        steps,
        request.sampling,
        *_noise(request),
        finish=lambda ids: ids,
        start=check_whole("start", request.start, least=0),
        after=after,
    )


def _grid_lane(request: GridRequest, layout: Layout, on_row: OnRow | None) -> Lane:
    template = layout.block(request.modality, request.grid)
    prefix = request.prefix_codes
    # As (k, ...): the codes of this block alone.
    known = known_codes(None if prefix is None else prefix[None], template, request.grid, 1)
    schedule = schedule_grid(template, known)
    given = schedule.ids[0, : schedule.given]
    lane = Lane(
        Ticket(),
        [torch.cat([row, given]) for row in _sides(request, layout)],
        schedule.ids[0],
        schedule.steps,
        request.sampling,
        *_noise(request),
        finish=lambda ids: read_codes(template, ids[None])[0],
        template=template,
        window=check_whole("window", request.window, least=1),
        start=check_whole("start", request.start, least=0),
    )
    if on_row is not None:
        lane.report = _row_report(on_row, template, len(request.grid), known.shape[1])
    return lane


def _row_report(on_row: OnRow, template: BlockTemplate, axes: int, known: int) -> Callable[[Tensor, int, int], None]:
    free = template.free.nonzero()[:, 0]
    shape = template.shape[axes - 1 :]  # the codes of a cell are its last axis where there are several codebooks
    line = math.prod(shape)

    def report(ids: Tensor, before: int, now: int) -> None:
        for row in range((known + before) // line, (known + now) // line):
            places = free[row * line : (row + 1) * line]
            on_row(row, (ids[places.to(ids.device)].cpu() - template.first[places]).unflatten(0, shape))

    return report


def _fill_lane(request: FillRequest, layout: Layout, on_row: OnRow | None) -> Lane:
    block = layout.block(request.modality, request.grid)
    (partial,) = partial_blocks(block, request.codes[None], request.hidden[None], 1)
    sides, window = _sides(request, layout), check_whole("window", request.window, least=1)
    if not partial.hidden.any():
        done = partial.codes
        nothing = torch.empty(0, dtype=torch.int64)
        return Lane(Ticket(), sides, nothing, (), request.sampling, *_noise(request), finish=lambda ids: done)
    shown, template = partial.shown(layout)
    schedule = schedule_grid(template, torch.empty(1, 0, dtype=torch.int64))
    lane = Lane(
        Ticket(),
        [torch.cat([row, shown]) for row in sides],
        schedule.ids[0],
        schedule.steps,
        request.sampling,
        *_noise(request),
        finish=lambda ids: partial.filled(read_codes(template, ids[None])[0]),
        template=template,
        window=window,
    )
    if on_row is not None:
        lane.report = _filled_row_report(on_row, template, partial)
    return lane


def _filled_row_report(
    on_row: OnRow, template: BlockTemplate, partial: PartialBlock
) -> Callable[[Tensor, int, int], None]:
    """Tells of a line when the last hidden cell of it and of those before it is drawn; kept codes are part of it."""
    places = template.free.nonzero()[:, 0]
    lines = partial.hidden.flatten(0, -2)
    needed = (lines.sum(-1).cumsum(0) * partial.template.codebooks).tolist()
    told = 0

    def report(ids: Tensor, before: int, now: int) -> None:
        nonlocal told
        drawn = ids[places.to(ids.device)].cpu() - template.first[places]
        rows = partial.filled(drawn).flatten(0, partial.hidden.ndim - 2)
        while told < len(needed) and needed[told] <= now:
            on_row(told, rows[told])
            told += 1

    return report


def _sides(request: GridRequest | FillRequest, layout: Layout) -> list[Tensor]:
    """The prompt, and with guidance the negative prompt."""
    sides = check_prompts([request.prompt], layout.vocabulary.size, "prompt")
    if request.sampling.guided:
        if request.negative is None:
            raise ValueError(
                f"guidance_scale is {request.sampling.guidance_scale} and negative None; give what it is guided against, or "
                "guidance_scale=1"
            )
        sides += check_prompts([request.negative], layout.vocabulary.size, "negative")
    return sides


def _noise(request: BatchRequest) -> tuple[int, int]:
    """Seed and stream, 64 bits each."""
    for name, value in (("seed", request.seed), ("stream", request.stream)):
        if not -(2**63) <= check_whole(name, value, least=-(2**64)) < 2**63:
            raise ValueError(f"{name} {value} does not fit 64 bits")
    return request.seed, request.stream
