"""The job of generating one block of codes behind each of several prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from emu.generation.decoding import decode_block
from emu.generation.grid_schedule import GridSchedule, OnRow, read_codes, row_events, schedule_grid
from emu.generation.prompts import Prompts, check_headers, check_prompts, known_codes, negatives, repeated
from emu.generation.sampling import Keys, Sampling
from emu.generation.session import Session
from emu.generation.speculation import Speculator
from emu.layouts import BlockTemplate, Layout
from emu.modalities import Grid


@dataclass
class GridJob:
    """What is asked for, and everything that is known about it before the first pass.

    Attributes:
        template, schedule: of the block.
        rows: what each row of the session begins with: the conditional rows, then the unconditional ones.
        guidance_rows: rows of each sequence, G: 1 or, with guidance, 2.
        sequences: number of blocks.
        codes: (sequences, *grid) int64, with a last axis where there are several codebooks; complete after `run`, or from the start where
            every code is given.
    """

    layout: Layout
    vocab_size: int
    modality: str
    grid: Grid
    sampling: Sampling
    window: int
    template: BlockTemplate = field(init=False)
    schedule: GridSchedule = field(init=False)
    rows: list[Tensor] = field(init=False)
    guidance_rows: int = field(init=False)
    codes: Tensor = field(init=False)

    def prepare(
        self, prompt_ids: Prompts, negative_ids: Prompts | None, prefix_codes: Tensor | None, streams: int
    ) -> None:
        """Check the arguments and schedule.

        Raises:
            TypeError, ValueError: an argument does not fit.
        """
        self.template = self.layout.block(self.modality, self.grid)
        prompts = check_prompts(prompt_ids, self.vocab_size)
        check_headers(prompts, self.layout, self.modality, self.grid)
        sides = [prompts]
        if self.sampling.guided:
            sides.append(negatives(prompts, negative_ids, self.layout, self.vocab_size))
        if self.window > 1 and min(len(row) for side in sides for row in side) < 2:
            raise ValueError("window above 1 needs prompts and negative prompts of two ids or more")
        known = known_codes(prefix_codes, self.template, self.grid, len(prompts)).repeat_interleave(streams, 0)
        self.schedule = schedule_grid(self.template, known)
        given = self.schedule.ids[:, : self.schedule.given]
        self.rows = [torch.cat(pair) for side in sides for pair in zip(repeated(side, streams), given, strict=True)]
        self.guidance_rows = len(sides)
        self.codes = read_codes(self.template, self.schedule.ids)

    @property
    def sequences(self) -> int:
        return len(self.schedule.ids)

    @property
    def room(self) -> int:
        """Slots behind the rows."""
        return len(self.template) - self.schedule.given + (self.window if self.window > 1 else 0)

    @property
    def fed_first(self) -> list[Tensor]:
        """What the session is prefilled with; a window begins with the last known token."""
        return self.rows if self.window == 1 else [row[:-1] for row in self.rows]

    def run(self, session: Session, keys: Keys, on_row: OnRow | None) -> None:
        """Generate."""
        known = int(self.template.free[: self.schedule.given].sum())
        on_sampled = None
        if on_row is not None:
            tell = on_row

            def checked(row: int, codes: Tensor) -> None:
                session.logits_seen.check()
                tell(row, codes)

            on_sampled = row_events(checked, self.template, len(self.grid), known)
        if self.window == 1:
            ids = decode_block(session, self.schedule, self.sampling, keys, on_sampled)
        else:
            last = torch.stack([row[-1] for row in self.rows])
            speculator = Speculator(session, last, self.template, self.schedule, self.window, self.sampling, keys)
            ids = speculator.run(on_sampled)
        self.codes = read_codes(self.template, ids.cpu())
