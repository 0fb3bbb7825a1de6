"""Modalities as registered objects: everything the library knows about images, clips, boxes, ... is asked of one of these.

A new modality is one file: a subclass of `Modality`, and a call of `emu.modalities.register(name, object)` with the object's own name, or
for one that comes with the library a place in the table of `emu/modalities/__init__.py`. Layouts, packing, training and generation read its
grid, its id ranges and its meta text, and never its name. A class of values lies in the modality's file (`Boxes`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from emu.documents import CodeSegment

Grid = tuple[int, ...]


class Codec(Protocol):
    """What turns values of a modality into codes and back, e.g. a `VisionTokenizer`; `MultimodalTokenizer(text, codecs={name: codec})`.

    How it encodes and decodes is between it and its modality, whose `encode` and `decode` are given it. The library asks for no more than
    this, to save it and to tell it from others; its class has `from_pretrained(folder)`.
    """

    @property
    def fingerprint(self) -> str:
        """Digest of what decides the codes; token shards and models carry it."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `from_pretrained` reads into a folder of its own."""
        ...


class Modality(ABC):
    """One kind of content that becomes a grid of codes.

    Attributes:
        name: what users and segments call it, and the name it is registered under.
        rank: number of axes of its grid, e.g. 2 for (height, width); layouts know ranks 1 to 3.
        codebook: name of its id range in the vocabulary; several codebooks per position are ranges `name.0`, `name.1`, ...
        codec: name of the tokenizer that turns values into codes, or None where the modality needs none.
        codec_class: class of a codec other than "vision" (see `Codec`), by which saved tokenizers are read.
    """

    name: str
    rank: int
    codebook: str
    codec: str | None = None
    codec_class: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """Whether `value`, an item of a user's document, is of this modality."""

    @abstractmethod
    def encode(self, value: Any, codec: Any) -> CodeSegment:
        """Turn a value into codes; `codec` is the tokenizer named by `self.codec`."""

    @abstractmethod
    def decode(self, segment: CodeSegment, codec: Any) -> Any:
        """Turn codes back into a value."""

    def decode_all(self, segments: Sequence[CodeSegment], codec: Any) -> list[Any]:
        """The values of segments of one grid and meta, faster than one by one where the codec takes several at once."""
        return [self.decode(segment, codec) for segment in segments]

    @abstractmethod
    def meta_text(self, grid: Grid, meta: Mapping[str, Any]) -> str:
        """What the header of a block says, in plain text; no two modalities may write the same text."""

    @abstractmethod
    def parse_meta(self, text: str) -> tuple[Grid, dict[str, Any]] | None:
        """The grid and meta that `meta_text` wrote as `text`, or None where the text is not of this modality."""

    @abstractmethod
    def codebook_sizes(self, codec: Any) -> tuple[int, ...]:
        """Number of codes of each of its codebooks."""

    def from_json(self, value: Any, folder: Path) -> Any:
        """A value from what a line of JSON says of it, `{name: ...}`; names of files start from `folder`.

        Raises:
            ValueError: the modality is not read from lines, or the value is wrong.
        """
        raise ValueError(f"modality {self.name!r} is not read from lines of JSON; its class has no from_json")

    def check_codes(self, codes: Tensor, num_codebooks: int) -> Grid:
        """The grid of `codes`.

        Raises:
            ValueError: the codes have another rank, or another number of codebooks on their last axis.
        """
        expected = self.rank + (num_codebooks > 1)
        if codes.ndim != expected or (num_codebooks > 1 and codes.shape[-1] != num_codebooks) or 0 in codes.shape:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)} are not a grid of {self.name!r}, which has {self.rank} axes"
                + (f" and a last one for its {num_codebooks} codebooks" if num_codebooks > 1 else "")
            )
        return tuple(codes.shape[: self.rank])
