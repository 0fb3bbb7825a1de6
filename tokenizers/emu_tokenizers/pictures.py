"""Pictures and clips to train a vision tokenizer on: folders, frame folders, and anything the datasets library reads.

Every crop of a run is a function of (seed, step), so the loader's state is the number of the step. Files that cannot be
read are left out, counted by reason, and stop the run when there are too many.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor

from emu_tokenizers.transforms import open_image, to_pixels, to_rgb

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
PHOTOGRAPHS = "photographs"
"""Name of the two photographs that scikit-learn bundles."""

Opener = Callable[[], Image.Image]


class BadSamples(ValueError):
    """Too large a share of the samples cannot be used."""


def picture_files(folder: str | os.PathLike) -> list[Path]:
    """The picture files under a folder, in name order.

    Raises:
        FileNotFoundError: no such folder, or no pictures in it.
    """
    root = Path(folder)
    if str(folder) == PHOTOGRAPHS:
        import sklearn.datasets

        root = Path(sklearn.datasets.__file__).parent / "images"
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no pictures under {folder}; known endings are {sorted(SUFFIXES)}")
    return found


def picture_openers(source: str, column: str = "image", split: str = "train") -> list[Opener]:
    """What opens each picture of a folder, of "photographs", or of a dataset of the datasets library.

    Args:
        source: a folder, or "dataset:NAME" for `datasets.load_dataset(NAME)`; NAME may carry builder arguments after
            commas, for example "dataset:webdataset,data_files=shards/*.tar".
        column: the dataset's column of pictures.
        split: the dataset's split.
    """
    if not source.startswith("dataset:"):
        return [lambda path=path: open_image(path) for path in picture_files(source)]  # type: ignore[misc]
    from datasets import load_dataset

    name, *pairs = source.removeprefix("dataset:").split(",")
    options = dict(pair.split("=", 1) for pair in pairs)
    table: Any = load_dataset(name, split=split, **options)
    if column not in table.column_names:
        raise ValueError(f"the dataset {name} has no column {column!r}; it has {table.column_names}")
    return [lambda index=index: to_rgb(table[index][column]) for index in range(len(table))]  # type: ignore[misc]


def clip_openers(folder: str | os.PathLike) -> list[list[Opener]]:
    """What opens the frames of each clip: a clip is a folder of pictures, its frames in name order."""
    clips: dict[Path, list[Opener]] = {}
    for path in picture_files(folder):
        clips.setdefault(path.parent, []).append(lambda path=path: open_image(path))  # type: ignore[misc]
    return list(clips.values())


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


class PixelLoader:
    """Batches {"image": (B, 3, s, s), "video": (B, T, 3, s, s)}; its state is the number of the step."""

    def __init__(self, data: "PictureData", length: int, seed: int) -> None:
        self.data, self.length, self.seed = data, length, seed
        self.step = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        first = self.step % self.length
        for _ in range(first, self.length):
            random = np.random.default_rng((self.seed, self.step))
            self.step += 1
            yield self.data.batch(random)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the steps that a state counts."""
        self.step = int(state["step"])


class PictureData(LightningDataModule):
    """Random crops of pictures and clips.

    Args:
        images: where pictures come from, see `picture_openers`; None for none.
        videos: a folder of frame folders; None for none.
        size: side of a crop in pixels, a multiple of the tokenizer's factor.
        images_per_step: crops of pictures in a step.
        clips_per_step: crops of clips in a step.
        frames: length of a clip; a shorter one repeats its last frame.
        seed: of every choice.
        steps_per_epoch: steps that Lightning calls an epoch.
        validation_steps: batches of each validation, other crops of the same pictures.
        max_bad_share: share of unreadable files that stops the run.
        column: the picture column of a dataset.
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
    ) -> None:
        super().__init__()
        if images is None and videos is None:
            raise ValueError("give images, videos or both")
        self.size, self.frames, self.seed = size, frames, seed
        self.images_per_step, self.clips_per_step = images_per_step, clips_per_step
        self.steps_per_epoch, self.validation_steps = steps_per_epoch, validation_steps
        self.max_bad_share = max_bad_share
        self.pictures = [] if images is None else [[opener] for opener in picture_openers(images, column)]
        self.clips = [] if videos is None else clip_openers(videos)
        self.bad: Counter[str] = Counter()
        self._broken: set[tuple[str, int]] = set()

    def train_dataloader(self) -> PixelLoader:
        """Batches of the run."""
        return PixelLoader(self, self.steps_per_epoch, self.seed)

    def val_dataloader(self) -> PixelLoader:
        """Batches of other crops."""
        return PixelLoader(self, self.validation_steps, self.seed + 1)

    def batch(self, random: np.random.Generator) -> dict[str, Tensor]:
        """One batch, drawn by `random`."""
        found = {}
        if self.pictures:
            drawn = [self._sample("image", self.pictures, 1, random)[0] for _ in range(self.images_per_step)]
            found["image"] = torch.stack(drawn)
        if self.clips:
            drawn = [self._sample("video", self.clips, self.frames, random) for _ in range(self.clips_per_step)]
            found["video"] = torch.stack(drawn)
        return found

    def _sample(self, kind: str, sources: list[list[Opener]], frames: int, random: np.random.Generator) -> Tensor:
        """Crop (frames, 3, s, s) of a source that can be read."""
        while True:
            index = int(random.integers(len(sources)))
            start = int(random.integers(max(len(sources[index]) - frames, 0) + 1))
            openers = sources[index][start : start + frames]
            if (kind, index) in self._broken:
                continue
            try:
                images = [opener() for opener in openers]
            except (ValueError, FileNotFoundError) as error:
                self._leave_out(kind, index, error)
                continue
            images += [images[-1]] * (frames - len(images))
            return crop([image.resize(images[0].size) for image in images], self.size, random)

    def _leave_out(self, kind: str, index: int, error: Exception) -> None:
        self._broken.add((kind, index))
        self.bad[type(error).__name__] += 1
        total = len(self.pictures) + len(self.clips)
        if len(self._broken) > self.max_bad_share * total:
            raise BadSamples(
                f"{len(self._broken)} of {total} sources cannot be read ({dict(self.bad)}), more than "
                f"max_bad_share={self.max_bad_share} allows; the last one: {error}"
            ) from error
