"""Block sizes of the Triton kernels for each architecture.

Legend: D head width. A configuration is passed to its kernel as it stands: blocks, how tiles come (DESCRIPTORS or pointers), how
products of float32 are formed (PRODUCT), warps and stages. The blocks are the largest that fit the shared memory and the registers of
all architectures of a table; `tests/test_kernels_compile.py` compiles them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from emu_kernels.architectures import AMPERE, HOPPER, Architecture
from emu_kernels.dispatch import architecture

Config = dict[str, Any]
Blocks = tuple[int, int, int, int]
"""Queries, keys, warps, stages."""
T = TypeVar("T")

# Largest D -> blocks. 16 bits, by descriptor: products of Hopper's warp groups and of Blackwell's tensor memory.
DESCRIPTORS: dict[str, dict[int, Blocks]] = {
    "forward": {64: (128, 64, 4, 3), 128: (128, 128, 8, 2), 256: (128, 64, 8, 2)},
    "key": {128: (64, 128, 8, 2), 256: (32, 64, 8, 1)},
    "query": {128: (128, 128, 8, 2), 256: (128, 32, 8, 2)},
}
# On Hopper two small blocks on a processor share it better than one large one: the one multiplies while the other takes exponentials.
# Timed on an H200 with heads of 128, in whole and in packed rows: forward 1.21 times as fast, keys 1.16, queries 1.02.
DESCRIPTORS_HOPPER: dict[str, dict[int, Blocks]] = {
    "forward": {64: (128, 64, 4, 3), 128: (64, 64, 4, 3), 256: (128, 64, 8, 2)},
    "key": {64: (64, 128, 8, 2), 128: (64, 64, 4, 2), 256: (32, 64, 8, 1)},
    "query": {64: (128, 128, 8, 2), 128: (64, 64, 4, 2), 256: (128, 32, 8, 2)},
}
# 16 bits, by pointer: products of one warp, whose results stay in its registers, and at most 99 KiB of shared memory.
POINTERS: dict[str, dict[int, Blocks]] = {
    "forward": {128: (128, 64, 8, 2), 256: (64, 32, 8, 2)},
    "key": {64: (32, 64, 4, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 2)},
    "query": {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 4, 2)},
}
# float32, each product as three of tf32; Hopper's warp groups multiply them as well.
SINGLE_HOPPER: dict[str, dict[int, Blocks]] = {
    "forward": {256: (64, 32, 4, 2)},
    "key": {256: (32, 32, 4, 1)},
    "query": {256: (32, 32, 4, 1)},
}
SINGLE: dict[str, dict[int, Blocks]] = {
    "forward": {128: (32, 32, 4, 2), 256: (16, 16, 4, 1)},
    "key": {128: (32, 32, 8, 1), 256: (16, 16, 4, 1)},
    "query": {128: (16, 32, 4, 1), 256: (16, 16, 4, 1)},
}


def configuration(choose: Callable[..., T], device: torch.device, *arguments: Any) -> T:
    """Return what `choose` gives for the architecture of a device; for Hopper where kernels are interpreted on the CPU."""
    return choose(architecture(device) or HOPPER, *arguments)


def padded_width(width: int) -> int:
    """Return the features of a tile: a power of two of at least 16."""
    return max(1 << (width - 1).bit_length(), 16)


def _attention(kernel: str, found: Architecture, dtype: torch.dtype, width: int) -> Config:
    single = dtype == torch.float32
    # Products of float32 take their factors from registers, where tiles that come by descriptor would all be held at once.
    descriptors = found.descriptors and not single
    table = POINTERS
    if descriptors:
        table = DESCRIPTORS_HOPPER if found is HOPPER else DESCRIPTORS
    if single:
        table = SINGLE_HOPPER if found is HOPPER else SINGLE
    block_width = padded_width(width)
    # Wider heads than the table knows may fit or not; `dispatch.py` has the answer when they do not.
    queries, keys, warps, stages = table[kernel][min((w for w in table[kernel] if w >= block_width), default=256)]
    return {
        "BLOCK_QUERIES": queries,
        "BLOCK_KEYS": keys,
        "BLOCK_WIDTH": block_width,
        "DESCRIPTORS": descriptors,
        "PRODUCT": "tf32x3" if single else None,  # three products: about the accuracy of float32
        "num_warps": warps,
        "num_stages": stages,
    }


def attention_forward(found: Architecture, dtype: torch.dtype, width: int) -> Config:
    """Return the blocks of the forward for heads of `width` features."""
    return _attention("forward", found, dtype, width)


def attention_backward(found: Architecture, dtype: torch.dtype, width: int) -> tuple[Config, Config]:
    """Return the blocks of the kernel of keys and of the kernel of queries for heads of `width` features."""
    return _attention("key", found, dtype, width), _attention("query", found, dtype, width)


def loss(found: Architecture) -> Config:
    """Return the blocks of the product of the head, in 16 bits."""
    ids, stages = (256, 4) if found.descriptors else (128, 3)
    return {
        "BLOCK_ROWS": 128,
        "BLOCK_IDS": ids,
        "BLOCK_WIDTH": 64,
        "GROUP_ROWS": 8,
        "DESCRIPTORS": found.descriptors,
        "num_warps": 8,
        "num_stages": stages,
    }


MAX_ROW_WIDTH = 2**13
"""Features of the longest row that a program holds whole; longer ones are computed in torch."""
PROGRAMS = 512
"""Programs of a sum over all rows: a few for each processor of a large GPU."""
TILE = 2048
"""Numbers of a tile that a program of four warps holds, 16 in each thread."""


def row_blocks(width: int) -> Config:
    """Return the blocks of kernels that take whole rows of `width` numbers, on every architecture: several short ones at a time."""
    block_width = padded_width(width)
    rows = max(TILE // block_width, 1)
    return {"BLOCK_ROWS": rows, "BLOCK_WIDTH": block_width, "num_warps": min(max(rows * block_width // 512, 4), 16)}


def head_blocks(num_heads: int, width: int) -> Config:
    """Return the blocks of kernels that take the heads of a token, in halves of their features."""
    half = padded_width(width // 2)
    heads = min(max(TILE // half, 1), 1 << (num_heads - 1).bit_length())
    return {"BLOCK_HEADS": heads, "BLOCK_HALF": half, "num_warps": min(max(heads * half // 512, 1), 8)}


FEW_ROWS = 16
"""Rows of the tile that the tensor cores multiply at least, whether there are as many or not."""


def few_rows(found: Architecture, dtype: torch.dtype, columns: int, width: int, gated: bool) -> Config:
    """Return the blocks of products of few rows with so many columns and features; timed on an H200 in passes of Emu3's body.

    They do not depend on the rows, and nor do the bits of a result. What counts is how many bytes are on their way at a time, some stages
    of 16 or 32 KiB on every processor, and that a warp's products do not wait for each other. A row of a tile is 256 bytes, from which on
    Triton arranges the tiles of 16 rows so that their reading meets no conflicts of banks.
    """
    single, slices = dtype == torch.float32, 2 if gated else 4
    most = 3 if found.shared_bytes < AMPERE.shared_bytes else 4 if found is AMPERE else 5
    long = (
        width > columns
    )  # few columns of many features: narrow tiles, so that there are two programs for each processor
    stages = 4 if long else 3 if columns > width else 5
    return {
        "SLICES": slices,
        "BLOCK_ROWS": FEW_ROWS,
        "BLOCK_COLUMNS": 16 if gated or long else 32,
        "BLOCK_WIDTH": 64 if single else 128,
        "PRODUCT": "tf32x3" if single else None,  # three products: about the accuracy of float32
        "num_warps": slices,
        "num_stages": 5 if gated else min(stages, most),
    }
