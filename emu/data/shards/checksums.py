"""Checksums of token shards: XXH3 for each mebibyte of an array, SHA-256 for what a JSON file says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from emu_tokenizers import files

BLOCK_BYTES = 1 << 20
"""Bytes of an array's file that have one checksum."""


class DamagedShards(ValueError):
    """A file of a folder of token shards does not hold what was written to it.

    Args:
        path: the file.
        what: is wrong with it.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path} is damaged: {what}; tokenise again (the same emu tokenize makes damaged shards anew), or restore the file"
        )
        self.path, self.what = path, what

    def __reduce__(self) -> tuple[Any, ...]:
        return DamagedShards, (self.path, self.what)


def digest(block: bytes | memoryview) -> str:
    """XXH3 of a block: 64 bits, hexadecimal."""
    return xxhash.xxh3_64_hexdigest(block)


def block_digests(data: bytes) -> list[str]:
    """The digest of each block of a file."""
    return [digest(data[start : start + BLOCK_BYTES]) for start in range(0, len(data), BLOCK_BYTES)]


def json_digest(value: Any) -> str:
    """SHA-256 of plain JSON values, whatever the order of keys and the spaces of a file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(**parts: Any) -> dict[str, Any]:
    """A table of these parts, with the digest of each."""
    plain = json.loads(json.dumps(parts))  # as a reader finds it: keys are strings, tuples are lists
    return plain | {"sha256": {name: json_digest(value) for name, value in plain.items()}}


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedShards: it is not a JSON object.
    """
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; tokenise again, or restore the file") from None
    except ValueError as error:
        # Its cause is what the parser said; a JSON value that is not an object has none.
        raise DamagedShards(
            path, f"not JSON ({error.__cause__})" if error.__cause__ else "not a JSON object"
        ) from error


def check_seal(path: Path, table: Mapping[str, Any], *names: str) -> None:
    """Compare parts of a table with their digests.

    Raises:
        DamagedShards: a part or a digest is missing, or they do not agree.
    """
    digests = table.get("sha256")
    for name in names:
        if not isinstance(digests, dict) or name not in table or json_digest(table[name]) != digests.get(name):
            raise DamagedShards(path, f"its {name!r} does not have the checksum that was written")
