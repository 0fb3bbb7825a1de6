"""Boxes: where the objects of a picture are, as codes.

A box is four codes, the first and last bin it covers on 32 bins an axis: y0, x0, y1, x1. Boxes are written in raster order of their first
corner, so that a set of boxes has one sequence. The header says how many there are: "2 boxes".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu.documents import CodeSegment
from emu.modalities.base import Grid, Modality

NUM_BINS = 32
_META = re.compile(r"([1-9]\d{0,3}) boxes")


class Boxes:
    """Boxes of a picture, in raster order.

    Args:
        bins: (k, 4) integers below 32, the first and last bin of each box: y0, x0, y1, x1.

    Attributes:
        bins: (k, 4) int64.

    Raises:
        ValueError: another shape, no boxes, bins outside the picture, or a box that ends before it begins.
    """

    def __init__(self, bins: np.ndarray | Sequence[Sequence[int]]) -> None:
        found = np.asarray(bins)
        if found.ndim != 2 or found.shape[1:] != (4,) or not len(found) or found.dtype.kind not in "iu":
            raise ValueError(
                f"boxes are {found.dtype} {found.shape}; expected integers (k, 4): y0, x0, y1, x1 with k of 1 or more"
            )
        if found.min() < 0 or found.max() >= NUM_BINS or (found[:, :2] > found[:, 2:]).any():
            raise ValueError(f"boxes {found.tolist()}; expected bins 0..{NUM_BINS - 1} with y0 <= y1 and x0 <= x1")
        self.bins = found[np.lexsort(found.T[::-1])].astype(np.int64)

    @classmethod
    def from_unit(cls, corners: np.ndarray | Sequence[Sequence[float]]) -> Boxes:
        """Boxes of corners (k, 4) y0, x0, y1, x1 in [0, 1] of the picture's height and width."""
        scaled = np.asarray(corners, np.float64) * NUM_BINS
        first, last = np.floor(scaled[:, :2] + 1e-9), np.ceil(scaled[:, 2:] - 1e-9) - 1
        return cls(np.concatenate([first, np.maximum(first, last)], axis=1).astype(np.int64))

    def to_unit(self) -> np.ndarray:
        """(k, 4) float64 corners y0, x0, y1, x1 in [0, 1]."""
        return (self.bins + np.array([0, 0, 1, 1])) / NUM_BINS

    def __len__(self) -> int:
        return len(self.bins)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Boxes) and np.array_equal(self.bins, other.bins)

    def __repr__(self) -> str:
        return f"Boxes({self.bins.tolist()})"


class BoxesModality(Modality):
    """`Boxes` in, `Boxes` out; a grid of (number of boxes, 4). Codes that are not a box decode to the nearest one."""

    name = "boxes"
    rank = 2
    codebook = "boxes"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Boxes)

    def from_json(self, value: Any, folder: Path) -> Boxes:
        return Boxes(value)

    def encode(self, value: Boxes, codec: Any) -> CodeSegment:
        return CodeSegment(self.name, torch.from_numpy(value.bins))

    def decode(self, segment: CodeSegment, codec: Any) -> Boxes:
        bins = segment.codes.cpu().numpy()
        return Boxes(
            np.concatenate([np.minimum(bins[:, :2], bins[:, 2:]), np.maximum(bins[:, :2], bins[:, 2:])], axis=1)
        )

    def meta_text(self, grid: Grid, meta: Mapping[str, Any]) -> str:
        return f"{grid[0]} boxes"

    def parse_meta(self, text: str) -> tuple[Grid, dict[str, Any]] | None:
        match = _META.fullmatch(text)
        return ((int(match[1]), 4), {}) if match else None

    def codebook_sizes(self, codec: Any) -> tuple[int, ...]:
        return (NUM_BINS,)
