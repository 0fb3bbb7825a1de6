"""Samples of pictures and clips: a random crop of one that can be read. Those that cannot are left out and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu_tokenizers.pixels.images import BadPicture
from emu_tokenizers.pixels.sources import Source
from emu_tokenizers.pixels.transforms import to_pixels

MIN_READ = 200
"""Number of sources that must have been read before a share of bad ones stops the run: of a few files one bad one says nothing."""

logger = logging.getLogger("emu.tokenizers")


class BadSamples(ValueError):
    """Too large a share of the samples cannot be used."""


def crop(images: Sequence[Image.Image], size: int, random: np.random.Generator) -> Tensor:
    """One random square of all images, at a random scale between the least possible and full size.

    Args:
        images: frames of one size; each side at least 1.
        size: side of the square that comes out.
        random: draws scale, place and mirror.

    Returns:
        float32 (T, 3, size, size) in [-1, 1].
    """
    width, height = images[0].size
    least = size / min(width, height)
    scale = float(np.exp(random.uniform(np.log(least), max(np.log(least), 0.0))))
    scaled = (max(size, round(width * scale)), max(size, round(height * scale)))
    left, top = (int(random.integers(0, side - size + 1)) for side in scaled)
    box = tuple(edge * width / scaled[0] if i % 2 == 0 else edge * height / scaled[1]
                for i, edge in enumerate((left, top, left + size, top + size)))  # fmt: skip
    frames = [image.resize((size, size), Image.Resampling.BICUBIC, box=box) for image in images]  # type: ignore[arg-type]
    pixels = torch.stack([to_pixels(frame) for frame in frames])
    return pixels.flip(-1) if random.integers(2) else pixels


class Samples:
    """Sources as they are read: those that cannot be are left out, and too many of them stop the run.

    Args:
        total: number of sources.
        max_bad_share: largest share of the sources read so far that may be left out; it counts from `MIN_READ` of them on.

    Attributes:
        bad: how many sources were left out, by reason.
    """

    def __init__(self, total: int, max_bad_share: float) -> None:
        self.total, self.max_bad_share = total, max_bad_share
        self.bad: Counter[str] = Counter()
        self._read: set[Source] = set()
        self._left_out: set[Source] = set()
        self._num_read = self._num_left_out = 0

    def renew(self, total: int) -> None:
        """Go on with so many other sources; those of before stay counted, and are not met again."""
        self._num_read, self._num_left_out = self._num_read + len(self._read), self._num_left_out + len(self._left_out)
        self.total, self._read, self._left_out = total, set(), set()

    def draw(
        self, sources: Sequence[Source], first: Source, frames: int, size: int, random: np.random.Generator
    ) -> Tensor:
        """One random square of some frames of a source; of another one of `sources`, which `random` draws, where that cannot be read.

        Args:
            sources: where others are taken from.
            first: of them.
            frames: how many; a shorter clip repeats its last one.
            size: side of the square in pixels.
            random: of all choices.

        Returns:
            float32 (frames, 3, size, size) in [-1, 1].

        Raises:
            BadSamples: see `read`.
        """
        source = first
        while not (images := self.read(source, frames, float(random.random()))):
            source = sources[int(random.integers(len(sources)))]
        return crop([*images, *[images[-1]] * (frames - len(images))], size, random)

    def read(self, source: Source, frames: int | None = None, place: float = 0.0) -> list[Image.Image]:
        """Frames of a source; none where it cannot be read.

        Args:
            source: picture or clip.
            frames: how many, None for all.
            place: where to start, in [0, 1): a share of the places that leave room for them.

        Raises:
            BadSamples: too large a share of the sources cannot be read, or none can.
        """
        if source in self._left_out:
            return []
        self._read.add(source)
        try:
            length = source.num_frames
            frames = length if frames is None else frames
            images = source.read(int(place * (max(length - frames, 0) + 1)), frames)
            if not images:
                raise BadPicture("empty", f"{source.name} has no frames")
            return images
        except (BadPicture, OSError) as error:
            self.leave_out(source, error)
            return []

    def leave_out(self, source: Source, error: Exception) -> None:
        """Count a source that cannot be used, and reads it no more.

        Raises:
            BadSamples: they are too many now.
        """
        reason = error.reason if isinstance(error, BadPicture) else type(error).__name__
        self._read.add(source)
        self._left_out.add(source)
        self.bad[reason] += 1
        logger.warning("left out %s (%s): %s", source.name, reason, error)
        bad, read = self._num_left_out + len(self._left_out), self._num_read + len(self._read)
        if len(self._left_out) == self.total:
            raise BadSamples(
                f"none of {self.total} sources can be read ({dict(self.bad)}); the last one: {error}"
            ) from error
        if read >= MIN_READ and bad > self.max_bad_share * read:
            raise BadSamples(
                f"{bad} of {read} sources cannot be read ({dict(self.bad)}), more than max_bad_share={self.max_bad_share} allows; "
                f"the last one: {error}"
            ) from error
