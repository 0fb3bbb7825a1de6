"""Writing token shards: arrays first, then what they are, then the manifest that closes the folder (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu.data.shards.arrays import array_bytes, array_path, check_size, marker_path
from emu.data.shards.checksums import DamagedShards, block_digests, check_seal, json_digest, read_json, sealed
from emu.data.shards.spans import KindTable, span_rows
from emu.documents import Span, TokenDocument
from emu.vocabulary import Vocabulary
from emu_tokenizers.files import write_file, write_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
ARRAYS = ("ids", "weights", "offsets", "spans")


@dataclass(frozen=True)
class TokenizedDocument:
    """A document with what training needs to know of its segments.

    Attributes:
        document: ids and weights, and the spans of its segments where they are known.
        caption: (first token, number of tokens) that may be left out; (0, 0) for none.
        roles: who says each segment in a conversation ("user", "assistant", "system"); empty where it is none.
        source: a name for where the document comes from.
    """

    document: TokenDocument
    caption: tuple[int, int] = (0, 0)
    roles: tuple[str, ...] = ()
    source: str = ""

    @property
    def spans(self) -> tuple[Span, ...]:
        """Those of the document, or that of the caption where the document has none."""
        if self.document.spans or not self.caption[1]:
            return self.document.spans
        return (Span(*self.caption),)


def write_shard(
    folder: Path, number: int, documents: Sequence[TokenizedDocument], vocabulary: Vocabulary, about: Mapping[str, Any]
) -> None:
    """Write a shard; it exists when this returns, and not before.

    Args:
        folder: of the shards.
        number: of this one, from 0.
        documents: any number of them.
        vocabulary: chooses the type of the ids.
        about: plain values to be kept with it, e.g. which input it was made from.

    Raises:
        ValueError: a document has ids outside the vocabulary, weights that are negative or not finite or spans outside of it, or the
            documents have more than 256 different weights.
    """
    ids = torch.cat([torch.empty(0, dtype=torch.int64), *(item.document.ids for item in documents)]).numpy()
    weights = torch.cat([torch.empty(0), *(item.document.weights for item in documents)]).numpy()
    lengths = [len(item.document) for item in documents]
    _check_values(number, ids, weights, lengths, vocabulary)
    table, codes = np.unique(weights, return_inverse=True)
    if len(table) > 256:
        raise ValueError(f"documents with {len(table)} different loss weights; a shard holds up to 256")
    kinds = KindTable()
    rows = [
        span_rows(item.spans, len(item.document), item.caption, item.roles, item.source, kinds) for item in documents
    ]
    offsets = np.stack([np.cumsum([0, *lengths]), np.cumsum([0, *map(len, rows)])], axis=1)
    arrays = {
        "ids": ids.astype(id_dtype(vocabulary)),
        "weights": codes.astype(np.uint8),
        "offsets": offsets.astype(np.int64),
        "spans": np.concatenate([np.empty((0, 4), np.uint32), *rows]),
    }
    written = {name: array_bytes(array) for name, array in arrays.items()}
    for name, data in written.items():
        write_file(array_path(folder, number, name), data)
    content = {
        "documents": len(documents),
        "tokens": sum(lengths),
        "spans": len(arrays["spans"]),
        "max_length": max(lengths, default=0),
        "segments": all(item.document.spans or len(item.document) <= 2 for item in documents),
        "weights": table.astype(float).tolist(),
        "kinds": kinds.to_list(),
        "arrays": {name: {"bytes": len(data), "blocks": block_digests(data)} for name, data in written.items()},
    }
    write_json(marker_path(folder, number), sealed(content=content, about=dict(about)))


def id_dtype(vocabulary: Vocabulary) -> np.dtype:
    """The smallest unsigned type that holds every id."""
    return np.dtype(np.min_scalar_type(vocabulary.size - 1))


def _check_values(
    number: int, ids: np.ndarray, weights: np.ndarray, lengths: Sequence[int], vocabulary: Vocabulary
) -> None:
    wrong_ids = (ids < 0) | (ids >= vocabulary.size)
    wrong = wrong_ids | ~np.isfinite(weights) | (weights < 0)
    if wrong.any():
        token = int(wrong.argmax())
        document = int(np.searchsorted(np.cumsum(lengths), token, side="right"))
        what = f"the id {ids[token]}, outside a vocabulary of {vocabulary.size}"
        if not wrong_ids[token]:
            what = f"the loss weight {weights[token]}; expected a finite number of 0 or more"
        raise ValueError(f"document {document} of shard {number} has {what}")


def read_content(folder: Path, number: int) -> dict[str, Any]:
    """What the JSON of a shard says of its arrays.

    Raises:
        FileNotFoundError: the file is missing.
        DamagedShards: it does not hold what was written.
    """
    path = marker_path(folder, number)
    table = read_json(path)
    check_seal(path, table, "content")
    return table["content"]


def read_entry(folder: Path, number: int) -> dict[str, Any] | None:
    """What a finished shard says of itself, with `about`; None where there is none, or where a file of it is damaged or of version 1.

    Every byte is checked, so that a run that goes on never builds on damaged shards.
    """
    path = marker_path(folder, number)
    try:
        table = read_json(path)
        check_seal(path, table, "content", "about")
        for name in ARRAYS:
            expected, file = table["content"]["arrays"][name], array_path(folder, number, name)
            check_size(file, expected["bytes"])
            if block_digests(file.read_bytes()) != expected["blocks"]:
                return None
    except (FileNotFoundError, DamagedShards):
        return None
    return table["content"] | {"about": table["about"]}


def write_manifest(folder: Path, num_shards: int, vocabulary: Vocabulary, fingerprints: Mapping[str, str]) -> None:
    """Close a folder whose shards are all written.

    Raises:
        FileNotFoundError: one of them is missing.
        DamagedShards: the JSON of one does not hold what was written.
    """
    content = {
        "vocabulary": vocabulary.to_dict(),
        "fingerprints": dict(fingerprints),
        "shards": [_summary(read_content(folder, number)) for number in range(num_shards)],
    }
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION} | sealed(content=content))


def _summary(content: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: content[name] for name in ("documents", "tokens", "spans", "max_length")}
    sizes = {name: content["arrays"][name]["bytes"] for name in ARRAYS}
    return counts | {"bytes": sizes, "sha256": json_digest(content)}


def shard_numbers(folder: Path) -> list[int]:
    """Numbers of the shards whose JSON lies in a folder, in order."""
    return sorted(int(file.stem[6:]) for file in folder.glob("shard-*.json") if file.stem[6:].isdecimal())
