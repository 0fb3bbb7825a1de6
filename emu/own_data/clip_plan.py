"""The plan of `own-videos`: that of pictures, with a length in time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from emu.data.tokenizing import Record, RecordSource
from emu.own_data.clip_store import captioned_clip
from emu.own_data.picture_plan import SMALLEST, TEMPORAL_FACTOR, Facts, PicturePlan, shape

LARGEST_FRAME, MOST_FRAMES = 32, 16


class ClipPlan(PicturePlan):
    """Looks at a source of captioned clips; arguments as of `PicturePlan`, `options` may hold `fps` and `clip_frames`."""

    _lengths: list[int]

    def read(self, source: RecordSource, record: Record) -> tuple[np.ndarray, str]:
        """The first frame of a clip, and its caption."""
        clip, caption = captioned_clip(source, record)
        self._lengths.append(len(clip.frames))
        return clip.frames[0], caption

    def look(self) -> Facts:
        """See `PicturePlan`."""
        self._lengths = []
        facts = super().look()
        return replace(facts, frames=int(statistics.median(self._lengths)))

    def shape(self, facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Sizes and widths, and why."""
        frames = max(TEMPORAL_FACTOR, min(MOST_FRAMES, facts.frames) // TEMPORAL_FACTOR * TEMPORAL_FACTOR)
        size = self.size or max(SMALLEST, min(LARGEST_FRAME, facts.side // 8 * 8))
        values, reasons = shape(facts, size, self.held_out, frames)
        told = f"{frames} frames, four to a group of codes: clips have {facts.frames} in the median, and more than {MOST_FRAMES} take hours"
        return {**values, "frames": frames}, [told, *reasons]

    def pixels(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of a step's pixels."""
        return values["vision_batch"], values["frames"], 3, values["size"], values["size"]
