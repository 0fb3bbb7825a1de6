"""Which documents stand in which row of training: a pure function of the row's number.

The mixed, shuffled stream of documents is cut into blocks, and each block is packed into a fixed number of rows. So every step has equally
many rows, rows are as full as thousands of documents to choose from can make them, and the position is still one integer: row r is row
r mod R of block r div R. What a fixed number costs is that the last few documents of a block of longer ones are left out of their epoch,
and that a block of shorter ones ends in padding; both are a few in a thousand, since a block's tokens differ that little from their mean.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from emu.data.balanced_order import BalancedOrder
from emu.data.document_sources import MeasuredSource, source_identities
from emu.data.mixing_weights import Stage, rounded, stages_of, weight_problems
from emu.data.mixture import Reference
from emu.data.row_packing import fill_empty_rows, pack_block
from emu.documents import TokenDocument
from emu.randomness import KeyedPermutation, derive_key, derive_keys

BLOCK_DOCUMENTS = 16_384


class BlockPlan(NamedTuple):
    """The rows of a block; documents stand in the order of the rows.

    Attributes:
        sources: (n,) int64 number of each document's source.
        numbers: (n,) int64 its place there.
        keys: (n,) int64 what its randomness is drawn from.
        starts: (rows + 1,) int64 first document of each row.
        tokens: of the n documents.
        left_out: documents of the block that no row has room for.
    """

    sources: np.ndarray
    numbers: np.ndarray
    keys: np.ndarray
    starts: np.ndarray
    tokens: int
    left_out: int


class _Phase(NamedTuple):
    """The blocks of one stage of the weights.

    Attributes:
        first_row, first_block: where they begin.
        end_row: where the next stage begins; None for the last one.
        positions: in the endless stream of each source, where they begin.
        counts: documents of each source in a block.
        num_rows: of a block.
        row_tokens: that a row holds on average.
    """

    first_row: int
    first_block: int
    end_row: int | None
    positions: Mapping[str, int]
    counts: Mapping[str, int]
    num_rows: int
    row_tokens: float


class BlockMixture:
    """Rows by number, of sources mixed by their share in the tokens.

    Weights count tokens, not documents: the loss is a mean over tokens, so that a weight of .1 is a tenth of what is learned and of what it
    costs, for captions as for clips of thousands of tokens, and whatever cutting or tokenising anew does to the number of documents.

    Args:
        sources: documents by name of the source.
        row_length: positions of a row; at least the longest document.
        rows_per_step: rows of an optimizer step, over all its batches and ranks; `from_step` of weights counts these.
        weights: share of each source in the tokens, or a list of such tables, each with the step that it holds from; None takes every
            source as often as the others.
        seed: chooses the orders and the keys.

    Raises:
        ValueError: the weights or numbers cannot be drawn from; all reasons in one message.
    """

    def __init__(
        self,
        sources: Mapping[str, MeasuredSource],
        row_length: int,
        rows_per_step: int,
        weights: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
        seed: int = 0,
    ) -> None:
        problems = block_problems(sources, weights)
        if problems:
            raise ValueError("this mixture cannot be drawn: " + "; ".join(problems))
        stages = (Stage(0, sizes(sources)),) if weights is None else stages_of(weights)
        self.sources = {n: s for n, s in sources.items() if any(stage.weights.get(n) for stage in stages)}
        self.row_length, self.rows_per_step, self.seed = row_length, rows_per_step, seed
        self._stages = stages
        self._weights = weights

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources drawn from, in the order in which plans count them."""
        return tuple(self.sources)

    @property
    def identity(self) -> dict[str, Any]:
        """Plain settings that decide on every row."""
        stages = None if self._weights is None else [[step, dict(weights)] for step, weights in self._stages]
        own = {"seed": self.seed, "row_length": self.row_length, "weights": stages}
        return own | source_identities(self.sources)

    def locate(self, row: int) -> tuple[int, int]:
        """(block, row in the block) of a row of training."""
        phase = self._phases[bisect_right([phase.first_row for phase in self._phases], row) - 1]
        block, place = divmod(row - phase.first_row, phase.num_rows)
        return phase.first_block + block, place

    def plan(self, block: int) -> BlockPlan:
        """The rows of a block."""
        phase = self._phases[bisect_right([phase.first_block for phase in self._phases], block) - 1]
        before = block - phase.first_block
        rows, counts = phase.num_rows, phase.counts
        if phase.end_row is not None:
            rows = min(rows, phase.end_row - phase.first_row - before * phase.num_rows)
            counts = _part(counts, rows, phase.num_rows)
        first = {name: phase.positions[name] + before * count for name, count in phase.counts.items()}
        sources, numbers, keys, lengths = self._documents(first, counts, block)
        # Documents go in until the rows are as full as rows of such documents get: of those that packing has no room for, most
        # are short, and it would be short ones that are left out.
        fits = np.cumsum(lengths) <= math.ceil(rows * phase.row_tokens)
        packed = np.full(len(lengths), -1)
        packed[fits] = fill_empty_rows(pack_block(lengths[fits], self.row_length, rows), rows)
        # Packing puts the longest documents into the first rows.
        shuffled = KeyedPermutation(rows, derive_key("rows", self.seed, block))(np.arange(rows))
        row_of = np.where(packed >= 0, shuffled[packed], rows)
        order = np.argsort(row_of, kind="stable")[: int((packed >= 0).sum())]
        starts = np.concatenate([[0], np.cumsum(np.bincount(row_of[order], minlength=rows))])
        tokens = int(lengths[order].sum())
        return BlockPlan(
            sources[order], numbers[order], keys[order], starts, tokens, left_out=len(lengths) - len(order)
        )

    def references(self, plan: BlockPlan, row: int) -> list[Reference]:
        """Addresses of the documents of a row of a block."""
        part = slice(int(plan.starts[row]), int(plan.starts[row + 1]))
        names = self.names
        return [
            Reference(names[source], number, key)
            for source, number, key in zip(
                plan.sources[part].tolist(), plan.numbers[part].tolist(), plan.keys[part].tolist(), strict=True
            )
        ]

    def document(self, reference: Reference) -> TokenDocument:
        """The document at an address."""
        return self.sources[reference.source].document(reference.number, reference.key)

    @cached_property
    def _phases(self) -> tuple[_Phase, ...]:
        phases: list[_Phase] = []
        block, positions = 0, dict.fromkeys(self.sources, 0)
        for stage, following in zip(self._stages, [*self._stages[1:], None], strict=True):
            first_row = stage.from_step * self.rows_per_step
            end_row = None if following is None else following.from_step * self.rows_per_step
            phase = self._phase(stage, first_row, end_row, block, dict(positions))
            phases.append(phase)
            if end_row is not None:
                whole, rest = divmod(end_row - first_row, phase.num_rows)
                last = _part(phase.counts, rest, phase.num_rows) if rest else {}
                block += whole + bool(rest)
                positions = {n: p + whole * phase.counts[n] + last.get(n, 0) for n, p in positions.items()}
        return tuple(phases)

    @cached_property
    def _orders(self) -> dict[str, BalancedOrder]:
        return {
            name: BalancedOrder(source.lengths(), derive_key("order", self.seed, name))
            for name, source in self.sources.items()
        }

    def _phase(
        self, stage: Stage, first_row: int, end_row: int | None, block: int, positions: Mapping[str, int]
    ) -> _Phase:
        """How many rows a block of this stage has: what packing needs for documents like those of its first block."""
        means = {name: source.mean_length for name, source in self.sources.items()}
        counts = rounded(documents_by_tokens(stage.weights, means), BLOCK_DOCUMENTS)
        *_, lengths = self._documents(positions, counts, block)
        needed = int(pack_block(lengths, self.row_length).max()) + 1
        row_tokens = float(lengths.sum()) / needed
        expected = sum(count * means[name] for name, count in counts.items())
        return _Phase(first_row, block, end_row, positions, counts, math.ceil(expected / row_tokens), row_tokens)

    def _documents(
        self, positions: Mapping[str, int], counts: Mapping[str, int], block: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(source, number, key, tokens) of the documents of a block in mixed order, (n,) int64 each."""
        parts = []
        for number, (name, source) in enumerate(self.sources.items()):
            places = positions[name] + np.arange(counts[name])
            indices = self._orders[name](places)
            keys = derive_keys(derive_key("document", self.seed, name), places)
            parts.append(np.stack([np.full(len(places), number), indices, keys, source.token_lengths(indices, keys)]))
        together = np.concatenate(parts, axis=1)
        mixed = KeyedPermutation(together.shape[1], derive_key("mix", self.seed, block))
        sources, numbers, keys, lengths = together[:, mixed(np.arange(together.shape[1]))]
        return sources, numbers, keys, lengths


def sizes(sources: Mapping[str, MeasuredSource]) -> dict[str, float]:
    """Tokens of each source, the weights by which all are gone through equally often."""
    return {name: len(source) * source.mean_length for name, source in sources.items()}


def documents_by_tokens(weights: Mapping[str, float], means: Mapping[str, float]) -> dict[str, float]:
    """Shares of sources in the documents, from their shares in the tokens and the mean tokens of their documents."""
    return {name: weights.get(name, 0.0) / mean for name, mean in means.items()}


def block_problems(
    sources: Mapping[str, MeasuredSource], weights: Mapping[str, float] | Sequence[Mapping[str, float]] | None
) -> list[str]:
    """Everything that keeps these sources from being mixed by these weights, one sentence each."""
    problems = [] if weights is None else weight_problems(weights, sources)
    problems += [f"source {name!r} is empty" for name, source in sources.items() if not len(source)]
    if problems:
        return problems
    means = {name: source.mean_length for name, source in sources.items()}
    for stage in (Stage(0, sizes(sources)),) if weights is None else stages_of(weights):
        shares = documents_by_tokens(stage.weights, means)
        counts = rounded(shares, BLOCK_DOCUMENTS)
        none = [name for name, weight in stage.weights.items() if weight and not counts[name]]
        if none:
            problems.append(
                f"the weights of {none} from step {stage.from_step} come to less than one document in {BLOCK_DOCUMENTS}; raise them, or "
                "set them to 0"
            )
    return problems


def _part(counts: Mapping[str, int], rows: int, num_rows: int) -> dict[str, int]:
    """Documents of a block that is shorter because the next stage begins."""
    if rows == num_rows:
        return dict(counts)
    return rounded(counts, max(1, round(sum(counts.values()) * rows / num_rows)))
