"""A folder of token shards: its manifest, read and checked, and its shards, opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emu.data.shards.arrays import array_path, check_size
from emu.data.shards.checksums import DamagedShards, check_seal, json_digest, read_json
from emu.data.shards.shard import Manifest, Shard, ShardSummary
from emu.data.shards.version1 import check_entries, open_version_1, sizes_of
from emu.data.shards.version2 import open_version_2
from emu.data.shards.writing import FORMAT_VERSION, MANIFEST
from emu.vocabulary import Vocabulary

VERSIONS = (1, FORMAT_VERSION)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, checked, with the size of every array compared.

    Raises:
        FileNotFoundError: the folder or a file is missing, or it was never finished.
        ValueError: another format version.
        DamagedShards: the manifest does not hold what was written, or an array has another size.
    """
    file = folder / MANIFEST
    if not file.is_file():
        state = "is not finished: run the same emu tokenize again" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} {state} (no {MANIFEST})")
    table = read_json(file)
    version = table.get("format_version")
    if version not in VERSIONS or isinstance(version, bool | float):
        raise ValueError(f"{file} has format {version!r}, this library reads {' and '.join(map(str, VERSIONS))}")
    if version == FORMAT_VERSION:
        check_seal(file, table, "content")
    content = table["content"] if version == FORMAT_VERSION else table
    if version == 1:
        check_entries(folder, content.get("shards"))
    try:
        manifest = _manifest(folder, version, content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DamagedShards(file, f"it is not a manifest ({type(error).__name__}: {error})") from error
    for number, shard in enumerate(manifest.shards):
        for name, size in shard.sizes.items():
            check_size(array_path(folder, number, name), size)
    return manifest


def _manifest(folder: Path, version: int, content: Mapping[str, Any]) -> Manifest:
    vocabulary = Vocabulary.from_dict(content["vocabulary"])
    fingerprints = {str(name): str(value) for name, value in content["fingerprints"].items()}
    if fingerprints.get("vocabulary", vocabulary.fingerprint) != vocabulary.fingerprint:
        raise ValueError(f"its vocabulary is {vocabulary.fingerprint}, it says {fingerprints['vocabulary']}")
    shards = []
    for entry in content["shards"]:
        documents, tokens, longest = (entry[name] for name in ("documents", "tokens", "max_length"))
        if any(type(count) is not int or count < 0 for count in (documents, tokens, longest)):
            raise ValueError(f"a shard of {documents!r} documents, {tokens!r} tokens, {longest!r} in the longest")
        sizes = entry["bytes"] if version == FORMAT_VERSION else sizes_of(entry, vocabulary)
        shards.append(ShardSummary(documents, tokens, longest, sizes, entry))
    return Manifest(folder, version, vocabulary, fingerprints, tuple(shards), json_digest(content))


def open_shard(manifest: Manifest, number: int) -> Shard:
    """A shard of a folder.

    Raises:
        FileNotFoundError: a file is missing.
        DamagedShards: a file does not hold what was written, or its numbers mean nothing.
    """
    shard = (open_version_1 if manifest.version == 1 else open_version_2)(manifest, number)
    longest, said = int(np.diff(shard.starts).max(initial=0)), manifest.shards[number].max_length
    if longest != said:
        raise DamagedShards(
            manifest.folder / MANIFEST, f"shard {number} has documents of up to {longest} tokens, it says {said}"
        )
    return shard
