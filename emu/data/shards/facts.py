"""What folders of token shards hold: counts for people, and what a model that is trained on them was trained for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emu.data.shards.reading import TokenShards
from emu.data.shards.shard import Shard
from emu.data.shards.spans import MAY_DROP, Kind
from emu.modalities import MODALITIES
from emu.trained import Trained, tasks_of


@dataclass
class Contents:
    """Counts of a folder of token shards.

    Attributes:
        lengths: (documents,) int64 tokens of each document.
        tokens_by_weight: loss weight -> number of tokens.
        spans: kind of a segment, as words -> (number of segments, their tokens).
        captions: documents with a caption that may be left out.
        has_segments: whether the segments of all documents are known.
    """

    lengths: np.ndarray
    tokens_by_weight: Counter[float] = field(default_factory=Counter)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    captions: int = 0
    has_segments: bool = True


def contents(shards: TokenShards) -> Contents:
    """Count what a folder holds; reads the weights of every token.

    Raises:
        DamagedShards: a file does not hold what was written.
    """
    found = Contents(shards.lengths())
    for shard in shards.open_shards():
        found.has_segments &= shard.has_segments
        used = np.bincount(shard.weights.check(), minlength=256)
        for index in np.flatnonzero(used).tolist():
            found.tokens_by_weight[round(float(shard.table[index]), 6)] += int(used[index])
        if shard.captions is not None:
            found.captions += int((shard.captions[:, 1] > 0).sum())
        numbers = np.bincount(shard.spans[:, 2], minlength=len(shard.kinds))
        tokens = np.bincount(shard.spans[:, 2], weights=shard.spans[:, 1], minlength=len(shard.kinds))
        for kind, number, count in zip(shard.kinds, numbers.tolist(), tokens.tolist(), strict=True):
            before = found.spans.get(words := in_words(kind), (0, 0))
            found.spans[words] = (before[0] + number, before[1] + int(count))
    return found


def in_words(kind: Kind) -> str:
    """A kind of segment as people read it: "image 8*8", "text (user)"."""
    grid = "*".join(map(str, kind.grid))
    meta = " ".join(f"{name} {value}" for name, value in kind.meta.items())
    asides = [word for word in (kind.role, kind.source) if word]
    return " ".join(word for word in (kind.modality, grid, meta, f"({', '.join(asides)})" if asides else "") if word)


def what_is_trained(sources: Sequence[TokenShards], factors: Mapping[str, int]) -> tuple[Trained, dict[str, Any]]:
    """What a model learns from these documents, and the generation settings that are the most frequent among them.

    Args:
        sources: that it is trained on.
        factors: pixels along each side of a code, by the name of the modalities' codec.

    Returns:
        The tasks, sizes, lengths and rates, each most frequent first, and settings by the names of `emu.json`. Folders that do not say
        where their segments lie add the length of their longest document alone.
    """
    tasks: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    frames: Counter[int] = Counter()
    rates: Counter[float] = Counter()
    context = max((source.max_length for source in sources), default=0) or None
    for source in sources:
        for shard in source.open_shards():
            if not shard.has_segments:
                continue
            for kinds, number in _sequences(shard, source.caption_dropout > 0):
                tasks.update(dict.fromkeys(tasks_of(kinds), number))
            numbers = np.bincount(shard.spans[:, 2], minlength=len(shard.kinds)).tolist()
            for kind, number in zip(shard.kinds, numbers, strict=True):
                modality = MODALITIES.get(kind.modality)
                factor = factors.get(modality.codec or "") if modality is not None else None
                if factor is not None:
                    sizes[(kind.grid[-2] * factor, kind.grid[-1] * factor)] += number
                if "frames" in kind.meta:
                    frames[int(kind.meta["frames"])] += number
                if "fps" in kind.meta:
                    rates[kind.meta["fps"]] += number
    trained = Trained(_ranked(tasks), _ranked(sizes), _ranked(frames), _ranked(rates), context)
    first = {"size": trained.sizes[:1], "frames": trained.frames[:1], "fps": trained.rates[:1]}
    return trained, {name: value for name, values in first.items() for value in values}


def _ranked(counted: Counter) -> tuple:
    return tuple(value for value, number in counted.most_common() if number)


def _sequences(shard: Shard, dropping: bool) -> Iterator[tuple[list[str], int]]:
    """(modalities of the segments in order, number of documents) for each order; without captions too where those are dropped."""
    names = [kind.modality for kind in shard.kinds]
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    modalities = np.array([number_of[name] for name in names], np.int64)[shard.spans[:, 2]] if names else np.empty(0)
    counts = np.diff(shard.span_starts)
    dropped = (shard.spans[:, 3] & MAY_DROP) > 0
    for count in np.unique(counts[counts > 0]).tolist():
        places = shard.span_starts[:-1][counts == count][:, None] + np.arange(count)
        yield from _distinct(modalities[places], list(number_of))
        if dropping:
            marks = dropped[places]
            rows = np.where(marks, -1, modalities[places])[marks.any(axis=1)]
            yield from _distinct(rows, list(number_of))


def _distinct(rows: np.ndarray, names: Sequence[str]) -> Iterable[tuple[list[str], int]]:
    if not len(rows):
        return
    for row, number in zip(*np.unique(rows, axis=0, return_counts=True), strict=True):
        yield [names[index] for index in row.tolist() if index >= 0], int(number)
