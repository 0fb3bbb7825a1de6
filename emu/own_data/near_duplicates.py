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


def near_pairs(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs (i, j), i < j, of near duplicates.

    Args:
        hashes: (N, 192) uint8, all different ones; every pair is compared, by products of blocks.
    """
    levels = hashes.astype(np.float32) - 128
    squares = (levels * levels).sum(axis=1)
    most = NEAR * NEAR * levels.shape[1]
    for start in range(0, len(levels), BLOCK):
        rows = slice(start, start + BLOCK)
        for other in range(start, len(levels), BLOCK):
            columns = slice(other, other + BLOCK)
            far = squares[rows, None] + squares[None, columns] - 2 * levels[rows] @ levels[columns].T
            for i, j in np.argwhere(far <= most).tolist():
                if start + i < other + j:
                    yield start + i, other + j


def groups_of(hashes: np.ndarray) -> np.ndarray:
    """(N,) int64: the group of each picture (N, 192); pictures joined by a chain of near duplicates are of one group.

    The groups do not depend on the order of the pictures, their numbers do.
    """
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    parents = list(range(len(unique)))

    def root(node: int) -> int:
        while parents[node] != node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for one, other in near_pairs(unique):
        first, second = sorted((root(one), root(other)))
        parents[second] = first
    roots = np.array([root(node) for node in range(len(unique))], np.int64)
    return roots[inverse.reshape(-1)]
