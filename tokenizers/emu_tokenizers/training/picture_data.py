"""Pictures and clips to train a vision tokenizer on, from anywhere that `emu_tokenizers.pixels.sources` knows.

Every crop of a run is a function of (seed, step, place in the step), so the loader's state is the number of the step; of streams also where
they stand. Files that cannot be read are left out, counted by reason, and stop the run when there are too many.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor

from emu_tokenizers.pixels.sources import PHOTOGRAPHS, clip_sources, picture_sources
from emu_tokenizers.pixels.streams import clip_stream, picture_stream
from emu_tokenizers.pixels.tars import MAX_MEMBER_BYTES
from emu_tokenizers.training.pixel_loader import PixelLoader, SampledPixels
from emu_tokenizers.training.pixel_samples import Samples
from emu_tokenizers.training.streamed_pixels import StreamedPixels


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
        streaming: read sources as they come, however many there are: a dataset from its hub without a copy on the disk, tar files and
            folders without a list of what is in them.
        shuffle: with `streaming`, samples that are shuffled at a time; parts of a source, such as its tar files, are shuffled too. Rows of
            a dataset are held in memory for that time, files and members of tar files are not.

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
        streaming: bool = False,
        shuffle: int = 1024,
    ) -> None:
        super().__init__()
        if images is None and videos is None:
            raise ValueError("give images, videos or both")
        if shuffle < 1:
            raise ValueError(f"shuffle is {shuffle}; expected 1 or more samples")
        self.size, self.frames, self.seed = size, frames, seed
        self.images_per_step, self.clips_per_step = images_per_step, clips_per_step
        self.steps_per_epoch, self.validation_steps = steps_per_epoch, validation_steps
        self.streaming, self.shuffle, self.max_bad_share = streaming, shuffle, max_bad_share
        self._kinds = {"image": images is not None, "video": videos is not None}
        find_pictures, find_clips = (picture_stream, clip_stream) if streaming else (picture_sources, clip_sources)
        self.pictures: Any = (
            find_pictures(images, column, max_member_bytes=max_member_bytes) if images is not None else []
        )
        self.clips: Any = (
            find_clips(videos, video_column, max_member_bytes=max_member_bytes) if videos is not None else []
        )
        number = 0 if streaming else sum(len(sources) for _, sources in self._sources())
        self.samples = Samples(number, max_bad_share)
        self._streamed: list[StreamedPixels] = []

    @property
    def bad(self) -> Counter[str]:
        """How many sources were left out, by reason."""
        return sum((one.bad for one in self._streamed), self.samples.bad)

    @property
    def identity(self) -> dict[str, Any]:
        """What samples are cut from: the names of all sources in a digest, and the size of what comes out."""
        names = [[source.name for source in sources] for sources in (self.pictures, self.clips)]
        digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        return {"sources": digest, "size": self.size, "frames": self.frames}

    free_options = ("validation_steps", "max_bad_share")
    """Names of the arguments that may change when a run is resumed."""

    def __repr__(self) -> str:
        pictures, clips = (len(getattr(sources, "parts", sources)) for _, sources in self._sources())
        parts = "parts of " if self.streaming else ""
        sources = f"{pictures} {parts}pictures, {clips} {parts}clips"
        return f"PictureData({sources}, crops of {self.size}x{self.size}, seed {self.seed})"

    def train_dataloader(self) -> PixelLoader:
        """Batches of the run."""
        if not self.streaming:
            return super().train_dataloader()
        return PixelLoader(self._stream(self.seed, self.shuffle), self.steps_per_epoch, self.seed)

    def val_dataloader(self) -> PixelLoader:
        """Batches of other crops."""
        source = self._stream(self.seed + 1, shuffle=1) if self.streaming else self
        return PixelLoader(source, self.validation_steps, self.seed + 1)

    def _stream(self, seed: int, shuffle: int) -> StreamedPixels:
        """The streams, from their start, in an order that the seed draws."""
        streams = {kind: stream for kind, stream in self._sources() if self._kinds[kind]}
        self._streamed.append(
            StreamedPixels(streams, self.counts, self.size, self.frames, shuffle, seed, self.max_bad_share)
        )
        return self._streamed[-1]

    def _sources(self) -> list[tuple[str, Any]]:
        return [("image", self.pictures), ("video", self.clips)]

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each kind in a step, over all ranks."""
        counts = {"image": self.images_per_step, "video": self.clips_per_step}
        return {kind: count for kind, count in counts.items() if count and self._kinds[kind]}

    def sample(self, kind: str, random: np.random.Generator) -> Tensor:
        """One crop, drawn by `random`: (3, size, size), or (frames, 3, size, size) of a clip."""
        sources, frames = (self.pictures, 1) if kind == "image" else (self.clips, self.frames)
        first = sources[int(random.integers(len(sources)))]
        pixels = self.samples.draw(sources, first, frames, self.size, random)
        return pixels[0] if kind == "image" else pixels
