"""Pictures and clips to train a vision tokenizer on, from anywhere that `emu_tokenizers.pixels.sources` knows.

Every crop of a run is a function of (seed, step, place in the step), so the loader's state is the number of the step. Files that cannot be
read are left out, counted by reason, and stop the run when there are too many.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu_tokenizers.pixels.images import BadPicture
from emu_tokenizers.pixels.sources import MAX_MEMBER_BYTES, PHOTOGRAPHS, Source, clip_sources, picture_sources
from emu_tokenizers.pixels.transforms import to_pixels
from emu_tokenizers.training.pixel_loader import PixelLoader, SampledPixels

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


class PictureData(SampledPixels):
    """Random crops of pictures and clips.

    Args:
        images: where pictures come from, see `emu_tokenizers.pixels.sources.picture_sources`; None for none.
        videos: where clips come from, see `emu_tokenizers.pixels.sources.clip_sources`; None for none.
        size: side of a crop in pixels, a multiple of the tokenizer's factor.
        images_per_step: crops of pictures in a step, over all ranks.
        clips_per_step: crops of clips in a step, over all ranks.
        frames: length of a clip; a shorter one repeats its last frame.
        seed: of every choice.
        steps_per_epoch: steps that Lightning calls an epoch.
        validation_steps: batches of each validation, other crops of the same pictures.
        max_bad_share: share of unreadable sources that stops the run once 200 have been read; others are left out and counted in `bad`.
        column: the dataset's column of pictures.
        video_column: the dataset's column of video files.
        max_member_bytes: largest member of a tar file that is read.

    Attributes:
        bad: how many sources were left out, by reason.
    """

    def __init__(
        self,
        images: str | None = PHOTOGRAPHS,
        videos: str | None = None,
        *,
        size: int = 64,
        images_per_step: int = 16,
        clips_per_step: int = 4,
        frames: int = 8,
        seed: int = 0,
        steps_per_epoch: int = 1000,
        validation_steps: int = 4,
        max_bad_share: float = 0.05,
        column: str = "image",
        video_column: str = "video",
        max_member_bytes: int = MAX_MEMBER_BYTES,
    ) -> None:
        super().__init__()
        if images is None and videos is None:
            raise ValueError("give images, videos or both")
        self.size, self.frames, self.seed = size, frames, seed
        self.images_per_step, self.clips_per_step = images_per_step, clips_per_step
        self.steps_per_epoch, self.validation_steps = steps_per_epoch, validation_steps
        limit = max_member_bytes
        self.pictures = [] if images is None else picture_sources(images, column, max_member_bytes=limit)
        self.clips = [] if videos is None else clip_sources(videos, video_column, max_member_bytes=limit)
        self.samples = Samples(len(self.pictures) + len(self.clips), max_bad_share)

    @property
    def bad(self) -> Counter[str]:
        """How many sources were left out, by reason."""
        return self.samples.bad

    @property
    def identity(self) -> dict[str, Any]:
        """What samples are cut from: the names of all sources in a digest, and the size of what comes out."""
        names = [[source.name for source in sources] for sources in (self.pictures, self.clips)]
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        return {"sources": digest, "size": self.size, "frames": self.frames}

    free_options = ("validation_steps", "max_bad_share")
    """Names of the arguments that may change when a run is resumed."""

    def __repr__(self) -> str:
        sources = f"{len(self.pictures)} pictures, {len(self.clips)} clips"
        return f"PictureData({sources}, crops of {self.size}x{self.size}, seed {self.seed})"

    def val_dataloader(self) -> PixelLoader:
        """Batches of other crops."""
        return PixelLoader(self, self.validation_steps, self.seed + 1)

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each kind in a step, over all ranks."""
        counts = {
            "image": self.images_per_step if self.pictures else 0,
            "video": self.clips_per_step if self.clips else 0,
        }
        return {kind: count for kind, count in counts.items() if count}

    def sample(self, kind: str, random: np.random.Generator) -> Tensor:
        """One crop, drawn by `random`: (3, size, size), or (frames, 3, size, size) of a clip."""
        if kind == "image":
            return self._sample(self.pictures, 1, random)[0]
        return self._sample(self.clips, self.frames, random)

    def _sample(self, sources: Sequence[Source], frames: int, random: np.random.Generator) -> Tensor:
        """Crop (frames, 3, s, s) of a source that can be read."""
        while True:
            source, place = sources[int(random.integers(len(sources)))], float(random.random())
            images = self.samples.read(source, frames, place)
            if images:
                return crop([*images, *[images[-1]] * (frames - len(images))], self.size, random)


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
        bad, read = len(self._left_out), len(self._read)
        if bad == self.total:
            raise BadSamples(f"none of {bad} sources can be read ({dict(self.bad)}); the last one: {error}") from error
        if read >= MIN_READ and bad > self.max_bad_share * read:
            raise BadSamples(
                f"{bad} of {read} sources cannot be read ({dict(self.bad)}), more than max_bad_share={self.max_bad_share} allows; "
                f"the last one: {error}"
            ) from error
