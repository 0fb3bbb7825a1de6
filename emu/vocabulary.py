"""One vocabulary: a table of contiguous id ranges for text, controls and the codes of every codebook.

A code is its id minus the first id of its range, never a string. The special ids of Emu3 (arXiv 2409.18869; `tokenization_emu3.py` of
baaivision/Emu3) are one instance of this table, a vocabulary built around a small text tokenizer is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

REQUIRED = ("pad", "bos", "eos")
"""Controls of every vocabulary: padding, begin and end of a document. What else there has to be is the layout's to say
(`Layout.controls`)."""

CONTROLS = (*REQUIRED, "eol", "eof", "image", "boi", "eoi")
"""Controls of Emu3's layout, in the order in which `Vocabulary.build` numbers them unless it is given others: end of a row and of a frame,
and the three marks of a block of codes: `boi` opens its header, `image` ends the header and starts the codes, `eoi` closes the block."""

HOLE = "hole"
"""An optional control that stands for each code of a hidden cell (infill); vocabularies without it have no blocks with hidden cells."""


@dataclass(frozen=True)
class Vocabulary:
    """Table of which ids belong to text, controls and codebooks.

    Attributes:
        size: number of ids; the rows of the embedding and of the head.
        ranges: codebook name -> (first id, number of codes).
        controls: control name -> id; must hold every name of `REQUIRED`.
        text: (first id, number of ids) of ordinary text; by default all ids below the first control and the first range.

    Raises:
        ValueError: a range or control lies outside the vocabulary, two of them overlap, or a control is missing.
    """

    size: int
    ranges: Mapping[str, tuple[int, int]]
    controls: Mapping[str, int]
    text: tuple[int, int] = field(default=(0, -1))

    def __post_init__(self) -> None:
        ranges = {str(name): (int(first), int(count)) for name, (first, count) in self.ranges.items()}
        controls = {str(name): int(index) for name, index in self.controls.items()}
        object.__setattr__(self, "ranges", MappingProxyType(ranges))
        object.__setattr__(self, "controls", MappingProxyType(controls))
        first, count = self.text
        if count < 0:
            count = min([*controls.values(), *(start for start, _ in ranges.values())], default=self.size) - first
        object.__setattr__(self, "text", (int(first), int(count)))
        self._check()

    def _check(self) -> None:
        missing = [name for name in REQUIRED if name not in self.controls]
        if missing:
            raise ValueError(f"vocabulary without the controls {missing}; every one of {list(REQUIRED)} needs an id")
        spans = [("text", *self.text)]
        spans += [(f"control {name!r}", index, 1) for name, index in self.controls.items()]
        spans += [(f"range {name!r}", first, count) for name, (first, count) in self.ranges.items()]
        for name, first, count in spans:
            if first < 0 or count < 0 or first + count > self.size or (count == 0 and name != "text"):
                raise ValueError(
                    f"{name} covers ids {first}..{first + count - 1}, outside a vocabulary of {self.size} ids or empty"
                )
        spans = sorted((span for span in spans if span[2]), key=lambda span: span[1])
        for (name, first, count), (other, start, _) in zip(spans, spans[1:], strict=False):
            if first + count > start:
                raise ValueError(f"{name} and {other} share id {start}; every id belongs to one owner")

    @classmethod
    def build(cls, text_size: int, codebooks: Mapping[str, int], controls: Sequence[str] = CONTROLS) -> Vocabulary:
        """Lay out a new vocabulary: text ids first, then the controls, then the codebooks, each in the order given.

        Args:
            text_size: number of text ids.
            codebooks: name -> number of codes.
            controls: those that the layout needs (`Layout.controls`), and optional ones (`HOLE`).
        """
        ids = {name: text_size + i for i, name in enumerate(controls)}
        ranges, first = {}, text_size + len(ids)
        for name, count in codebooks.items():
            ranges[name] = (first, count)
            first += count
        return cls(size=first, ranges=ranges, controls=ids, text=(0, text_size))

    def with_control(self, name: str, index: int) -> Vocabulary:
        """Return the table with one more control, at an unused id: in Emu3's table the words `<|extra_n|>`.

        Args:
            name: name of the control, e.g. `HOLE`.
            index: its id.

        Raises:
            ValueError: the table already has that control, or the id is outside the table or taken.
        """
        if name in self.controls:
            raise ValueError(f"the vocabulary has the control {name!r} already, with id {self.controls[name]}")
        return Vocabulary(self.size, self.ranges, {**self.controls, name: index}, self.text)

    def __repr__(self) -> str:
        codes = ", ".join(f"{count} {name}" for name, (_, count) in self.ranges.items())
        return f"Vocabulary({self.size} ids: {self.text[1]} text, {len(self.controls)} controls, {codes or 'no codes'})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, (self.size, dict(self.ranges), dict(self.controls), self.text)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def control(self, name: str) -> int:
        """Return the id of the control `name`."""
        return self.controls[name]

    def range(self, name: str) -> tuple[int, int]:
        """Return (first id, number of codes) of the codebook `name`.

        Raises:
            ValueError: there is no such codebook.
        """
        if name not in self.ranges:
            raise ValueError(f"the vocabulary has no codebook {name!r}; it has {sorted(self.ranges)}")
        return self.ranges[name]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the table: equal for equal tables, stored in every token file and checkpoint."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain JSON types."""
        return {
            "size": self.size,
            "text": list(self.text),
            "controls": dict(self.controls),
            "ranges": {name: list(span) for name, span in self.ranges.items()},
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Vocabulary:
        """Read a table written by `to_dict`.

        Raises:
            ValueError: the table lacks a field or has an unknown one.
        """
        known = {"size", "text", "controls", "ranges"}
        if set(table) != known:
            raise ValueError(f"a vocabulary table has the fields {sorted(known)}, got {sorted(table)}")
        return cls(
            size=int(table["size"]),
            ranges={name: tuple(span) for name, span in table["ranges"].items()},
            controls=table["controls"],
            text=(int(table["text"][0]), int(table["text"][1])),
        )
