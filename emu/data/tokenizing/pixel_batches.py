"""Pictures and clips of documents, encoded in batches of equal shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from emu.documents import CodeSegment, Segment
from emu.lines import BadLine, message_of, reason_of
from emu_tokenizers.pixels.transforms import from_bytes

MAX_BATCH = 32
"""Most pictures of a batch; larger ones are no faster on a processor."""
BATCH_PIXELS = 1 << 18
"""Pixels of a batch, all frames counted, unless one picture has more."""
MAX_WAITING = 1 << 26
"""Pixels that may wait for their batch to fill: 192 MiB, so that a window of pictures of many sizes stays small."""


class PixelEncoder(Protocol):
    """What batches need of a vision tokenizer."""

    def encode(self, pixels: Tensor) -> Tensor: ...


@dataclass
class Piece:
    """An item of a document: a segment, or pixels that become one.

    Attributes:
        where: how messages call it: "item 2 ('cat.png')".
        segment: its tokens; None until the pixels are encoded.
        pixels: uint8 (H, W, 3) or (T, H, W, 3), until they are encoded.
        modality, meta, weight: of the segment that the pixels become.
        error: why they were not encoded.
    """

    where: str
    segment: Segment | None = None
    pixels: np.ndarray | None = None
    modality: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    error: BadLine | None = None

    def finished(self) -> Segment:
        """The segment.

        Raises:
            BadLine: the pixels could not be encoded.
        """
        if self.error is not None:
            raise self.error
        assert self.segment is not None
        return self.segment


class PixelBatches:
    """Collects pieces by the shape of their pixels and encodes each batch as soon as it is full.

    What a batch holds depends on the order of the pieces alone, so that equal windows give equal codes on every run.

    Args:
        codec: encodes (B, 3, H, W) or (B, T, 3, H, W) in [-1, 1].
        device, dtype: of the pixels that it takes.
    """

    def __init__(self, codec: PixelEncoder, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        self.codec, self.device, self.dtype = codec, device, dtype
        self._waiting: dict[tuple[int, ...], list[Piece]] = {}
        self._pixels = 0

    def add(self, piece: Piece) -> None:
        """Take a piece with pixels; it, or others, may be encoded now."""
        assert piece.pixels is not None
        shape = piece.pixels.shape
        waiting = self._waiting.setdefault(shape, [])
        waiting.append(piece)
        self._pixels += piece.pixels.size // 3
        if len(waiting) == batch_size(shape):
            self._encode(shape)
        while self._pixels > MAX_WAITING:
            self._encode(max(self._waiting, key=lambda kind: len(self._waiting[kind]) * int(np.prod(kind))))

    def flush(self) -> None:
        """Encode all pieces that wait, in the order in which their shapes came."""
        for shape in list(self._waiting):
            self._encode(shape)

    def _encode(self, shape: tuple[int, ...]) -> None:
        pieces = self._waiting.pop(shape)
        self._pixels -= sum(piece.pixels.size // 3 for piece in pieces if piece.pixels is not None)
        try:
            self._encode_together(pieces)
        except Exception:
            for piece in pieces:  # one by one, to find the piece at fault
                try:
                    self._encode_together([piece])
                except Exception as error:
                    piece.error = BadLine(reason_of(error), f"{piece.where}: {message_of(error)}")
        for piece in pieces:
            piece.pixels = None

    def _encode_together(self, pieces: list[Piece]) -> None:
        stacked = np.stack([piece.pixels for piece in pieces if piece.pixels is not None])
        # Few shapes of batches: the last ones of a window are filled up to a power of two by repeating a picture.
        missing = (1 << (len(pieces) - 1).bit_length()) - len(pieces)
        stacked = np.concatenate([stacked, np.repeat(stacked[-1:], missing, axis=0)])
        pixels = from_bytes(torch.from_numpy(stacked).to(self.device)).movedim(-1, -3)  # (B, [T,] 3, H, W)
        order = torch.channels_last if pixels.ndim == 4 else torch.contiguous_format
        codes = self.codec.encode(pixels.to(self.dtype).contiguous(memory_format=order)).cpu()
        for piece, grid in zip(pieces, codes, strict=False):
            piece.segment = CodeSegment(piece.modality, grid.clone(), piece.meta, piece.weight)


def batch_size(shape: tuple[int, ...]) -> int:
    """Pictures of this shape that are encoded together: a power of two."""
    fitting = max(1, min(MAX_BATCH, BATCH_PIXELS * 3 // int(np.prod(shape))))
    return 1 << (fitting.bit_length() - 1)
