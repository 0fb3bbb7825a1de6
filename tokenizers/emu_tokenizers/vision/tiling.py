"""Tiled decoding of pictures too large for one pass of the 2D decoder, equal to the whole up to rounding.

The levels of low resolution, which hold the attention, run whole; those of high resolution, which hold the memory, run tile by
tile. A tile is a band of whole rows. It takes along the halo of rows that its convolutions see, and drops their pixels. Group
norms see the whole picture: their statistics are gathered before, norm by norm, each in a pass over all tiles that ends at that
norm. Memory is paid for with time: n norms in the tiled levels cost about n / 2 times the work of these levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

from emu_tokenizers.vision.decoder import Decoder
from emu_tokenizers.vision.layers import FrameNorm, ResidualBlock, SpatialNorm


class MeasuredError(Exception):
    """Ends a pass at the norm whose input was measured."""


@dataclass(frozen=True)
class Tile:
    """Rows of codes, ends excluded: `first` to `last` are decoded, from `top` to `bottom` with the halo."""

    first: int
    last: int
    top: int
    bottom: int

    def rows(self, maps: Tensor, height: int) -> Tensor:
        """The tile's rows of maps (N, C, height * k, W), halo included."""
        scale = maps.shape[2] // height
        return maps[:, :, self.top * scale : self.bottom * scale]

    def inner(self, maps: Tensor) -> Tensor:
        """Maps of the tile without its halo."""
        scale = maps.shape[2] // (self.bottom - self.top)
        return maps[:, :, (self.first - self.top) * scale : (self.last - self.top) * scale]


class Moments:
    """Mean and variance (N, groups) of maps that arrive in parts, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, maps: Tensor, groups: int) -> None:
        """Take in a part (N, C, H, W); parts are merged as in Chan, Golub and LeVeque (1983), equation 2.1."""
        part = maps.to(torch.promote_types(maps.dtype, torch.float32)).unflatten(1, (groups, -1)).flatten(2)
        variance, mean = torch.var_mean(part, dim=2, correction=0)
        count, mean, squares = part.shape[2], mean.double(), variance.double() * part.shape[2]
        total, shift = self.count + count, mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def values(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and variance, in float32 unless the maps are wider."""
        dtype = torch.promote_types(dtype, torch.float32)
        return self.mean.to(dtype), (self.squares / self.count).to(dtype)


@torch.no_grad()
def decode_tiled(decoder: Decoder, latents: Tensor, code_map: Tensor, max_pixels: int) -> Tensor:
    """`Decoder.spatial` with the memory of pictures of about `max_pixels`.

    Args:
        decoder: of a tokenizer.
        latents: maps of single frames, (N, C, h, w).
        code_map: (N, D, h, w).
        max_pixels: pixels of a tile with its halo, and of a picture whose maps may be held whole.

    Returns:
        Pixels (N, 3, H, W).
    """
    height, width = latents.shape[2:]
    cut = levels_to_cut(decoder, height * width, max_pixels)
    if not cut:
        return decoder.spatial(latents, code_map)
    maps = decoder.coarse(latents, code_map, cut)
    pixels_a_row = width * (decoder.patch_size * 2 ** (len(decoder.up_block.up) - 1)) ** 2
    tiles = tile_rows(height, max_pixels // pixels_a_row, halo_rows(decoder, cut))
    with statistics_of_the_whole(decoder, maps, code_map, cut, tiles):
        decoded = [decode_tile(decoder, maps, code_map, cut, tile) for tile in tiles]
    return torch.cat(decoded, dim=2)


def decode_tile(decoder: Decoder, maps: Tensor, code_map: Tensor, cut: int, tile: Tile) -> Tensor:
    """Pixels of one tile, (N, 3, rows, W)."""
    height = code_map.shape[2]
    return tile.inner(decoder.fine(tile.rows(maps, height), tile.rows(code_map, height), cut))


def levels_to_cut(decoder: Decoder, codes: int, max_pixels: int) -> int:
    """Levels of high resolution whose maps are larger than those of a picture of `max_pixels`; 0 if none may be cut."""
    levels = [decoder.up_block.level(index) for index in range(len(decoder.up_block.up))]
    widths = [last_block(level.block).conv2.out_channels for level in levels]
    budget = max_pixels // decoder.patch_size**2 * widths[0]
    cut = 0
    while cut < len(levels) - 1 and not levels[cut].attn:
        if codes * 4 ** (len(levels) - 1 - cut) * widths[cut] <= budget:
            break
        cut += 1
    return cut


def last_block(blocks: torch.nn.ModuleList) -> ResidualBlock:
    """The last residual block of a level."""
    block = blocks[-1]
    assert isinstance(block, ResidualBlock)
    return block


def halo_rows(decoder: Decoder, cut: int) -> int:
    """Rows of codes above and below a tile that the 3x3 convolutions of the cut levels see."""
    top = len(decoder.up_block.up) - 1
    reach = Fraction(1, 2**top)  # the last convolution
    for index in range(cut):
        convolutions = 1 + 2 * len(decoder.up_block.level(index).block)  # one after the change of resolution
        reach += Fraction(convolutions, 2 ** (top - index))
    return ceil(reach)


def tile_rows(height: int, rows: int, halo: int) -> list[Tile]:
    """Tiles of about `rows` rows with their halos, of at least as many rows as one halo without them."""
    # Thinner tiles would save little memory, since each carries two halos, and spend most of their work on these.
    step = max(rows - 2 * halo, halo, 1)
    return [
        Tile(first, min(first + step, height), max(first - halo, 0), min(first + step + halo, height))
        for first in range(0, height, step)
    ]


@contextmanager
def statistics_of_the_whole(
    decoder: Decoder, maps: Tensor, code_map: Tensor, cut: int, tiles: list[Tile]
) -> Iterator[None]:
    """Let the norms of the cut levels use the statistics of the whole picture."""
    norms = list(norms_of(decoder, cut))
    try:
        for (
            norm
        ) in norms:  # in the order of the pass: what a norm sees is right once all before it have their statistics
            norm.given = measure(norm, decoder, maps, code_map, cut, tiles)
        yield
    finally:
        for norm in norms:
            norm.given = None


def norms_of(decoder: Decoder, cut: int) -> Iterator[FrameNorm]:
    """The norms of the cut levels, in the order in which they run."""
    for index in reversed(range(cut)):
        for block in decoder.up_block.level(index).block:
            assert isinstance(block, ResidualBlock)
            yield from (plain(block.norm1), plain(block.norm2))
    yield plain(decoder.norm_out)


def plain(norm: torch.nn.Module) -> FrameNorm:
    """The group norm of a norm that may be conditioned."""
    found = norm.norm_layer if isinstance(norm, SpatialNorm) else norm
    assert isinstance(found, FrameNorm)
    return found


def measure(
    norm: FrameNorm, decoder: Decoder, maps: Tensor, code_map: Tensor, cut: int, tiles: list[Tile]
) -> tuple[Tensor, Tensor]:
    """Mean and variance (N, groups) of what a norm sees of the whole picture; those of the norms before it are known."""
    moments, tile = Moments(), tiles[0]

    def stop(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        moments.add(tile.inner(inputs[0]), norm.num_groups)
        raise MeasuredError

    with norm.register_forward_pre_hook(stop):
        for tile in tiles:
            try:
                decode_tile(decoder, maps, code_map, cut, tile)
            except MeasuredError:
                continue
    return moments.values(maps.dtype)
