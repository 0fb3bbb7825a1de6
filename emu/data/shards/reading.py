"""A folder of token shards as a source of documents."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from emu.data.shards.checksums import DamagedShards, json_digest
from emu.data.shards.pieces import LONG_DOCUMENTS, Pieces, last_kinds, make_pieces
from emu.data.shards.shard import Shard
from emu.data.shards.shard_folder import open_shard, read_manifest
from emu.documents import TokenDocument
from emu.randomness import derive_key


class TokenShards:
    """A folder of token shards as a source of documents.

    Args:
        folder: written by `emu tokenize`.
        caption_dropout: share of the documents whose caption is left out, drawn from the document's key.
        row_length: what `long_documents` is about; None takes documents of any length.
        long_documents: what becomes of documents of more tokens than a row: "refuse" leaves the refusal to the caller, "drop"
            leaves them out, "cut" makes pieces of them, see `make_pieces`.

    Attributes:
        vocabulary: the table that the ids belong to.
        fingerprints: digests of the vocabulary and the tokenizers that made them.
        max_length: tokens of the longest document or piece.
        pieces: by number of the shard what is read in place of its documents, where it has documents that are longer than a row.

    Raises:
        FileNotFoundError: the folder or a file is missing, or it was never finished.
        ValueError: another format, a damaged manifest, files of other sizes than it says, a share outside [0, 1], an unknown word for
            long documents, or documents to be cut whose segments are not known.
    """

    def __init__(
        self,
        folder: str | Path,
        caption_dropout: float = 0.0,
        *,
        row_length: int | None = None,
        long_documents: str = "refuse",
    ) -> None:
        self.folder = Path(folder)
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout is {caption_dropout}; expected a share in [0, 1]")
        if long_documents not in LONG_DOCUMENTS:
            raise ValueError(f"long_documents is {long_documents!r}; expected one of {', '.join(LONG_DOCUMENTS)}")
        self.caption_dropout, self.row_length, self.long_documents = caption_dropout, row_length, long_documents
        self.manifest = read_manifest(self.folder)
        self.vocabulary, self.fingerprints = self.manifest.vocabulary, dict(self.manifest.fingerprints)
        self._open: list[Shard | None] = [None] * len(self.manifest.shards)
        self.pieces: dict[int, Pieces] = {}
        if row_length is not None and long_documents != "refuse":
            self.pieces = {number: self._pieces(number, row_length) for number in self._with_longer(row_length)}
        counts = [shard.documents for shard in self.manifest.shards]
        longest = [shard.max_length for shard in self.manifest.shards]
        for number, pieces in self.pieces.items():
            counts[number], longest[number] = len(pieces.rows), int(pieces.lengths.max(initial=0))
        self._ends = list(itertools.accumulate(counts))
        self.max_length = max(longest, default=0)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __reduce__(self) -> tuple[Callable[..., TokenShards], tuple[object, ...]]:
        return _reopen, (self.folder, self.caption_dropout, self.row_length, self.long_documents)

    @property
    def identity(self) -> str:
        """A digest of everything that decides on `document(index, key)`: what the files hold and the settings that count."""
        cut = [self.row_length, self.long_documents] if self.pieces else []
        return json_digest([self.manifest.digest, float(self.caption_dropout), cut])

    def document(self, index: int, key: int) -> TokenDocument:
        """Document `index`; `key` decides whether it keeps its caption.

        Raises:
            IndexError: there are fewer.
            DamagedShards: a file does not hold what was written; it is named.
        """
        shard, parts = self._parts(index, key)
        if len(parts) == 1:
            ((start, stop),) = parts
            ids, codes = shard.ids.read(start, stop), shard.weights.read(start, stop)
        else:
            ids = np.concatenate([shard.ids.read(start, stop) for start, stop in parts])
            codes = np.concatenate([shard.weights.read(start, stop) for start, stop in parts])
        return TokenDocument(
            torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(shard.table.take(codes, mode="wrap"))
        )

    def length(self, index: int, key: int) -> int:
        """Number of tokens of `document(index, key)`."""
        return sum(stop - start for start, stop in self._parts(index, key)[1])

    def lengths(self) -> np.ndarray:
        """(len(self),) int64: tokens of each document with its caption; errors as in `document`."""
        parts = [
            self.pieces[number].lengths if number in self.pieces else np.diff(shard.starts)
            for number, shard in enumerate(self.open_shards())
        ]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def token_lengths(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(n,) int64: `length` of the documents `numbers` (n,) under `keys` (n,), all at once; errors as in `document`."""
        lengths, droppable = self._lengths
        found = lengths[numbers].astype(np.int64)
        if not self.caption_dropout or not droppable.any():
            return found
        # Only a document that has a caption draws whether it keeps it.
        for place in np.flatnonzero(droppable[numbers]).tolist():
            if self._drops(int(keys[place])):
                found[place] -= droppable[numbers[place]]
        return found

    @property
    def mean_length(self) -> float:
        """Expected tokens of a document: captions count by the share of documents that keep them; errors as in `document`."""
        lengths, droppable = self._lengths
        return float(lengths.mean(dtype=np.float64) - self.caption_dropout * droppable.mean(dtype=np.float64))

    @cached_property
    def _lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each document, and of what may be left out of it: (len(self),) int32 each."""
        droppable = []
        for number, shard in enumerate(self.open_shards()):
            if number in self.pieces:
                droppable.append(self.pieces[number].rows[:, 5])
            else:
                none = np.zeros(len(shard.starts) - 1, np.int32)
                droppable.append(none if shard.captions is None else shard.captions[:, 1])
        return self.lengths().astype(np.int32), np.concatenate([np.empty(0, np.int32), *droppable]).astype(np.int32)

    def last_blocks(self, modalities: Sequence[str]) -> tuple[list[tuple[str, tuple[int, ...]]], np.ndarray]:
        """The last block of codes of each document.

        Args:
            modalities: names of those whose blocks count.

        Returns:
            Kinds of blocks (modality, grid), and (len(self),) int64 the number of each document's kind, -1 without a block.

        Raises:
            ValueError: the folder does not say where segments lie; other errors as in `document`.
        """
        numbers: dict[tuple[str, tuple[int, ...]], int] = {}
        found = [np.empty(0, np.int64)]
        for number, shard in enumerate(self.open_shards()):
            if not shard.has_segments:
                raise ValueError(
                    f"{self.folder} does not say where the pictures of its documents lie; rewrite it with emu shards merge --tokenizer"
                )
            of_kind = [
                numbers.setdefault((kind.modality, kind.grid), len(numbers)) if kind.modality in modalities else -1
                for kind in shard.kinds
            ]
            last = last_kinds(shard, np.array(of_kind, np.int64) >= 0, self.pieces.get(number))
            found.append(np.array([*of_kind, -1], np.int64)[last])
        return list(numbers), np.concatenate(found)

    def count_longer(self, length: int) -> int:
        """Number of the documents of the folder that have more tokens."""
        return sum(int((np.diff(self.shard(n).starts) > length).sum()) for n in self._with_longer(length))

    def too_long(self, row_length: int) -> str:
        """How many documents are longer than a row, and the ways out, for a message."""
        total = sum(shard.documents for shard in self.manifest.shards)
        return (
            f"{self.count_longer(row_length)} of {total} documents of more than {row_length} tokens, the length of a row (the longest has "
            f"{self.max_length}); raise row_length to {self.max_length}, or say what becomes of them: long_documents: drop leaves them "
            "out, long_documents: cut makes pieces of whole segments"
        )

    def describe_long_documents(self) -> str:
        """What became of documents that are longer than a row, in words; empty where there are none, or they are refused."""
        if not self.pieces:
            return ""
        made = list(self.pieces.values())
        long, left_out = sum(pieces.long for pieces in made), sum(pieces.left_out for pieces in made)
        total = sum(shard.documents for shard in self.manifest.shards)
        outcome = f"{long} of {total} documents are longer than a row of {self.row_length} tokens and are "
        if self.long_documents == "drop":
            return outcome + "left out"
        num_pieces = len(self) - (total - long)
        blocks = sum(pieces.blocks_left_out for pieces in made)
        outcome += f"cut into {num_pieces} pieces"
        outcome += f"; blocks of codes that are longer than a row, left out: {blocks}" if blocks else ""
        return outcome + (f"; documents of which nothing is left: {left_out}" if left_out else "")

    def shard(self, number: int) -> Shard:
        """A shard, opened and checked; errors as in `open_shard`."""
        shard = self._open[number]
        if shard is None:
            shard = self._open[number] = open_shard(self.manifest, number)
        return shard

    def open_shards(self) -> Iterator[Shard]:
        """All shards in order."""
        return map(self.shard, range(len(self._open)))

    def damage(self, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> list[str]:
        """Check every byte of every shard.

        Args:
            progress: wraps the numbers of the shards, e.g. with a bar.

        Returns:
            One sentence for each shard that is damaged, with the file's name.
        """
        found = []
        for number in progress(range(len(self._open))):
            try:
                shard = self.shard(number)
                shard.ids.check()
                shard.weights.check()
            except (DamagedShards, FileNotFoundError) as error:
                found.append(str(error))
        return found

    def verify(self) -> None:
        """Check every byte of every shard.

        Raises:
            ValueError: a file does not hold what was written; all of them are named.
        """
        found = self.damage()
        if found:
            raise ValueError("; ".join(found))

    def _with_longer(self, length: int) -> list[int]:
        return [number for number, shard in enumerate(self.manifest.shards) if shard.max_length > length]

    def _pieces(self, number: int, row_length: int) -> Pieces:
        shard, cut = self.shard(number), self.long_documents == "cut"
        if cut and not shard.has_segments:
            raise ValueError(
                f"{self.folder} has documents of more than {row_length} tokens and does not say where their segments lie, so that they "
                "cannot be cut; rewrite it with emu shards merge --tokenizer, or use long_documents: drop"
            )
        return make_pieces(shard, row_length, cut)

    def _parts(self, index: int, key: int) -> tuple[Shard, list[tuple[int, int]]]:
        """The shard of a document, and the stretches of its tokens that make it up."""
        ends = self._ends
        number = bisect_right(ends, index)
        if index < 0 or number == len(ends):
            raise IndexError(f"document {index} of {len(self)}")
        shard, place = self._open[number] or self.shard(number), index - (ends[number - 1] if number else 0)
        if self.pieces and number in self.pieces:
            return shard, self._parts_of_piece(shard, self.pieces[number].rows[place].tolist(), key)
        start, stop = shard.starts.item(place), shard.starts.item(place + 1)
        if self.caption_dropout and shard.captions is not None:
            first, count = shard.captions[place].tolist()
            if count and self._drops(key):
                return shard, _without([(start, stop)], first, count)
        return shard, [(start, stop)]

    def _parts_of_piece(self, shard: Shard, row: list[int], key: int) -> list[tuple[int, int]]:
        document, repeated, start, stop, first, count = row
        at = shard.starts.item(document)
        parts = [(at, at + repeated), (at + start, at + stop)] if repeated else [(at + start, at + stop)]
        return _without(parts, first, count) if count and self.caption_dropout and self._drops(key) else parts

    def _drops(self, key: int) -> bool:
        return derive_key("caption", key) / 2**63 < self.caption_dropout


def _reopen(folder: Path, caption_dropout: float, row_length: int | None, long_documents: str) -> TokenShards:
    return TokenShards(folder, caption_dropout, row_length=row_length, long_documents=long_documents)


def _without(parts: list[tuple[int, int]], first: int, count: int) -> list[tuple[int, int]]:
    """Stretches without `count` of their tokens, from number `first` of them on."""
    kept, passed = [], 0
    for start, stop in parts:
        low, high = start + first - passed, start + first + count - passed
        kept += [(start, min(stop, low)), (max(start, high), stop)]
        passed += stop - start
    return [(start, stop) for start, stop in kept if start < stop] or [(0, 0)]
