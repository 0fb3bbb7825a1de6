"""What a folder of token shards and a shard of it are in memory, whatever the version of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu.data.shards.arrays import StoredArray
from emu.data.shards.checksums import DamagedShards
from emu.data.shards.spans import Kind
from emu.vocabulary import Vocabulary


@dataclass(frozen=True)
class ShardSummary:
    """What the manifest says of a shard.

    Attributes:
        documents, tokens: how many it holds.
        max_length: tokens of its longest document.
        sizes: bytes of each array's file, by name.
        described: the manifest's whole entry.
    """

    documents: int
    tokens: int
    max_length: int
    sizes: Mapping[str, int]
    described: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What a folder of token shards says of itself.

    Attributes:
        folder: that it was read from.
        version: of the format.
        vocabulary: the table that the ids belong to.
        fingerprints: digests of the vocabulary and of the tokenizers.
        shards: one summary each.
        digest: of everything that training reads.
    """

    folder: Path
    version: int
    vocabulary: Vocabulary
    fingerprints: Mapping[str, str]
    shards: tuple[ShardSummary, ...]
    digest: str


@dataclass(frozen=True)
class Shard:
    """An open shard: what is small is checked, ids and weights are checked as they are read.

    Attributes:
        ids: (tokens,) unsigned.
        weights: (tokens,) uint8 indices into `table`.
        table: (256,) float32 loss weights, those that no token has are 0.
        starts: (documents + 1,) int64, first token of each document.
        captions: (documents, 2) int64, what may be left out of each; None where nothing may be left out of any.
        span_starts: (documents + 1,) int64, first span of each document.
        spans: (n, 4) rows of `span_rows`.
        kinds: that the spans point into.
        has_segments: whether the spans of all segments are known.
    """

    ids: StoredArray
    weights: StoredArray
    table: np.ndarray
    starts: np.ndarray
    captions: np.ndarray | None
    span_starts: np.ndarray
    spans: np.ndarray
    kinds: tuple[Kind, ...]
    has_segments: bool


def check_starts(path: Path, starts: np.ndarray, total: int) -> None:
    """Raise DamagedShards where starts (n + 1,) do not begin at 0, fall, or do not end at `total`."""
    if starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        raise DamagedShards(path, f"its offsets do not rise from 0 to {total}")


def weight_table(path: Path, weights: list[float]) -> np.ndarray:
    """Loss weights (256,) float32, filled up with zeros: every byte is an index, which makes looking them up faster.

    Raises:
        DamagedShards: there are more than 256, or one is negative or not finite.
    """
    given = np.array(weights, np.float32)
    if given.ndim != 1 or len(given) > 256 or not np.isfinite(given).all() or (given < 0).any():
        raise DamagedShards(path, f"it has the loss weights {weights}; expected up to 256 finite numbers of 0 or more")
    table = np.zeros(256, np.float32)
    table[: len(given)] = given
    return table
