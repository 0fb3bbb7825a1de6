"""Pixels for the demo's vision tokenizer: crops of its pictures, and frames of its clips."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emu.demo.pictures.motions import FRAMES, MOTIONS, frame_of
from emu.own_data.picture_views import StoredPixels
from emu_tokenizers.pixels.transforms import from_bytes


class MovingPixels(StoredPixels):
    """`StoredPixels` of which some are frames of clips: away from the middle, on white.

    Args:
        clip_share: of the samples.
        folder, images_per_step, seed, steps_per_epoch, validation_pictures: see `StoredPixels`.
    """

    def __init__(
        self,
        folder: str,
        clip_share: float = 0.25,
        images_per_step: int = 16,
        seed: int = 0,
        steps_per_epoch: int = 1000,
        validation_pictures: int = 256,
    ) -> None:
        if not 0 <= clip_share <= 1:
            raise ValueError(f"clip_share is {clip_share}; expected a share from 0 to 1")
        super().__init__(folder, images_per_step, seed, steps_per_epoch, validation_pictures)
        self.clip_share = clip_share

    def sample(self, kind: str, random: np.random.Generator) -> Tensor:
        """One crop or frame (3, size, size) in [-1, 1], drawn by `random`."""
        if random.random() >= self.clip_share:
            return super().sample(kind, random)
        rows = self.store.rows("train")
        picture = np.asarray(self.store.pictures[rows[int(random.integers(len(rows)))]])
        motion = MOTIONS[int(random.integers(len(MOTIONS)))]
        frame = frame_of(picture, motion, int(random.integers(FRAMES)))
        return from_bytes(torch.from_numpy(frame)).permute(2, 0, 1).contiguous()
