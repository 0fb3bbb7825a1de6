"""Which cells of a picture or a clip training hides: rectangles, single cells, whole rows, or frames, drawn from a document's key."""

from __future__ import annotations

import numpy as np

from emu.randomness import derive_key, uniforms


def hidden_cells(grid: tuple[int, ...], key: int) -> np.ndarray:
    """Cells to hide, bool of the grid's shape, at least one of them: a pure function of the grid and the key.

    The kinds that the grid has room for are equally likely: a rectangle of any size in all frames, cells one by one with any share, rows
    likewise, and of clips a run of frames with at least one kept before or after it, as a clip between given frames has them.

    Args:
        grid: 1 to 3 axis lengths, slowest first.
        key: of the document.
    """
    frames, rows, columns = (1,) * (3 - len(grid)) + tuple(grid)
    draws = uniforms(derive_key("hidden", key), 0, 1, 5)[0]
    hidden = np.zeros((frames, rows, columns), bool)
    kinds = ["rectangle", "cells"] + ["rows"] * (rows > 1) + ["frames"] * (frames > 1)
    kind = kinds[int(draws[0] * len(kinds))]
    if kind == "rectangle":
        hidden[:, _run(rows, draws[1], draws[2]), _run(columns, draws[3], draws[4])] = True
    elif kind == "cells":
        hidden[:] = _each(hidden.size, draws[1], draws[2], key).reshape(hidden.shape)
    elif kind == "rows":
        hidden[:, _each(rows, draws[1], draws[2], key)] = True
    else:
        hidden[_run(frames, draws[1], draws[2], longest=frames - 1)] = True
    return hidden.reshape(grid)


def _run(size: int, length: float, first: float, longest: int | None = None) -> slice:
    """A run of 1 to `longest` of `size` places, from two uniform numbers."""
    count = 1 + int(length * (longest or size))
    start = int(first * (size - count + 1))
    return slice(start, start + count)


def _each(size: int, share: float, one: float, key: int) -> np.ndarray:
    """(size,) bool: each with probability `share`, and at least one, that at the part `one` of them."""
    chosen = uniforms(derive_key("each", key), 0, size, 1)[:, 0] < share
    chosen[int(one * size)] |= not chosen.any()
    return chosen
