"""Token shards: documents tokenised once, stored as memory-mapped arrays, read in any order.

A folder holds `shard-00000.ids.npy` (the ids of its documents one after another, in the smallest unsigned type), `.offsets.npy`
(n + 1 starts), `.weights.npy` (one byte a token, an index into a table of weights), `.captions.npy` (n, 2) (which tokens of a document
may be left out for guidance) and `shard-00000.json`, written last: a shard without it is not there. `manifest.json`, written when all
shards are, holds the vocabulary and the fingerprints of the tokenizers. No pickle is read or written.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu.data.permutation import derive_key
from emu.documents import TokenDocument
from emu.vocabulary import Vocabulary
from emu_tokenizers.files import write_file

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
ARRAYS = ("ids", "offsets", "weights", "captions")


@dataclass(frozen=True)
class TokenizedDocument:
    """A document with the place of its caption.

    Attributes:
        document: ids and weights.
        caption: (first token, number of tokens) that may be left out; (0, 0) for none.
    """

    document: TokenDocument
    caption: tuple[int, int] = (0, 0)


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
        ValueError: the documents have more than 256 different weights.
    """
    ids = torch.cat([torch.empty(0, dtype=torch.int64), *(item.document.ids for item in documents)]).numpy()
    weights = torch.cat([torch.empty(0), *(item.document.weights for item in documents)]).numpy()
    table, codes = np.unique(weights, return_inverse=True)
    if len(table) > 256:
        raise ValueError(f"documents with {len(table)} different loss weights; a shard holds up to 256")
    lengths = [len(item.document) for item in documents]
    arrays = {
        "ids": ids.astype(np.min_scalar_type(vocabulary.size - 1)),
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "weights": codes.astype(np.uint8),
        "captions": np.array([item.caption for item in documents], dtype=np.int64).reshape(-1, 2),
    }
    written = {name: _npy(array) for name, array in arrays.items()}
    for name, data in written.items():
        write_file(_path(folder, number, name), data)
    entry = {
        "documents": len(documents),
        "tokens": int(sum(lengths)),
        "max_length": max(lengths, default=0),
        "weights": table.astype(float).tolist(),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in written.items()},
        "about": dict(about),
    }
    write_file(_marker(folder, number), json.dumps(entry, indent=2).encode())


def read_entry(folder: Path, number: int) -> dict[str, Any] | None:
    """What a finished shard says about itself, None where there is none."""
    marker = _marker(folder, number)
    return json.loads(marker.read_text()) if marker.is_file() else None


def write_manifest(folder: Path, num_shards: int, vocabulary: Vocabulary, fingerprints: Mapping[str, str]) -> None:
    """Close a folder whose shards are all written."""
    entries = [read_entry(folder, number) for number in range(num_shards)]
    table = {
        "format_version": FORMAT_VERSION,
        "vocabulary": vocabulary.to_dict(),
        "fingerprints": dict(fingerprints),
        "shards": [{name: entry[name] for name in entry if name != "about"} for entry in entries if entry is not None],
    }
    write_file(folder / MANIFEST, json.dumps(table, indent=2).encode())


class TokenShards:
    """A folder of token shards as a source of documents.

    Args:
        folder: written by `emu tokenize`.
        caption_dropout: share of the documents whose caption is left out, drawn from the document's key.

    Attributes:
        vocabulary: the table that the ids belong to.
        fingerprints: digests of the vocabulary and the tokenizers that made them.
        max_length: tokens of the longest document.

    Raises:
        FileNotFoundError: the folder is missing or was never finished.
        ValueError: another format, a damaged manifest, files of other sizes than it says, or a share outside [0, 1].
    """

    def __init__(self, folder: str | Path, caption_dropout: float = 0.0) -> None:
        self.folder = Path(folder)
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout is {caption_dropout}; expected a share in [0, 1]")
        self.caption_dropout = caption_dropout
        manifest = _read_manifest(self.folder)
        self.vocabulary = Vocabulary.from_dict(manifest["vocabulary"])
        self.fingerprints: dict[str, str] = manifest["fingerprints"]
        self._entries: list[dict[str, Any]] = manifest["shards"]
        self._ends = list(itertools.accumulate(entry["documents"] for entry in self._entries))
        self.max_length = max((entry["max_length"] for entry in self._entries), default=0)
        self._open: dict[int, dict[str, np.ndarray]] = {}
        for number in range(len(self._entries)):
            self._arrays(number)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __reduce__(self) -> tuple[type[TokenShards], tuple[Path, float]]:
        return TokenShards, (self.folder, self.caption_dropout)

    def document(self, index: int, key: int) -> TokenDocument:
        """Document `index`; `key` decides whether it keeps its caption."""
        arrays, number, place = self._find(index)
        start, end = (int(offset) for offset in arrays["offsets"][place : place + 2])
        ids = torch.from_numpy(arrays["ids"][start:end].astype(np.int64))
        table = torch.tensor(self._entries[number]["weights"], dtype=torch.float32)
        weights = table[torch.from_numpy(arrays["weights"][start:end].astype(np.int64))]
        first, count = self._dropped(arrays, place, key)
        keep = torch.cat([torch.arange(first), torch.arange(first + count, end - start)])
        return TokenDocument(ids[keep], weights[keep]) if count else TokenDocument(ids, weights)

    def length(self, index: int, key: int) -> int:
        """Number of tokens of `document(index, key)`."""
        arrays, _, place = self._find(index)
        start, end = arrays["offsets"][place : place + 2]
        return int(end - start) - self._dropped(arrays, place, key)[1]

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            ValueError: a file was changed; the message names it.
        """
        for number, entry in enumerate(self._entries):
            for name, expected in entry["sha256"].items():
                path = _path(self.folder, number, name)
                if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                    raise ValueError(f"{path} is not what was written: its checksum differs; tokenise it again")

    def _dropped(self, arrays: Mapping[str, np.ndarray], place: int, key: int) -> tuple[int, int]:
        first, count = (int(value) for value in arrays["captions"][place])
        chance = derive_key("caption", key) / 2**63
        return (first, count) if count and chance < self.caption_dropout else (0, 0)

    def _find(self, index: int) -> tuple[dict[str, np.ndarray], int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        return self._arrays(number), number, index - (self._ends[number - 1] if number else 0)

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._open:
            self._open[number] = {name: _map(_path(self.folder, number, name)) for name in ARRAYS}
            entry, arrays = self._entries[number], self._open[number]
            sizes = [len(arrays[name]) for name in ARRAYS]
            expected = [entry["tokens"], entry["documents"] + 1, entry["tokens"], entry["documents"]]
            if sizes != expected:
                raise ValueError(f"shard {number} of {self.folder} has arrays of {sizes}; its manifest says {expected}")
        return self._open[number]


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        state = "is not finished: run the same emu tokenize again" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} {state} (no {MANIFEST})")
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; tokenise again") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{file} has format {manifest.get('format_version')!r}, this library reads {FORMAT_VERSION}")
    return manifest


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}; tokenise it again") from error


def _npy(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    return written.getvalue()


def _path(folder: Path, number: int, name: str) -> Path:
    return folder / f"shard-{number:05d}.{name}.npy"


def _marker(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"
