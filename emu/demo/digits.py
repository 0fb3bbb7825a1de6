"""Real handwritten digits on canvases: the data of the demo.

The 8x8 digits are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository,
1998, CC BY 4.0) as `load_digits` of scikit-learn gives them. They lie in the package with a fixed split:
a quarter of each class is held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emu_tokenizers.pixels.transforms import from_bytes

DATA_FILE = Path(__file__).with_name("handwritten_digits.npz")

CANVAS = 32
"""Side of a picture in pixels."""
DIGIT = 22
"""Side of a digit on it: 2.75 pixels for each of the original's."""
FRAMES, FPS = 8, 8
"""Length and rate of the clips."""
TRAVEL = 5.0
"""How far a digit moves in a clip, in pixels."""
REST = 4
"""Frames that a digit rests before it moves, in clips that go on from a picture: what one latent frame stands for."""

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""(x, y) of each direction."""
SHIFTS = tuple((x, y) for y in (0, -1, 1) for x in (0, -1, 1))
"""The one-pixel shifts (x, y) that training sees; the first is none."""

PAD = 2  # blank originals pixels around a digit, so that interpolation fades into the background


@dataclass(frozen=True)
class Digits:
    """Handwritten digits.

    Attributes:
        images: (N, 8, 8) float32 in [0, 1].
        labels: (N,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Digits:
        """The first `count` of them."""
        return Digits(self.images[:count], self.labels[:count])


def load_digits() -> tuple[Digits, Digits]:
    """The 1,347 digits to train on and the 450 that are held out."""
    with np.load(DATA_FILE, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"]).float() / 16.0
        labels = torch.from_numpy(file["labels"]).long()
        held_out = torch.from_numpy(file["held_out"])
    return Digits(images[~held_out], labels[~held_out]), Digits(images[held_out], labels[held_out])


def draw(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Digits on canvases, at any place between pixels too.

    Args:
        images: (N, 8, 8) in [0, 1].
        x: (N,) pixels to the right of the centre.
        y: (N,) pixels below the centre.

    Returns:
        (N, CANVAS, CANVAS) uint8, white on black.
    """
    side = images.shape[-1] + 2 * PAD
    scale = 2.0 * images.shape[-1] / (DIGIT * side)
    places = torch.arange(CANVAS, dtype=torch.float32) - (CANVAS - 1) / 2
    across = ((places - x[:, None]) * scale)[:, None, :].expand(-1, CANVAS, -1)  # (N, CANVAS, CANVAS)
    down = ((places - y[:, None]) * scale)[:, :, None].expand(-1, -1, CANVAS)
    padded = F.pad(images, (PAD, PAD, PAD, PAD))[:, None]
    drawn = F.grid_sample(padded, torch.stack([across, down], dim=-1), mode="bicubic", align_corners=False)[:, 0]
    return (drawn.clamp(0, 1) * 255).round().to(torch.uint8)


def draw_stills(images: Tensor, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Pictures (N, CANVAS, CANVAS) uint8 of digits (N, 8, 8), all `shift` = (x, y) pixels off the centre."""
    count = len(images)
    return draw(images, torch.full((count,), float(shift[0])), torch.full((count,), float(shift[1])))


def draw_clips(images: Tensor, directions: Tensor, shifts: Tensor, rest: int = 0) -> Tensor:
    """Clips of digits that move away from the centre at a constant speed.

    Args:
        images: (N, 8, 8) in [0, 1].
        directions: (N,) int64, places in `DIRECTIONS`.
        shifts: (N, 2) (x, y) of their first frames, in pixels off the centre.
        rest: frames for which the digit stays where it is; then it moves the same way in what is left.

    Returns:
        (N, FRAMES, CANVAS, CANVAS) uint8.
    """
    heading = torch.tensor(list(DIRECTIONS.values()))[directions]  # (N, 2)
    moving = FRAMES - max(rest, 1)
    steps = [max(0, frame - max(rest, 1) + 1) * TRAVEL / moving for frame in range(FRAMES)]
    places = [shifts + heading * step for step in steps]
    return torch.stack([draw(images, place[:, 0], place[:, 1]) for place in places], dim=1)


def to_rgb_pixels(canvases: Tensor) -> Tensor:
    """uint8 (..., H, W) to float32 (..., 3, H, W) in [-1, 1], what the vision tokenizer reads."""
    return from_bytes(canvases).unsqueeze(-3).expand(*canvases.shape[:-2], 3, *canvases.shape[-2:])
