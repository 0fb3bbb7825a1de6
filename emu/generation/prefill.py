"""Prompts, computed apart from the rows that are running, a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generation.linear import LinearBackend
from emu.model import EmuForCausalLM, StaticCache

PREFILL_CHUNK = 1024
"""Tokens of a prompt that a pass takes at most: its mask has as many entries as queries times keys."""
WORTH_COPYING = 16
"""Tokens of a common beginning from which copying its keys and values is less than computing them."""


def worth_sharing(common: int, *, by_row: bool) -> int:
    """How many of the tokens with which two prompts begin alike are copied from one to the other, rather than computed."""
    # The last bits of a prompt depend on how it is cut into chunks.
    shared = common - common % PREFILL_CHUNK if by_row else common
    return shared if shared >= WORTH_COPYING else 0


@dataclass(frozen=True)
class Beginning:
    """The first tokens of a prompt where they are computed already.

    Attributes:
        cache, row: where.
        length: how many of them.
        hidden: (hidden,) of the last token, where they are the whole prompt.
    """

    cache: StaticCache
    row: int
    length: int
    hidden: Tensor | None = None


@dataclass
class _Part:
    """Prompts that take their passes together."""

    cache: StaticCache
    prompts: list[Tensor]

    def advance(self, model: EmuForCausalLM, linear: LinearBackend, by_row: bool) -> list[tuple[int, Tensor]]:
        """Run a chunk of each prompt; numbers of those that are complete now, and (hidden,) of their last token."""
        # Chunks end at multiples of their size, wherever a prompt began: the numbers of a pass depend on how many tokens it takes.
        counts = [
            min(PREFILL_CHUNK - end % PREFILL_CHUNK, len(prompt) - end)
            for end, prompt in zip(self.cache.ends, self.prompts, strict=True)
        ]
        ids = torch.zeros(len(counts), max(counts), dtype=torch.int64)
        for row, (end, count, prompt) in enumerate(zip(self.cache.ends, counts, self.prompts, strict=True)):
            ids[row, :count] = prompt[end : end + count]
        self.cache.expect(counts)
        hidden = model.forward_block(ids.to(model.device), self.cache, linear, by_row=by_row)
        ended = zip(self.cache.ends, counts, self.prompts, strict=True)
        return [
            (row, hidden[row, count - 1])
            for row, (end, count, prompt) in enumerate(ended)
            if count and end == len(prompt)
        ]


class Prefill:
    """Computes prompts; equal ones once.

    Args:
        model: in eval mode.
        linear: how its weights are multiplied.
        prompts: 1-D int64 tensors on the CPU.
        by_row: compute each prompt by itself, so that none depends on the others to the last bit.
        beginnings: for each prompt what is known of it, or None.

    Attributes:
        tokens: of all prompts together, equal ones counted once.
    """

    def __init__(
        self,
        model: EmuForCausalLM,
        linear: LinearBackend,
        prompts: Sequence[Tensor],
        *,
        by_row: bool,
        beginnings: Sequence[Beginning | None] | None = None,
    ) -> None:
        self._model, self._linear, self._by_row = model, linear, by_row
        unique: dict[bytes, int] = {}
        self._index = [unique.setdefault(prompt.numpy().tobytes(), len(unique)) for prompt in prompts]
        firsts = [self._index.index(number) for number in range(len(unique))]
        known = [beginnings[first] if beginnings else None for first in firsts]
        rows = [prompts[first] for first in firsts]
        self.tokens = sum(map(len, rows))
        groups = [[number] for number in range(len(rows))] if by_row else [list(range(len(rows)))]
        self._parts = [self._part([rows[n] for n in group], [known[n] for n in group]) for group in groups]
        self._hidden = {n: one.hidden for n, one in enumerate(known) if one is not None and one.hidden is not None}

    def _part(self, prompts: list[Tensor], beginnings: Sequence[Beginning | None]) -> _Part:
        model = self._model
        cache = StaticCache(model.config, len(prompts), max(map(len, prompts)), dtype=model.dtype, device=model.device)
        for row, known in enumerate(beginnings):
            if known is not None:
                cache.copy_row(row, known.cache, known.row, known.length)
        cache.end_at([0 if known is None else known.length for known in beginnings])
        return _Part(cache, prompts)

    def advance(self) -> bool:
        """Run a chunk of each prompt; whether all are complete."""
        for number, part in enumerate(self._parts):
            if any(end < len(prompt) for end, prompt in zip(part.cache.ends, part.prompts, strict=True)):
                for row, hidden in part.advance(self._model, self._linear, self._by_row):
                    self._hidden[number if self._by_row else row] = hidden
        return len(self._hidden) == len(set(self._index))

    def rows(self) -> list[tuple[StaticCache, int]]:
        """For each prompt the cache that holds it, and its row there."""
        return [
            (self._parts[number].cache, 0) if self._by_row else (self._parts[0].cache, number) for number in self._index
        ]

    def hidden(self) -> Tensor:
        """(prompts, hidden) of the last token of each prompt."""
        return torch.stack([self._hidden[number] for number in self._index])
