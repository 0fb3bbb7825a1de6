"""Token shards of format version 2, which is written (docs/formats.md)."""

from __future__ import annotations

import numpy as np

from emu.data.shards.arrays import StoredArray, array_path, marker_path
from emu.data.shards.checksums import DamagedShards, json_digest
from emu.data.shards.shard import Manifest, Shard, check_starts, weight_table
from emu.data.shards.spans import Kind, captions_of, spans_problem
from emu.data.shards.writing import ARRAYS, MANIFEST, id_dtype, read_content


def open_version_2(manifest: Manifest, number: int) -> Shard:
    """A shard of version 2; errors as in `open_shard`."""
    content = read_content(manifest.folder, number)
    marker = marker_path(manifest.folder, number)
    if json_digest(content) != manifest.shards[number].described["sha256"]:
        raise DamagedShards(marker, f"it belongs to another shard than {MANIFEST} says")
    shapes: dict[str, tuple[int, ...]] = {
        "ids": (content["tokens"],),
        "weights": (content["tokens"],),
        "offsets": (content["documents"] + 1, 2),
        "spans": (content["spans"], 4),
    }
    dtypes = {
        "ids": id_dtype(manifest.vocabulary),
        "weights": np.dtype(np.uint8),
        "offsets": np.dtype(np.int64),
        "spans": np.dtype(np.uint32),
    }
    limits = {"ids": manifest.vocabulary.size, "weights": len(content["weights"])}
    arrays = {
        name: StoredArray(
            array_path(manifest.folder, number, name),
            dtypes[name],
            shapes[name],
            content["arrays"][name]["blocks"],
            limit=limits.get(name),
        )
        for name in ARRAYS
    }
    offsets, spans = arrays["offsets"].check(), arrays["spans"].check()
    starts, span_starts = offsets[:, 0], offsets[:, 1]
    check_starts(arrays["offsets"].path, starts, content["tokens"])
    check_starts(arrays["offsets"].path, span_starts, content["spans"])
    problem = spans_problem(starts, span_starts, spans, len(content["kinds"]))
    if problem is not None:
        raise DamagedShards(arrays["spans"].path, problem)
    return Shard(
        ids=arrays["ids"],
        weights=arrays["weights"],
        table=weight_table(marker, content["weights"]),
        starts=starts,
        captions=captions_of(span_starts, spans),
        span_starts=span_starts,
        spans=spans,
        kinds=tuple(map(Kind.from_dict, content["kinds"])),
        has_segments=content["segments"],
    )
