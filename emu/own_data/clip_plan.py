"""The plan of `own-videos`: that of pictures, with a length in time.

A step of the vision tokenizer has one shape, so that clips of several sizes and lengths are brought to one; each keeps its own rate, which
its document says and which is asked for when a clip is drawn.
"""

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
FINE = 32
"""Frames up to this side have a code for 4x4 pixels, larger ones for 8x8: at 8x8 what moves in small frames is lost (1.4 dB less after as
many steps), and four times as many codes of larger frames would take hours to learn."""
SHOWN = 4


class ClipPlan(PicturePlan):
    """Looks at a source of captioned clips; arguments as of `PicturePlan`, `options` may hold `fps` and `clip_frames`."""

    _lengths: list[int]
    _sizes: set[tuple[int, int]]
    _rates: set[float]

    def read(self, source: RecordSource, record: Record) -> tuple[np.ndarray, str]:
        """The first frame of a clip, and its caption."""
        clip, caption = captioned_clip(source, record)
        self._lengths.append(len(clip.frames))
        self._sizes.add(clip.frames.shape[1:3])
        self._rates.add(clip.fps)
        return clip.frames[0], caption

    def look(self) -> Facts:
        """See `PicturePlan`."""
        self._lengths, self._sizes, self._rates = [], set(), set()
        facts = super().look()
        return replace(facts, frames=self._length)

    def shape(self, facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Sizes and widths, and why."""
        frames = max(TEMPORAL_FACTOR, min(MOST_FRAMES, facts.frames) // TEMPORAL_FACTOR * TEMPORAL_FACTOR)
        size = self.size or max(SMALLEST, min(LARGEST_FRAME, facts.side // 8 * 8))
        values, reasons = shape(facts, size, self.held_out, frames, 4 if size <= FINE else 8)
        return {**values, "frames": frames}, reasons

    def make(self) -> tuple[dict[str, Any], list[str]]:
        """See `PicturePlan`."""
        values, reasons = super().make()
        return values, [*self._brought_to(values["size"], values["frames"]), *reasons]

    @property
    def _length(self) -> int:
        """Frames of a clip in the median."""
        return int(statistics.median(self._lengths))

    def _brought_to(self, size: int, frames: int) -> list[str]:
        """What becomes of sizes, lengths and rates."""
        length = self._length
        sizes = [f"{width}x{height}" for height, width in sorted(self._sizes)]
        rates = [f"{rate:g}" for rate in sorted(self._rates)]
        more = [", ..." if len(listed) > SHOWN else "" for listed in (sizes, rates)]
        cut = f", and more than {MOST_FRAMES} take hours" if length > MOST_FRAMES else ""
        return [
            f"{frames} frames, {TEMPORAL_FACTOR} to a group of codes: clips have {length} in the median{cut}; of longer ones the first, of "
            "shorter ones the last is repeated",
            f"all frames are brought to {size}x{size}, the middle of those of another shape, since a step of the vision tokenizer has one "
            f"shape; the clips have {', '.join(sizes[:SHOWN])}{more[0]}",
            f"each clip keeps its rate ({', '.join(rates[:SHOWN])}{more[1]} frames a second), which its document says",
        ]

    def pixels(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of a step's pixels."""
        return values["vision_batch"], values["frames"], 3, values["size"], values["size"]
