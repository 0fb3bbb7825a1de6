"""Clips made of pictures: each bounces, or leaves to a side.

A clip has four frames; the first is the picture. It moves by whole codes, which stand for 8x8 pixels, so that frames are judged exactly:
undone, they show one part of the picture four times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from emu.own_data.picture_views import StoredPixels, as_sample

FRAMES, FPS = 4, 4
STEP = 8
SHIFTS: dict[str, tuple[tuple[int, int], ...]] = {
    "bouncing": ((0, 0), (1, 0), (2, 0), (1, 0)),
    "moving left": ((0, 0), (0, -1), (0, -2), (0, -3)),
    "moving right": ((0, 0), (0, 1), (0, 2), (0, 3)),
}
"""How far down and to the right a picture is in each frame, in steps of 8 pixels."""
MOTIONS = tuple(SHIFTS)


def moving_caption(caption: str, motion: str) -> str:
    """Caption of a clip: "cat bouncing"."""
    return f"{caption} {motion}"


def frame_of(picture: np.ndarray, motion: str, number: int) -> np.ndarray:
    """Frame `number` of a clip of a picture, both (H, W, 3) uint8: moved, on white."""
    down, right = (STEP * steps for steps in SHIFTS[motion][number])
    height, width = picture.shape[:2]
    frame = np.full_like(picture, 255)
    seen = picture[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    top, left = max(0, down), max(0, right)
    frame[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return frame


def clip_of(picture: np.ndarray, motion: str) -> np.ndarray:
    """(4, H, W, 3) uint8: a picture in motion."""
    return np.stack([frame_of(picture, motion, number) for number in range(FRAMES)])


def undone(clip: np.ndarray, motion: str) -> np.ndarray:
    """(4, h, w, 3) uint8: the part of the picture that all frames of a clip (4, H, W, 3) show, if it moves in this way."""
    shifts = STEP * np.array(SHIFTS[motion])  # (4, 2)
    first, last = np.maximum(0, -shifts).max(0), clip.shape[1:3] - np.maximum(0, shifts).max(0)
    return np.stack(
        [
            frame[first[0] + down : last[0] + down, first[1] + right : last[1] + right]
            for frame, (down, right) in zip(clip, shifts, strict=True)
        ]
    )


def spread(clip: np.ndarray, motion: str) -> float:
    """How much the frames differ once a motion is undone: mean squared difference from their mean; 0 for a real clip of this motion."""
    pictures = undone(clip, motion).astype(np.float64)
    return float(((pictures - pictures.mean(0)) ** 2).mean())


def moves_as(clips: Sequence[np.ndarray], motions: Sequence[str]) -> np.ndarray:
    """(N,) bool: whether undoing a clip's motion leaves less of a difference between frames than undoing any other; draws count."""
    return np.array(
        [
            spread(clip, motion) <= min(spread(clip, other) for other in MOTIONS)
            for clip, motion in zip(clips, motions, strict=True)
        ]
    )


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
        picture, motion = self.picture(random), MOTIONS[int(random.integers(len(MOTIONS)))]
        return as_sample(frame_of(picture, motion, int(random.integers(FRAMES))))
