"""The job of generating one block of codes after each of several prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generation.decoding import decode_block
from emu.generation.grid_schedule import GridSchedule, OnRow, read_codes, row_events, schedule_grid
from emu.generation.prompt_ids import known_codes, repeated
from emu.generation.sampling import Keys, Sampling
from emu.generation.session import Session
from emu.generation.speculation import Speculator
from emu.layouts import BlockTemplate
from emu.modalities import Grid


@dataclass
class GridJob:
    """What is asked for, and everything that is known about it before the first pass.

    Attributes:
        template, schedule: of the block.
        grid: axis lengths of the block, slowest first.
        sampling: how codes are drawn.
        window: tokens tried in one pass.
        rows: what each row of the session begins with: the conditional rows, then the unconditional ones.
        codes: (sequences, *grid) int64, with a last axis where there are several codebooks; complete after `run`, or from the start where
            every code is given.
    """

    template: BlockTemplate
    schedule: GridSchedule
    grid: Grid
    sampling: Sampling
    window: int
    rows: list[Tensor]
    codes: Tensor

    @classmethod
    def of(
        cls,
        template: BlockTemplate,
        grid: Grid,
        sampling: Sampling,
        prompts: Sequence[Tensor],
        negatives: Sequence[Tensor],
        *,
        window: int,
        prefix_codes: Tensor | None,
        streams: int,
    ) -> GridJob:
        """Schedule the block after each prompt, `streams` times each; see `Engine.generate_grids`.

        Raises:
            ValueError: the given codes do not fit the block, or a window has no token to begin with.
        """
        sides = [prompts, negatives] if sampling.guided else [prompts]
        # A window is fed from the last known token on, so that the prefill needs one before it.
        if window > 1 and min(len(row) for side in sides for row in side) < 2:
            raise ValueError("window above 1 needs prompts and negative prompts of two ids or more")
        known = known_codes(prefix_codes, template, grid, len(prompts)).repeat_interleave(streams, 0)
        schedule = schedule_grid(template, known)
        given = schedule.ids[:, : schedule.given]
        rows = [torch.cat(pair) for side in sides for pair in zip(repeated(side, streams), given, strict=True)]
        return cls(template, schedule, grid, sampling, window, rows, read_codes(template, schedule.ids))

    @property
    def sequences(self) -> int:
        """Number of blocks."""
        return len(self.schedule.ids)

    @property
    def guidance_rows(self) -> int:
        """Rows of each sequence, G: 1 or, with guidance, 2."""
        return len(self.rows) // self.sequences

    @property
    def room(self) -> int:
        """Slots after the rows."""
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
            report = on_row

            # On a GPU logits are looked at late; nothing may be handed out that was drawn from NaN.
            def checked(row: int, codes: Tensor) -> None:
                session.logits_seen.check()
                report(row, codes)

            on_sampled = row_events(checked, self.template, len(self.grid), known)
        if self.window == 1:
            ids = decode_block(session, self.schedule, self.sampling, keys, on_sampled)
        else:
            last = torch.stack([row[-1] for row in self.rows])
            speculator = Speculator(session, last, self.template, self.schedule, self.window, self.sampling, keys)
            ids = speculator.run(on_sampled)
        self.codes = read_codes(self.template, ids.cpu())
