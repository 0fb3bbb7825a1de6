"""Token shards of format version 1, which is read and no longer written (docs/formats.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emu.data.shards.arrays import HEADER_BYTES, StoredArray, array_path, marker_path
from emu.data.shards.checksums import DamagedShards, read_json
from emu.data.shards.shard import Manifest, Shard, check_starts, weight_table
from emu.data.shards.spans import MAY_DROP, Kind
from emu.data.shards.writing import MANIFEST, id_dtype, shard_numbers
from emu.vocabulary import Vocabulary


def check_entries(folder: Path, entries: Any) -> None:
    """Compare the shards of a manifest, which has no checksum, with the JSON files of the shards.

    Raises:
        FileNotFoundError: a shard's JSON is missing.
        DamagedShards: they do not agree, or the folder holds other shards than the manifest lists.
    """
    if not isinstance(entries, list):
        raise DamagedShards(folder / MANIFEST, "it does not list its shards")
    unlisted = shard_numbers(folder)[len(entries) :]
    if unlisted:
        raise DamagedShards(
            folder / MANIFEST,
            f"it does not list shard {unlisted[-1]}, whose files lie beside it (take them away if they are left over from another run)",
        )
    for number, entry in enumerate(entries):
        marker = marker_path(folder, number)
        if {name: value for name, value in read_json(marker).items() if name != "about"} != entry:
            raise DamagedShards(marker, f"it and {MANIFEST} beside it say different things of this shard")


def sizes_of(entry: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, int]:
    """Bytes of the files of a shard's arrays, by name, from its entry in the manifest."""
    documents, tokens = entry["documents"], entry["tokens"]
    values = {
        "ids": tokens * id_dtype(vocabulary).itemsize,
        "offsets": 8 * (documents + 1),
        "weights": tokens,
        "captions": 16 * documents,
    }
    return {name: HEADER_BYTES + size for name, size in values.items()}


def open_version_1(manifest: Manifest, number: int) -> Shard:
    """A shard of version 1; errors as in `open_shard`."""
    entry = manifest.shards[number].described
    marker = marker_path(manifest.folder, number)
    documents, tokens = entry["documents"], entry["tokens"]
    try:
        table = weight_table(marker, entry["weights"])
        digests = {name: str(entry["sha256"][name]) for name in ("ids", "weights", "offsets", "captions")}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedShards(marker, f"it is not the description of a shard ({error})") from error

    def array(name: str, dtype: Any, shape: tuple[int, ...], limit: int | None = None) -> StoredArray:
        path, size = array_path(manifest.folder, number, name), manifest.shards[number].sizes[name]
        return StoredArray(path, np.dtype(dtype), shape, [digests[name]], block_bytes=size, digest=_sha256, limit=limit)

    offsets, captions = array("offsets", np.int64, (documents + 1,)), array("captions", np.int64, (documents, 2))
    starts = offsets.check()
    check_starts(offsets.path, starts, tokens)
    dropped, lengths = captions.check(), np.diff(starts)
    if (dropped < 0).any() or (dropped.sum(axis=1) > lengths).any():
        raise DamagedShards(captions.path, "a caption lies outside its document")
    has_caption = dropped[:, 1] > 0
    rows = np.zeros((int(has_caption.sum()), 4), np.uint32)
    rows[:, :2], rows[:, 3] = dropped[has_caption], MAY_DROP
    return Shard(
        ids=array("ids", id_dtype(manifest.vocabulary), (tokens,), manifest.vocabulary.size),
        weights=array("weights", np.uint8, (tokens,), len(entry["weights"])),
        table=table,
        starts=starts,
        captions=dropped if has_caption.any() else None,
        span_starts=np.concatenate([[0], np.cumsum(has_caption)]),
        spans=rows,
        kinds=(Kind("text"),),
        has_segments=False,
    )


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
