"""How tokens are drawn: temperature, top-k, top-p, and the keys of the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generation.limits import check_number, check_whole
from emu_kernels import guided_sample


@dataclass(frozen=True)
class Sampling:
    """Settings of a draw, checked once, when they are made.

    Attributes:
        guidance_scale: weight of the conditional row against the unconditional one; 1 runs no unconditional row.
        temperature: divisor of the logits; 0 takes the most likely token.
        top_k: number of candidates kept; 0, None or more than there are keeps all.
        top_p: mass of candidates kept.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or outside its range.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int | None = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_number("guidance_scale", self.guidance_scale)
        check_number("temperature", self.temperature)
        check_number("top_p", self.top_p, positive=True, most=1)
        if self.top_k is not None:
            check_whole("top_k", self.top_k, least=0)

    @property
    def guided(self) -> bool:
        """Whether an unconditional row is needed."""
        return self.guidance_scale != 1


@dataclass(frozen=True)
class Keys:
    """What the noise of each sequence depends on besides the position of the token: (B,) int64 each."""

    seed: Tensor
    stream: Tensor

    def draw(self, logits: Tensor, sampling: Sampling, position: int | Tensor, draw: int = 0) -> Tensor:
        """Logits (G, B, K), G guidance rows, -> offsets (B,) int64; `position` counts the tokens after the prompt."""
        place = position if isinstance(position, Tensor) else torch.full_like(self.seed, position)
        return guided_sample(
            logits,
            float(sampling.guidance_scale),
            temperature=float(sampling.temperature),
            top_k=sampling.top_k,
            top_p=float(sampling.top_p),
            seed=self.seed,
            stream=self.stream,
            position=place,
            draw=draw,
        )


def noises(seed: int | Sequence[int], prompts: int, streams: int | Sequence[int]) -> list[tuple[int, int, int]]:
    """(prompt, seed, stream) of each sequence: `streams` of each prompt side by side; for a list of streams one sequence a prompt.

    Raises:
        ValueError: another number of seeds than prompts, or a seed beyond 64 bits.
    """
    seeds = [seed] * prompts if isinstance(seed, int) else [int(one) for one in seed]
    if len(seeds) != prompts:
        raise ValueError(f"{len(seeds)} seeds for {prompts} prompts; give one integer, or one per prompt")
    for one in seeds:
        if not -(2**63) <= one < 2**63:
            raise ValueError(f"seed {one} does not fit 64 bits")
    if not isinstance(streams, int):
        return [(number, seeds[number], int(stream)) for number, stream in enumerate(streams)]
    return [(number, seeds[number], stream) for number in range(prompts) for stream in range(streams)]


def make_keys(seed: int | Sequence[int], prompts: int, streams: int | Sequence[int], device: torch.device) -> Keys:
    """Keys of the sequences of `noises`, which says what is raised."""
    found = torch.tensor(noises(seed, prompts, streams), dtype=torch.int64, device=device)
    return Keys(found[:, 1], found[:, 2])
