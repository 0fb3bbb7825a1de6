"""Windows of records, the unit of encoding: what a window becomes depends on its records alone, whoever encodes it and when."""

from __future__ import annotations

import base64
import io
import os
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from emu.data.shards import TokenizedDocument
from emu.data.tokenizing.document_reader import DocumentReader, Draft
from emu.data.tokenizing.records import Record, RecordSource, problem_at
from emu.documents import Span, TokenDocument
from emu.lines import LineProblem

WINDOW_RECORDS = 1024
"""Records of a window."""
WINDOW_BYTES = 1 << 24
"""Bytes of records after which a window ends even though it has room for more."""
SHARD_BYTES = 1 << 28
"""Bytes of records after which a shard ends even though it has room for more."""
SAMPLE_SIDE = 128
"""Longest side of the pictures that are kept for the report."""


class PackedDocument(NamedTuple):
    """A tokenized document as it travels between processes: plain arrays, which need no shared memory."""

    ids: np.ndarray
    weights: np.ndarray
    spans: tuple[Span, ...]
    caption: tuple[int, int]
    roles: tuple[str, ...]

    def unpacked(self) -> TokenizedDocument:
        """The document with tensors."""
        document = TokenDocument(
            torch.from_numpy(self.ids.astype(np.int64)), torch.from_numpy(self.weights), self.spans
        )
        return TokenizedDocument(document, self.caption, self.roles)


@dataclass
class EncodedWindow:
    """What a window became.

    Attributes:
        documents: of each record in order, None for bad ones.
        problems: of the bad ones in order.
        samples: (number of the record, number among its pictures and clips, PNG in base64) of pictures for the report.
    """

    documents: list[PackedDocument | None]
    problems: list[LineProblem]
    samples: list[tuple[int, int, str]] = field(default_factory=list)


def encode_window(
    records: Sequence[Record], source: RecordSource, reader: DocumentReader, num_samples: int = 0, tick: Any = None
) -> EncodedWindow:
    """Read and encode records.

    Args:
        records: of the window.
        source: that they are of.
        reader: makes documents of them.
        num_samples: pictures that are kept for the report.
        tick: is called for each record that was read.
    """
    batches = reader.batches()
    found: list[Draft | LineProblem] = []
    samples: list[tuple[int, int, str]] = []
    for number, record in enumerate(records):
        try:
            draft = reader.draft(source.read(record))
        except Exception as error:
            # Strangers' files break parsers and decoders in ways that nobody can list; none is a reason to lose the other documents.
            found.append(_problem(record, error))
        else:
            found.append(draft)
            for place, piece in enumerate(piece for piece in draft.pieces if piece.pixels is not None):
                assert piece.pixels is not None
                if len(samples) < num_samples:
                    samples.append((number, place, thumbnail(piece.pixels)))
                batches.add(piece)
        if tick is not None:
            tick()
    batches.flush()
    window = EncodedWindow([], [])
    for record, read in zip(records, found, strict=True):
        document = None
        if isinstance(read, LineProblem):
            window.problems.append(read)
        else:
            try:
                document = _packed(reader.finish(read))
            except Exception as error:
                window.problems.append(_problem(record, error))
        window.documents.append(document)
    window.samples = [sample for sample in samples if window.documents[sample[0]] is not None]
    return window


def _problem(record: Record, error: Exception) -> LineProblem:
    if os.environ.get("EMU_TRACEBACK"):
        traceback.print_exception(error)
    return problem_at(record.place, error)


def _packed(made: TokenizedDocument) -> PackedDocument:
    ids, weights = made.document.ids.numpy().astype(np.uint32), made.document.weights.numpy()
    return PackedDocument(ids, weights, made.document.spans, made.caption, made.roles)


def thumbnail(pixels: np.ndarray) -> str:
    """A picture (H, W, 3), or the first frame of a clip (T, H, W, 3), as a small PNG in base64."""
    image = Image.fromarray(pixels if pixels.ndim == 3 else pixels[0])
    image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.BOX)
    written = io.BytesIO()
    image.save(written, "png")
    return base64.b64encode(written.getvalue()).decode()


def cut(records: Iterable[Record], most: int, most_bytes: int) -> Iterator[list[Record]]:
    """Records in groups of `most`, fewer where they are very large."""
    block: list[Record] = []
    size = 0
    for record in records:
        block.append(record)
        size += record.size
        if len(block) == most or size > most_bytes:
            yield block
            block, size = [], 0
    if block:
        yield block
