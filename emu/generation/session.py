"""Rows of sequences that advance together through a model with a static cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generation.device_passes import Passes
from emu.generation.limits import FiniteLogits
from emu.generation.linear import IdRange, LinearBackend
from emu.generation.prefill import next_chunk
from emu.model import EmuForCausalLM, StaticCache
from emu.model.attention import PROMPT_BLOCK


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

    The rows end at one slot of the cache, and nothing attends to the slots before their beginnings. Equal prompts are computed once.

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
        self.rows = len(prompts)
        self.cache = StaticCache(model.config, 0, 0, dtype=model.dtype, device=model.device)
        longest = max(map(len, prompts))
        self.cache.reserve(self.rows, (-(-(longest + room) // PROMPT_BLOCK) + 1) * PROMPT_BLOCK)
        self.cache.extend([longest - len(prompt) for prompt in prompts])
        self._passes = Passes(model, self.cache, by_row=by_row)
        self.logits_seen = FiniteLogits()
        self.passes = 1
        self.hidden = torch.empty(self.rows, 1, model.config.hidden_size, dtype=model.dtype, device=model.device)
        done = [0] * self.rows
        while any(number < len(prompt) for number, prompt in zip(done, prompts, strict=True)):
            done = self._compute(prompts, done)

    def _compute(self, prompts: Sequence[Tensor], done: Sequence[int]) -> list[int]:
        """Run a chunk of each prompt; how much of each is computed then."""
        counts = [next_chunk(number, len(prompt)) for number, prompt in zip(done, prompts, strict=True)]
        ids = torch.zeros(self.rows, max(counts), dtype=torch.int64)
        for row, (number, count, prompt) in enumerate(zip(done, counts, prompts, strict=True)):
            ids[row, :count] = prompt[number : number + count]
        self.cache.expect(counts, prompts=range(self.rows))
        hidden = self.model.forward_block(ids.to(self.model.device), self.cache, self.linear, by_row=self.by_row)
        for row, count in enumerate(counts):
            if count:
                self.hidden[row, 0] = hidden[row, count - 1]
        return [number + count for number, count in zip(done, counts, strict=True)]

    def advance(self, ids: Tensor) -> None:
        """Feed the next tokens, (rows, m)."""
        self.hidden = self._passes.run(ids, self.linear)
        self.passes += 1

    def logits(self, ranges: tuple[IdRange, ...]) -> Tensor:
        """(G, sequences, K) of the next token, over the ids of these ranges.

        Raises:
            FloatingPointError: they hold NaN or infinity.
        """
        return self._seen(self.linear.head(ranges)(self.hidden[:, -1]))

    def _seen(self, logits: Tensor) -> Tensor:
        return self.logits_seen.passed(logits.unflatten(0, (self.guidance_rows, -1)), self.cache.length)
