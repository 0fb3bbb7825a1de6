"""Codes of every scene of a world.

A tokenizer whose codes say what is in their cell and nothing about the neighbours needs no pass per scene: codes of single objects are put
together. That is tried on a sample of scenes first; for other tokenizers every scene is encoded.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emu.worlds import BallWorld, LatticeWorld, tiles
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.pixels.transforms import from_bytes, to_frames

PIXELS_PER_PASS = 1 << 19
SAMPLE = 64


def encode(vision: VisionTokenizer, pixels: np.ndarray) -> Tensor:
    """int32 codes (n, *grid) of uint8 pictures (n, H, W, 3) or clips (n, T, H, W, 3)."""
    step = max(1, PIXELS_PER_PASS // pixels[0].size)
    parts = []
    for start in range(0, len(pixels), step):
        levels = torch.from_numpy(pixels[start : start + step]).movedim(-1, -3).to(vision.device)
        parts.append(vision.encode(from_bytes(levels).to(vision.dtype)).cpu().to(torch.int32))
    return torch.cat(parts)


def decode(vision: VisionTokenizer, codes: Tensor) -> np.ndarray:
    """uint8 pictures (n, H, W, 3) or clips (n, T, H, W, 3) of codes (n, *grid)."""
    per_code = 3 * vision.spatial_factor**2 * vision.temporal_factor
    step = max(1, PIXELS_PER_PASS // (codes[0].numel() * per_code))
    decoded = torch.cat([vision.decode(part.long().to(vision.device)).float().cpu() for part in codes.split(step)])
    return to_frames(decoded)


def picture_codes(world: LatticeWorld, vision: VisionTokenizer, size: int) -> Tensor:
    """int32 (M, h, w) codes of all pictures by their numbers."""
    rows = np.arange(len(world.cells))
    some = np.random.default_rng(0).choice(rows, SAMPLE, replace=False)
    # A trained tokenizer sees neighbours, so that what one tile alone is coded as is tried on a sample before it is believed.
    table = _tile_codes(vision, size)
    if torch.equal(_put_together(table, world.cells[some]), encode(vision, world.render(some, size))):
        return _put_together(table, world.cells)
    parts = [encode(vision, world.render(rows[start : start + 1024], size)) for start in range(0, len(rows), 1024)]
    return torch.cat(parts)


def clip_codes(world: BallWorld, vision: VisionTokenizer, size: int) -> tuple[np.ndarray, Tensor]:
    """(numbers of the clips in ascending order, their int32 (n, t, h, w) codes)."""
    known = np.unique(world.variables["clip"])
    some = known[np.linspace(0, len(known) - 1, SAMPLE).astype(int)]
    if vision.temporal_factor == 1 and vision.config.chunk == "causal":
        table = _tile_codes(vision, size)
        if torch.equal(_put_together(table, world.cells_of(some)), encode(vision, world.render_clips(some, size))):
            return known, _put_together(table, world.cells_of(known))
    return known, encode(vision, world.render_clips(known, size))


def _tile_codes(vision: VisionTokenizer, size: int) -> Tensor:
    """(kinds, 16, b, b) codes of each tile in each cell."""
    places = np.arange(tiles.LATTICE**2)
    # Pictures full of tiles, so that there are as few as there are tiles; whoever sees neighbours is found out by the sample.
    cells = (np.arange(tiles.NUM_KINDS)[:, None] + places) % tiles.NUM_KINDS
    grids = encode(vision, tiles.draw(cells, size))  # (kinds, h, w, ...)
    block = grids.shape[1] // tiles.LATTICE
    split = grids.unflatten(2, (tiles.LATTICE, block)).unflatten(1, (tiles.LATTICE, block))  # (kinds, 4, b, 4, b, ...)
    split = split.transpose(2, 3).flatten(1, 2)  # (kinds, 16, b, b, ...)
    table = torch.empty_like(split)
    table[torch.from_numpy(cells), torch.from_numpy(places)] = split
    return table


def _put_together(table: Tensor, cells: np.ndarray) -> Tensor:
    """(n, h, w) or (n, t, h, w) codes of lattices (n, 16) or (n, t, 16)."""
    places = torch.arange(tiles.LATTICE**2)
    found = table[torch.from_numpy(cells), places]  # (n, ..., 16, b, b, ...)
    axis = cells.ndim - 1
    rows = found.unflatten(axis, (tiles.LATTICE, tiles.LATTICE)).transpose(
        axis + 1, axis + 2
    )  # (n, ..., 4, b, 4, b, ...)
    return rows.flatten(axis + 2, axis + 3).flatten(axis, axis + 1)


def collisions(codes: Tensor) -> int:
    """How many of the grids (n, ...) are equal to an earlier one: 0 for a tokenizer that keeps these scenes apart."""
    rows = np.ascontiguousarray(codes.flatten(1).numpy())
    # Rows as opaque values of so many bytes: hundreds of thousands of grids are sorted in half a second.
    return len(codes) - len(np.unique(rows.view(np.dtype((np.void, rows.strides[0])))))
