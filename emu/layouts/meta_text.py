"""Headers of plain text: BOI, a text that states the grid, and the image mark.

Emu3 writes the grid of a picture as "90*90" (`processing_emu3.py` of baaivision/Emu3) and Emu3.5 keeps that; each modality has a wording
of its own (`Modality.meta_text`), so that the text states the modality too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from emu.layouts.grammar import IdRange
from emu.layouts.layout import Layout
from emu.modalities import Grid
from emu.vocabulary import CONTROLS


class MetaTextLayout(Layout):
    """BOI meta text IMG, then the codes as a subclass arranges them."""

    controls = CONTROLS
    header_end = "image mark"

    @property
    def reads_headers(self) -> bool:
        return self.text is not None

    def header(self, modality: str, grid: Grid, meta: Mapping[str, Any] | None = None) -> list[int]:
        controls = self.vocabulary.controls
        text = self.modality(modality).meta_text(tuple(grid), meta or {})
        return [controls["boi"], *self.encode_text(text), controls["image"]]

    def header_length(self, ids: Tensor) -> int | None:
        mark = (ids == self.vocabulary.controls["image"]).nonzero()
        return int(mark[0]) + 1 if len(mark) else None

    def header_choices(self, begun: Sequence[int]) -> tuple[IdRange, ...]:
        text, mark = self.vocabulary.text, self.vocabulary.controls["image"]
        if begun[-1] == mark:
            return ()
        try:
            self.parse_header([*begun, mark])
        except ValueError:
            return (text,)
        return (text, (mark, 1))

    def parse_header(self, ids: Sequence[int]) -> tuple[str, Grid, dict[str, Any]]:
        first, count = self.vocabulary.text
        inner = list(ids[1:-1])
        text = self.decode_text(inner) if all(first <= index < first + count for index in inner) else ""
        for name, modality in self.modalities.items():
            read = modality.parse_meta(text)
            if read is not None:
                return name, *read
        raise ValueError(f"no modality of {sorted(self.modalities)} writes the header {text!r}")
