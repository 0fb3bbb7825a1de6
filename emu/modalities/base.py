"""Modalities as registered objects: everything the library knows about images, clips, boxes, ... is asked of one of these.

A new modality is one file: a subclass of `Modality` and a call of `emu.modalities.register(name, object)`, where the name is the object's
own. Layouts, packing, training and generation read its grid, its id ranges and its meta text, and never its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from emu.documents import CodeSegment

Grid = tuple[int, ...]


class Modality(ABC):
    """One kind of content that becomes a grid of codes.

    Attributes:
        name: what users and segments call it, and the name it is registered under.
        rank: number of axes of its grid, e.g. 2 for (height, width); layouts know ranks 1 to 3.
        codebook: name of its id range in the vocabulary; several codebooks per position are ranges `name.0`, `name.1`, ...
        codec: name of the tokenizer that turns values into codes, or None where the modality needs none.
        codec_class: class of a codec other than "vision", by which saved tokenizers are read: its objects have a `fingerprint` and
            `save_pretrained(folder)`, the class has `from_pretrained(folder)`.
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
