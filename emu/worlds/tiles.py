"""Pictures of objects on a lattice, cell by cell: drawing them and reading them back.

A cell shows nothing or one object (shape, colour, size). Drawing copies tiles; reading finds the nearest tile of every cell, and refuses
cells that are near to none.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SIZES = ("small", "large")
LATTICE = 4
"""Cells along each side."""
EMPTY, UNREADABLE = 0, -1
NUM_KINDS = 1 + len(SHAPES) * len(COLOURS) * len(SIZES)
EXTENT = {"small": 6, "large": 8}
"""Side of an object in eighths of a cell."""
MAX_ERROR = 26.0
"""Root mean square error, in levels of 255, up to which a cell is read as its nearest tile."""

_RGB = np.array([(230, 40, 40), (40, 205, 70), (50, 80, 240), (240, 220, 40), (190, 60, 220), (40, 210, 225)], float)
_BACKGROUND = 16.0
_SAMPLES = 8


def kind_of(shape: np.ndarray, colour: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Number of a tile, 1 or more; all of one shape."""
    return 1 + (shape * len(COLOURS) + colour) * len(SIZES) + size


def attributes_of(kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(shape, colour, size) of tiles; the inverse of `kind_of`."""
    rest, size = np.divmod(np.asarray(kind) - 1, len(SIZES))
    return (*np.divmod(rest, len(COLOURS)), size)


def check_size(size: int) -> int:
    """Pixels along a cell.

    Raises:
        ValueError: the size is not a multiple of 8 pixels a cell.
    """
    if size < 1 or size % (8 * LATTICE):
        raise ValueError(f"pictures of {size} pixels a side; expected a multiple of {8 * LATTICE}, e.g. 32, 64 or 128")
    return size // LATTICE


@lru_cache(maxsize=8)
def tiles(cell: int) -> np.ndarray:
    """All tiles, uint8 (NUM_KINDS, cell, cell, 3), antialiased."""
    shape, colour, size = attributes_of(np.arange(1, NUM_KINDS))
    masks = np.stack([_coverage(SHAPES[a], EXTENT[SIZES[c]] / 8, cell) for a, c in zip(shape, size, strict=True)])
    drawn = _BACKGROUND + masks[..., None] * (_RGB[colour][:, None, None, :] - _BACKGROUND)
    empty = np.full((1, cell, cell, 3), _BACKGROUND)
    return np.concatenate([empty, drawn]).round().astype(np.uint8)


def _coverage(shape: str, extent: float, cell: int) -> np.ndarray:
    """(cell, cell) share of each pixel that an object of `extent` times the cell covers."""
    axis = ((np.arange(cell * _SAMPLES) + 0.5) / (cell * _SAMPLES) * 2 - 1) / extent  # -1..1 across the object
    y, x = axis[:, None], axis[None, :]
    inside = (np.abs(x) <= 1) & (np.abs(y) <= 1)
    if shape == "circle":
        inside &= x**2 + y**2 <= 1
    elif shape == "triangle":
        inside &= np.abs(x) <= (y + 1) / 2
    elif shape == "cross":
        inside &= (np.abs(x) <= 1 / 3) | (np.abs(y) <= 1 / 3)
    return inside.reshape(cell, _SAMPLES, cell, _SAMPLES).mean(axis=(1, 3))


def draw(kinds: np.ndarray, size: int) -> np.ndarray:
    """Pictures of lattices.

    Args:
        kinds: (n, 16) int64 tile of each cell, row by row.
        size: pixels along a side.

    Returns:
        uint8 (n, size, size, 3).

    Raises:
        ValueError: see `check_size`.
    """
    cell = check_size(size)
    grid = tiles(cell)[kinds].reshape(-1, LATTICE, LATTICE, cell, cell, 3)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size, size, 3)


def read(pixels: np.ndarray) -> np.ndarray:
    """The inverse of `draw`, for pictures that need not be perfect.

    Args:
        pixels: uint8 (n, size, size, 3).

    Returns:
        (n, 16) int64, `UNREADABLE` for cells that are near to no tile.

    Raises:
        ValueError: another shape, type or size.
    """
    if pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pictures are {pixels.dtype} {pixels.shape}; expected uint8 (n, size, size, 3)")
    cell = check_size(pixels.shape[1])
    grid = pixels.reshape(-1, LATTICE, cell, LATTICE, cell, 3).transpose(0, 1, 3, 2, 4, 5)
    seen = grid.reshape(-1, cell * cell * 3).astype(np.float32)
    known = tiles(cell).reshape(NUM_KINDS, -1).astype(np.float32)
    # |a - b|^2 = |a|^2 - 2ab + |b|^2: one product of matrices in place of a difference for each pair of cell and tile.
    squares = (seen**2).sum(1)[:, None] - 2 * seen @ known.T + (known**2).sum(1)  # (cells, NUM_KINDS)
    nearest = squares.argmin(axis=1)
    error = np.sqrt(squares[np.arange(len(seen)), nearest].clip(min=0) / seen.shape[1])
    return np.where(error <= MAX_ERROR, nearest, UNREADABLE).reshape(-1, LATTICE**2)
