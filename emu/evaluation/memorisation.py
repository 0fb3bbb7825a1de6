"""How near pictures are to the training examples, in codes and in pixels, and which of them repeat one another.

Nearness alone says nothing: real pictures that were never trained on are near to training examples too where the data is simple. So every
figure stands beside that of real held-out examples (Carlini et al. 2023, arXiv 2301.13188; Somepalli et al. 2023, arXiv 2212.03860).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emu.worlds.scene_codes import decode
from emu_tokenizers import VisionTokenizer

SIDE = 16
"""Pixels along the thumbnails on which pictures are compared."""
NEAR = 0.05
"""Share of real held-out examples that are called near: those that are nearest to a training example."""
CHUNK = 64


@dataclass(frozen=True)
class PictureSet:
    """Pictures by their codes.

    Attributes:
        codes: (n, *grid) int64.
        pixels: (n, H, W, 3) uint8 that the codes decode to.
        rows: (n, D) float32 thumbnails.
    """

    codes: Tensor
    pixels: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, vision: VisionTokenizer, codes: Tensor) -> PictureSet:
        """The pictures of codes (n, *grid), decoded: samples and real pictures have gone through the same tokenizer."""
        pixels = decode(vision, codes)
        return cls(codes.cpu(), pixels, thumbnails(pixels))

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Nearest:
    """The nearest training example of each of n pictures.

    Attributes:
        differing: (n,) float64 share of codes that differ from those of the example with most codes in common; 0 is a copy.
        by_codes: (n,) int64 number of that example.
        levels: (n,) float64 root mean square difference, in levels of 255, to the example that looks most alike.
        by_pixels: (n,) int64 number of that one.
    """

    differing: np.ndarray
    by_codes: np.ndarray
    levels: np.ndarray
    by_pixels: np.ndarray


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """(n, D) float32: pictures (n, H, W, 3) uint8, averaged down to at most `SIDE` pixels along a side."""
    shown = torch.from_numpy(pixels).movedim(-1, 1)
    sides = (min(SIDE, shown.shape[2]), min(SIDE, shown.shape[3]))
    small = [torch.nn.functional.adaptive_avg_pool2d(part.float(), sides) for part in shown.split(CHUNK)]
    return torch.cat(small).flatten(1).numpy()


def nearest(pictures: PictureSet, known: PictureSet) -> Nearest:
    """The nearest of `known` to each of the pictures.

    Raises:
        ValueError: grids differ in size, or nothing is known.
    """
    if pictures.codes.shape[1:] != known.codes.shape[1:] or not len(known):
        raise ValueError(
            f"pictures of {tuple(pictures.codes.shape[1:])} codes and {len(known)} known ones of {tuple(known.codes.shape[1:])}; "
            "expected grids of one size, and at least one known picture"
        )
    grids = known.codes.flatten(1)
    squares = (known.rows**2).sum(1)
    parts = []
    for start in range(0, len(pictures), CHUNK):
        some = slice(start, start + CHUNK)
        differing = torch.stack([(grids != one).double().mean(1) for one in pictures.codes[some].flatten(1)])
        rows = pictures.rows[some]
        apart = (rows**2).sum(1)[:, None] + squares - 2 * rows @ known.rows.T
        by_pixels = apart.argmin(1)
        # The product above rounds: of the nearest the difference itself is taken.
        levels = np.sqrt(((rows - known.rows[by_pixels]).astype(np.float64) ** 2).mean(1))
        found = differing.min(1)
        parts.append((found.values.numpy(), found.indices.numpy(), levels, by_pixels))
    return Nearest(*(np.concatenate(some) for some in zip(*parts, strict=True)))


def repeats(codes: Tensor) -> np.ndarray:
    """(n,) bool: which grids of codes (n, *grid) equal an earlier one."""
    seen, found = set[bytes](), []
    for grid in codes.flatten(1).numpy():
        found.append(grid.tobytes() in seen)
        seen.add(grid.tobytes())
    return np.array(found)


def near_threshold(real: Nearest) -> float:
    """The distance in levels that a share `NEAR` of real held-out examples is within of a training example."""
    return float(np.quantile(real.levels, NEAR))
