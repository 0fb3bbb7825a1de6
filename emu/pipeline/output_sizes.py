"""The size of what is drawn: in pixels, or as a ratio and an area; one for all, or one for each document."""

from __future__ import annotations

import math
from typing import Any

from emu.generation.limits import check_whole
from emu.pipeline.requests import Size, check_size
from emu.trained import Trained
from emu_tokenizers.pixels.resize import size_of_ratio

SizeLike = Size | str | tuple[str, int]
"""(height, width) in pixels, a ratio "width:height", or a ratio and an area in pixels, ("4:3", 262144)."""


def sizes_of(size: Any, count: int, usual: Size | None, factor: int, trained: Trained) -> list[Size]:
    """(height, width) of each of N results.

    Args:
        size: one for all or a list of one each; None is the usual one.
        count: N.
        usual: the model's default, whose area ratios have that say none.
        factor: pixels of a code along each side.
        trained: whose sizes a message names.

    Raises:
        TypeError: another form.
        ValueError: another number of sizes, none where the model has no default, or a side that is not a multiple of the factor.
    """
    if not isinstance(size, list | tuple) or _is_one(size):
        return [_size_of(size, usual, factor, trained)] * count
    if len(size) != count:
        raise ValueError(f"{len(size)} sizes for {count} prompts; give one size, or one per prompt")
    return [_size_of(one, usual, factor, trained) for one in size]


def _is_one(size: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a pair is a single size: no entry of a list of sizes is a number."""
    return not size or any(not isinstance(part, str | list | tuple | None) for part in size)


def _size_of(size: Any, usual: Size | None, factor: int, trained: Trained) -> Size:
    if size is None:
        if usual is None:
            seen = ", ".join(f"({height}, {width})" for height, width in trained.sizes[:8])
            hint = f"; it was trained on {seen}" if seen else ""
            raise ValueError(f"no size: the model has no default, so give size=(height, width) in pixels{hint}")
        return check_size(usual, factor)
    if isinstance(size, str):
        if usual is None:
            raise ValueError(f'size is {size!r}, and the model has no default area; give both, e.g. ("{size}", 262144)')
        return size_of_ratio(size, math.prod(usual), factor)
    if isinstance(size, list | tuple) and len(size) == 2 and isinstance(size[0], str):
        return size_of_ratio(size[0], check_whole("area", size[1], least=1), factor)
    return check_size(size, factor)
