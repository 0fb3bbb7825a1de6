"""Rows of sequences that advance together through a model with a static cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generation.limits import FiniteLogits
from emu.generation.linear import IdRange, LinearBackend
from emu.model import EmuForCausalLM, StaticCache

PREFILL_CHUNK = 1024


@dataclass(frozen=True)
class GenerationStats:
    """What a call did.

    Attributes:
        sequences: number of sequences written.
        tokens: sampled tokens of all sequences together.
        passes: forward passes, the prefill counted as one.
        tokens_per_pass: sampled tokens of one sequence for each pass; 1 where every token takes its own.
        seconds: wall time.
    """

    sequences: int
    tokens: int
    passes: int
    tokens_per_pass: float
    seconds: float


class Session:
    """Sequences with known beginnings.

    The rows are right-aligned in the cache: their ends share a slot, positions count from their own beginning, and nothing attends
    to the empty slots before it. Equal prompts are computed once.

    Args:
        model: in eval mode.
        linear: how its weights are multiplied.
        prompts: one tensor of ids per row.
        guidance_rows: number of guidance rows per sequence; the rows of all sequences, then their second rows.
        room: tokens that will follow the prompts.
        by_row: compute attention, and the prompts, row by row, so that no row depends on the others to the last bit.

    Attributes:
        passes: forward passes so far, the prefill counted as one.
        hidden: (rows, m, hidden) of the last pass.
        logits_seen: looks at all logits that are asked for; call its `check` before anything that was drawn from them is given away.
    """

    def __init__(
        self,
        model: EmuForCausalLM,
        linear: LinearBackend,
        prompts: Sequence[Tensor],
        guidance_rows: int,
        room: int,
        *,
        by_row: bool = False,
    ) -> None:
        self.model, self.linear, self.guidance_rows, self.by_row = model, linear, guidance_rows, by_row
        self.rows, self.length = len(prompts), max(map(len, prompts))
        self.cache = StaticCache(model.config, self.rows, self.length + room, dtype=model.dtype, device=model.device)
        # Right-aligned: all rows write their next token to one slot, and only the beginnings differ.
        self.cache.offset = torch.tensor([self.length - len(prompt) for prompt in prompts])
        self.logits_seen = FiniteLogits()
        self.passes, self._begun = 1, time.perf_counter()
        self.hidden = self._prefill(prompts)

    def _prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        # Streams of a prompt and the negative prompts of a batch are often equal; a prefill costs more than copying its keys and values.
        unique: dict[tuple[int, ...], int] = {}
        index = [unique.setdefault(tuple(prompt.tolist()), len(unique)) for prompt in prompts]
        rows = [torch.tensor(ids, device=self.model.device) for ids in unique]
        parts = [[row] for row in rows] if self.by_row else [rows]
        done = [self._prefill_together(part) for part in parts]
        for number, place in enumerate(index):
            cache, _ = done[place if self.by_row else 0]
            self.cache.copy_row(number, cache, 0 if self.by_row else place)
        self.cache.length = self.length
        hidden = torch.cat([hidden for _, hidden in done])
        return hidden[torch.tensor(index, device=hidden.device)]

    def _prefill_together(self, prompts: Sequence[Tensor]) -> tuple[StaticCache, Tensor]:
        length = max(map(len, prompts))
        cache = StaticCache(self.model.config, len(prompts), length, dtype=self.model.dtype, device=self.model.device)
        cache.offset = torch.tensor([length - len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), length, dtype=torch.int64, device=self.model.device)
        for row, prompt in zip(ids, prompts, strict=True):
            row[length - len(prompt) :] = prompt
        # In chunks, since the mask of a pass has as many entries as queries times keys.
        for chunk in ids.split(PREFILL_CHUNK, 1):
            hidden = self.model.forward_block(chunk, cache, self.linear, by_row=self.by_row)
        return cache, hidden[:, -1:]

    def stats(self, sequences: int, tokens: int) -> GenerationStats:
        """What was done so far, for N sequences of `tokens` sampled tokens together."""
        seconds = time.perf_counter() - self._begun
        return GenerationStats(sequences, tokens, self.passes, tokens / sequences / self.passes, seconds)

    def advance(self, ids: Tensor) -> None:
        """Feed the next tokens, (rows, m)."""
        self.hidden = self.model.forward_block(ids, self.cache, self.linear, by_row=self.by_row)
        self.passes += 1

    def logits(self, ranges: tuple[IdRange, ...]) -> Tensor:
        """(G, sequences, K) of the next token, over the ids of these ranges.

        Raises:
            FloatingPointError: they hold NaN or infinity.
        """
        return self._seen(self.linear.head(ranges)(self.hidden[:, -1]))

    def window_logits(self, ranges: tuple[IdRange, ...]) -> Tensor:
        """(G, sequences, m, K) of the token after each one of the last pass; errors as of `logits`."""
        return self._seen(self.linear.head(ranges)(self.hidden))

    def _seen(self, logits: Tensor) -> Tensor:
        return self.logits_seen.passed(logits.unflatten(0, (self.guidance_rows, -1)), self.cache.length)
