"""How much memory generation takes on top of the weights, known before it starts, and how much is available."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emu.modalities import Grid
from emu_tokenizers import VisionTokenizer

SHARE = 0.8
"""Of the free memory, where nobody says how much may be used; the rest is for what the figures leave out."""
GIB = 1 << 30
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": GIB}
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class DrawingMemory:
    """Bytes that generation takes on top of the weights.

    Attributes:
        sequence: per block in a batch: its cache, with guidance those of two rows, and the working memory of a pass.
        decoding: for turning one block's codes into pixels.
        copies: of weights that the first call rearranges for its matrix products.
    """

    sequence: int
    decoding: int
    copies: int

    def peak(self, count: int) -> int:
        """Return the peak in bytes with N blocks in a batch."""
        return self.copies + max(count * self.sequence, self.decoding)

    def fitting(self, most: int, budget: int | None) -> int:
        """Return how many of at most N blocks fit a budget in bytes, None for no limit; 0 if not even one does."""
        return most if budget is None else max(0, min(most, (budget - self.copies) // self.sequence))


def decoding_memory(vision: VisionTokenizer | None, grid: Grid) -> int:
    """Bytes for decoding one grid (height, width) or (time, height, width) of codes: the widest maps of a pass, and the pixels."""
    if vision is None or len(grid) not in (2, 3):
        return 0
    *time, height, width = grid
    frames = math.prod(time) * vision.temporal_factor if time else 1
    frame = height * width * vision.spatial_factor**2
    held = min(frames * frame, max(frame, vision.max_pixels_per_pass))
    if frame > vision.max_pixels_per_picture:
        held = vision.max_pixels_per_pass
    widest = 2 * vision.config.base_channels * vision.config.channel_multiplier[0]
    return (held * widest + 3 * 3 * frames * frame) * vision.dtype.itemsize


def memory_budget(memory: Any, device: torch.device) -> int | None:
    """Return the memory limit in bytes: the one given, or a share of what is free; None if that is unknown.

    Args:
        memory: a number of bytes, or text such as "8GB" or "7.5GiB"; None for `SHARE` of the free memory.
        device: the device.

    Raises:
        TypeError, ValueError: anything else.
    """
    if memory is None:
        free = free_memory(device)
        return None if free is None else int(SHARE * free)
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B|)\s*", memory, re.IGNORECASE)
        if not found or found[2].upper() not in _UNITS:
            raise ValueError(f'memory is {memory!r}; expected bytes or text such as "8GB"')
        memory = int(float(found[1]) * _UNITS[found[2].upper()])
    if isinstance(memory, bool) or not isinstance(memory, int):
        raise TypeError(f'memory is {memory!r}; expected a whole number of bytes or text such as "8GB"')
    if memory < 1:
        raise ValueError(f"memory is {memory}; expected a positive number of bytes")
    return memory


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes: of a GPU's memory, else of the machine's, within this process's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch's allocator holds without using it is free for us too.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = []
    if _MEMINFO.is_file():
        table = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        if "MemAvailable" in table:
            found.append(1024 * int(table["MemAvailable"].split()[0]))
    limit = _CGROUP / "memory.max"
    if limit.is_file() and (most := limit.read_text().strip()).isdecimal():
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files that nobody used lately count as used, and are given up when memory is asked for.
        used = int((_CGROUP / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        found.append(max(0, int(most) - used))
    return min(found, default=None)


def shown_bytes(count: float) -> str:
    """Format a number of bytes for people."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
