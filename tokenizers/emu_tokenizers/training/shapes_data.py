"""Drawn shapes: pictures without a file, of any number, to compare tokenizers and quantizers on.

One or two anti-aliased circles, squares or triangles in 8 colours on 4 backgrounds, at continuous places and sizes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from emu_tokenizers.training.pixel_loader import SampledPixels

COLOURS = np.array([[r, g, b] for r in (0.1, 0.9) for g in (0.1, 0.9) for b in (0.1, 0.9)])
BACKGROUNDS = np.array([[0.05, 0.05, 0.2], [0.6, 0.6, 0.6], [0.95, 0.95, 0.85], [0.2, 0.4, 0.2]])
HELD_OUT = 1
"""Added to the seed of held-out pictures."""


def draw_shapes(number: int, seed: int, size: int = 32) -> Tensor:
    """Pictures (N, 3, size, size) in [-1, 1]; a function of the seed.

    Args:
        number: of pictures.
        seed: of places, sizes, kinds and colours.
        size: side in pixels, at least 17.

    Raises:
        ValueError: there is no room for a shape.
    """
    if size < 17:
        raise ValueError(f"shapes need pictures of at least 17x17 pixels, got {size}")
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] + 0.5
    pictures = np.empty((number, 3, size, size), dtype=np.float32)
    for index in range(number):
        canvas = BACKGROUNDS[random.integers(4)][:, None, None] * np.ones((3, size, size))
        for _ in range(random.integers(1, 3)):
            cx, cy = random.uniform(8, size - 8, 2)
            radius, kind = random.uniform(4, 8), random.integers(3)
            distance = (
                np.hypot(x - cx, y - cy) - radius,
                np.maximum(abs(x - cx), abs(y - cy)) - radius * 0.9,
                np.maximum(abs(x - cx) * 0.87 + (y - cy) * 0.5, -(y - cy)) - radius * 0.6,
            )[kind]
            cover = np.clip(0.5 - distance, 0, 1)
            canvas = canvas * (1 - cover) + COLOURS[random.integers(8)][:, None, None] * cover
        pictures[index] = canvas * 2 - 1
    return torch.from_numpy(pictures)


class ShapesData(SampledPixels):
    """Batches {"image": (B, 3, size, size)} of drawn shapes, and others to validate on.

    Args:
        pictures: how many are drawn for training.
        held_out: how many are drawn for validation, by another seed.
        size: side of a picture in pixels.
        images_per_step: pictures of a step, drawn anew from those for every step.
        seed: of pictures and batches; a batch is a function of the seed and the number of the step.
        steps_per_epoch: steps that Lightning calls an epoch.
    """

    def __init__(
        self,
        pictures: int = 6000,
        held_out: int = 512,
        size: int = 32,
        images_per_step: int = 16,
        seed: int = 0,
        steps_per_epoch: int = 1000,
    ) -> None:
        super().__init__()
        if min(pictures, held_out, images_per_step) < 1:
            raise ValueError(
                f"numbers of pictures must be at least 1, got {pictures}, {held_out} held out, {images_per_step} a step"
            )
        self.num_pictures, self.num_held_out, self.size = pictures, held_out, size
        self.images_per_step, self.seed, self.steps_per_epoch = images_per_step, seed, steps_per_epoch
        self._pictures: Tensor | None = None

    def __repr__(self) -> str:
        return f"ShapesData({self.images_per_step} of {self.num_pictures} pictures a step, seed {self.seed})"

    @property
    def counts(self) -> dict[str, int]:
        """Pictures in a step, over all ranks."""
        return {"image": self.images_per_step}

    def sample(self, kind: str, random: np.random.Generator) -> Tensor:
        """One picture (3, size, size), drawn by `random`."""
        if self._pictures is None:
            self._pictures = draw_shapes(self.num_pictures, self.seed, self.size)
        return self._pictures[int(random.integers(self.num_pictures))]

    def held_out(self) -> Tensor:
        """The pictures to validate on."""
        return draw_shapes(self.num_held_out, self.seed + HELD_OUT, self.size)

    @property
    def identity(self) -> dict[str, int]:
        """What a step's pictures are drawn from."""
        return {"pictures": self.num_pictures, "size": self.size}

    def val_dataloader(self) -> DataLoader:
        """The held-out pictures, once."""
        batches = [{"image": some} for some in self.held_out().split(64)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
