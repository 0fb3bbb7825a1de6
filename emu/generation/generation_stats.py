"""What a call of the engine did."""

from __future__ import annotations

from dataclasses import dataclass


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
