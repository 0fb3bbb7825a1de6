"""Pictures that show the same: which of them must not be divided between training and measuring.

A picture's hash is its reduction to 8x8 colours. Two pictures whose hashes differ by a few levels of 255 are one picture saved twice; a
hash of grey levels alone would also call two people the same who differ in the colour of their skin.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

SIDE = 8
NEAR = 4.0
"""Root mean square difference of two hashes, in levels of 255, below which pictures are the same; saving as JPEG makes 1 to 4."""
BLOCK = 2048


def small_hash(picture: np.ndarray) -> np.ndarray:
    """(192,) uint8: a picture (H, W, 3) uint8 as 8x8 mean colours."""
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)).reshape(-1)


def near_blocks(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(I,) pictures, (J,) others, and (I, J) bool whether they are near duplicates: each pair at least one way around.

    Only pictures of about the same brightness are compared: where the sums of two hashes differ by more than `NEAR` a value, so do the
    hashes. All numbers are integers below 2**24, which float32 holds exactly, so that no result depends on the blocks.

    Args:
        hashes: (N, 192) uint8, or as many values for each.
    """
    sums = hashes.sum(axis=1, dtype=np.int64)
    order = np.argsort(sums, kind="stable")
    levels, sums = hashes[order].astype(np.float32) - 128, sums[order]
    squares = (levels * levels).sum(axis=1)
    width = hashes.shape[1]
    for start in range(0, len(levels), BLOCK):
        rows = slice(start, start + BLOCK)
        end = int(np.searchsorted(sums, sums[rows][-1] + NEAR * width, side="right"))
        for other in range(start, end, BLOCK):
            columns = slice(other, min(other + BLOCK, end))
            far = squares[rows, None] + squares[None, columns] - 2 * levels[rows] @ levels[columns].T
            yield order[rows], order[columns], far <= NEAR * NEAR * width


def groups_of(hashes: np.ndarray) -> np.ndarray:
    """(N,) int64: the group of each picture (N, 192); pictures joined by a chain of near duplicates are of one group.

    The groups do not depend on the order of the pictures, their numbers do.
    """
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    groups = np.arange(len(unique))
    for some, others, near in near_blocks(unique):
        one, two = np.nonzero(near & (groups[some][:, None] != groups[others]))
        unite(groups, some[one], others[two])
    return groups[inverse.reshape(-1)]


def unite(groups: np.ndarray, one: np.ndarray, two: np.ndarray) -> None:
    """Join the groups of pairs (one[k], two[k]) in place: each member holds the smallest number of its group, before and after."""
    while True:
        first, second = groups[one], groups[two]
        apart = first != second
        if not apart.any():
            return
        one, two, first, second = one[apart], two[apart], first[apart], second[apart]
        np.minimum.at(groups, np.maximum(first, second), np.minimum(first, second))
        while not np.array_equal(groups, higher := groups[groups]):
            groups[:] = higher
