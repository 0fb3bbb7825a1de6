"""A share of a source's documents with cells of their last picture or clip hidden, so that a model learns to fill them in.

One way for every source, shards and documents made on demand alike: the tokens of the block are moved, each with its loss weight. Which
documents, and which cells, follow from a document's key alone, and so from (seed, document).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch

from emu.data.document_sources import DocumentSource
from emu.data.hidden_cells import hidden_cells
from emu.data.shards.checksums import json_digest
from emu.data.shards.reading import TokenShards
from emu.documents import TokenDocument
from emu.layouts import Layout, hide
from emu.randomness import derive_key

SAMPLED_KEYS = 256
"""Masks of a grid that are drawn to know how many cells are hidden on average."""


class InfillSource:
    """Documents of another source, a share of them with hidden cells.

    A document stays as it is where it holds no picture or clip whose codes count in the loss, or where it would be longer than a row.

    Args:
        source: of the documents.
        layout: that they are written in.
        share: of the documents, in [0, 1].
        row_length: most tokens of a document with hidden cells.

    Attributes:
        max_length: an upper bound on the tokens of any document, None where the source has none.

    Raises:
        ValueError: the layout's vocabulary has no control for holes.
    """

    def __init__(self, source: DocumentSource, layout: Layout, share: float, row_length: int) -> None:
        if layout.hole is None:
            raise ValueError(
                "infill needs the control 'hole', and the vocabulary of these documents has none; make their tokenizer with "
                "MultimodalTokenizer(..., extra_controls=('hole',))"
            )
        self.source, self.layout, self.share, self.row_length = source, layout, share, row_length
        longest = getattr(source, "max_length", None)
        self.max_length = None if longest is None else max(longest, min(row_length, 2 * longest + 1))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def identity(self) -> str:
        """A digest of what decides on the documents, as far as the source knows it."""
        return json_digest([getattr(self.source, "identity", None), float(self.share), self.row_length])

    def document(self, index: int, key: int) -> TokenDocument:
        """Document `index` with the randomness of `key`; errors as of the source."""
        document = self.source.document(index, key)
        return infilled(document, self.layout, key, self.row_length) if self.draws(key) else document

    def draws(self, key: int) -> bool:
        """Whether the document of this key is one to be filled in."""
        return derive_key("infill", key) / 2**63 < self.share


class InfillShards(InfillSource):
    """Documents of token shards, whose lengths are known without building them; see `InfillSource`.

    Raises:
        ValueError: see `InfillSource`; the folder does not say where the segments of its documents lie.
    """

    source: TokenShards

    def __init__(self, source: TokenShards, layout: Layout, share: float, row_length: int) -> None:
        super().__init__(source, layout, share, row_length)
        self._kinds, self._blocks = source.last_blocks([name for name in layout.modalities if _is_seen(layout, name)])
        self.max_length = int(self.lengths().max(initial=0))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of those whose blocks are hidden in part."""
        return tuple(dict.fromkeys(name for name, _ in self._kinds))

    def too_long(self, row_length: int) -> str:
        """See `TokenShards.too_long`."""
        return self.source.too_long(row_length)

    def length(self, index: int, key: int) -> int:
        """Most tokens of `document(index, key)`: as many, unless the codes that it would hide count nothing."""
        return self._lengthened(self.source.length(index, key), index, key)

    def lengths(self) -> np.ndarray:
        """(len(self),) int64: most tokens that each document can have."""
        plain = self.source.lengths()
        hidden = np.array([*(self._tokens(number) for number in range(len(self._kinds))), 0])[self._blocks]
        return np.maximum(plain, np.minimum(plain + hidden, self.row_length))

    def token_lengths(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """(n,) int64: `length` of the documents `numbers` (n,) under `keys` (n,)."""
        found = self.source.token_lengths(numbers, keys)
        for place in np.flatnonzero(self._blocks[numbers] >= 0).tolist():
            found[place] = self._lengthened(int(found[place]), int(numbers[place]), int(keys[place]))
        return found

    @cached_property
    def mean_length(self) -> float:
        """Expected tokens of a document, its hidden cells estimated from `SAMPLED_KEYS` masks of each grid."""
        plain, added = self.source.lengths(), 0.0
        for number in range(len(self._kinds)):
            more = np.sort([self._added(number, key) for key in range(SAMPLED_KEYS)])
            fitting = np.searchsorted(more, self.row_length - plain[self._blocks == number], side="right")
            added += float(np.concatenate([[0], np.cumsum(more)])[fitting].sum()) / SAMPLED_KEYS
        return self.source.mean_length + self.share * added / max(1, len(plain))

    def _lengthened(self, plain: int, index: int, key: int) -> int:
        block = int(self._blocks[index])
        if block < 0 or not self.draws(key):
            return plain
        longer = plain + self._added(block, key)
        return longer if longer <= self.row_length else plain

    def _added(self, kind: int, key: int) -> int:
        """Tokens that a block of this kind gains with the cells of this key hidden."""
        hidden = hidden_cells(self._kinds[kind][1], key)
        return 1 + int(hidden.sum()) * self.layout.block(*self._kinds[kind]).codebooks

    def _tokens(self, kind: int) -> int:
        return 1 + int(self.layout.block(*self._kinds[kind]).free.sum())


def with_infill(
    sources: Mapping[str, DocumentSource], layout: Layout, share: float, row_length: int
) -> dict[str, DocumentSource]:
    """Sources of the same documents, a share of them with hidden cells; errors as of `InfillSource`."""
    found: dict[str, DocumentSource] = {}
    for name, source in sources.items():
        if isinstance(source, TokenShards):
            found[name] = InfillShards(source, layout, share, row_length)
        else:
            found[name] = InfillSource(source, layout, share, row_length)
    return found


def infilled(document: TokenDocument, layout: Layout, key: int, row_length: int) -> TokenDocument:
    """A document with cells of its last picture or clip hidden, and their codes after the block.

    The document itself where it has no such block, the block's codes weigh nothing or are hidden already, or the result were longer than
    a row. Codes keep their weights, holes weigh 0.

    Args:
        document: of the layout.
        layout: with a control for holes.
        key: what the cells are drawn from.
        row_length: most tokens of the result.

    Raises:
        ValueError: a header of the document cannot be read.
    """
    found = _last_block(document, layout)
    if found is None:
        return document
    modality, grid, start = found
    template = layout.block(modality, grid)
    stop = start + len(template)
    ids, weights = document.ids[start:stop], document.weights[start:stop]
    if not weights.any() or bool((ids == torch.tensor(layout.hole)).any()):
        return document
    parts = hide(layout, template, ids, weights, torch.from_numpy(hidden_cells(template.cells, key)))
    if len(document) + len(parts[1][0]) > row_length:
        return document
    return TokenDocument(
        torch.cat([document.ids[:start], *(ids for ids, _ in parts), document.ids[stop:]]),
        torch.cat([document.weights[:start], *(weights for _, weights in parts), document.weights[stop:]]),
    )


def _last_block(document: TokenDocument, layout: Layout) -> tuple[str, tuple[int, ...], int] | None:
    """(modality, grid, first position after the header) of the last block of a modality that is seen."""
    ids = document.ids
    for begin in reversed(torch.isin(ids, torch.tensor(layout.openings)).nonzero()[:, 0].tolist()):
        length = layout.header_length(ids[begin:])
        if length is None:
            continue
        name, grid, _ = layout.parse_header(ids[begin : begin + length].tolist())
        if _is_seen(layout, name):
            return name, grid, begin + length
    return None


def _is_seen(layout: Layout, modality: str) -> bool:
    """Whether values of a modality are seen through a tokenizer, as pictures and clips are; boxes are numbers already."""
    return layout.modality(modality).codec is not None
