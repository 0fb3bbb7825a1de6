"""Crops of pictures and clips that come as streams, as functions of seed and step."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emu_tokenizers.pixels.streams import PixelStream
from emu_tokenizers.training.pixel_loader import KINDS, Places
from emu_tokenizers.training.pixel_samples import Samples
from emu_tokenizers.training.stream_windows import StreamPosition, StreamWindows


class StreamedPixels:
    """A `StepSource` of streams. A rank reads the pixels of its own samples alone; of what stands between them it reads headers or rows.

    Args:
        streams: by kind, "image" and "video".
        counts: samples of each kind in a step, over all ranks.
        size: side of a crop in pixels.
        frames: length of a clip.
        shuffle: samples that are shuffled at a time, rounded up to whole steps.
        seed: of the order of parts and samples.
        max_bad_share: see `Samples`.
    """

    def __init__(
        self,
        streams: Mapping[str, PixelStream],
        counts: Mapping[str, int],
        size: int,
        frames: int,
        shuffle: int,
        seed: int,
        max_bad_share: float,
    ) -> None:
        self.counts, self.size, self.frames = dict(counts), size, frames
        self._windows = {
            kind: StreamWindows(streams[kind], -(-shuffle // count) * count, seed) for kind, count in counts.items()
        }
        self._samples = {kind: Samples(0, max_bad_share) for kind in counts}
        self._counted: dict[str, StreamPosition] = {}

    @property
    def bad(self) -> Counter[str]:
        """How many sources were left out, by reason."""
        return sum((samples.bad for samples in self._samples.values()), Counter())

    @property
    def identity(self) -> dict[str, Any]:
        """What samples are cut from: the parts of the streams in a digest, how they are shuffled, and the size of what comes out."""
        parts = {kind: [list(windows.stream.parts), windows.size] for kind, windows in self._windows.items()}
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return {"sources": digest, "size": self.size, "frames": self.frames}

    @property
    def positions(self) -> dict[str, list[int]]:
        """Where the streams stand, as plain numbers."""
        return {kind: list(windows.position) for kind, windows in self._windows.items()}

    def go_to(self, positions: Mapping[str, Sequence[int]]) -> None:
        """Go on from where streams stood."""
        for kind, numbers in positions.items():
            self._windows[kind].go_to(StreamPosition(*map(int, numbers)))

    def draw(self, seed: int, step: int, places: Places) -> dict[str, Tensor]:
        """See `StepSource`."""
        return {
            kind: torch.stack([self._sample(kind, seed, step, place) for place in chosen])
            for kind, chosen in places.items()
        }

    def _sample(self, kind: str, seed: int, step: int, place: int) -> Tensor:
        windows, samples = self._windows[kind], self._samples[kind]
        source = windows.sample(step * self.counts[kind] + place)
        if self._counted.get(kind) != windows.position:
            self._counted[kind] = windows.position
            samples.renew(len(set(windows.sources)))
        random = np.random.default_rng((seed, step, KINDS.index(kind), place))
        frames = 1 if kind == "image" else self.frames
        pixels = samples.draw(windows.sources, source, frames, self.size, random)
        return pixels[0] if kind == "image" else pixels
