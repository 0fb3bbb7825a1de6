"""What a reward is given, and how its answer is checked.

def brightness(candidates):
    return [float(np.asarray(candidate.value).mean()) for candidate in candidates]

emu fit --config shapes-grpo --model.objective.reward my_file.brightness
emu rank candidates --reward my_file.brightness --output ranked
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """Something that was generated and is to be scored.

    Attributes:
        document: the items that it was generated after, text as `str`, pictures and clips as their modality decodes them.
        value: what was generated: a PIL image, a `Video`, or a value of another modality.
        codes: its codes, int64, 0-based.
        modality: name of its modality.
    """

    document: tuple[Any, ...]
    value: Any
    codes: Tensor
    modality: str

    @property
    def prompt(self) -> str:
        """The words of the document."""
        return " ".join(item for item in self.document if isinstance(item, str))


Reward: TypeAlias = Callable[[Sequence[Candidate]], Sequence[float]]
"""Scores of candidates, one number each, larger for better; NaN where there is no saying."""


def score(reward: Reward, candidates: Sequence[Candidate]) -> Tensor:
    """(n,) float64 scores of candidates; NaN and infinity, which are no scores, as NaN.

    Raises:
        ValueError: the reward gave another number of scores, or something that is no number.
    """
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    found = reward(candidates)
    try:
        scores = torch.tensor([float(value) for value in found], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the reward {name} gave {found!r:.200}; expected one number for each candidate") from error
    if len(scores) != len(candidates):
        raise ValueError(
            f"the reward {name} gave {len(scores)} scores for {len(candidates)} candidates; expected one for each, in order"
        )
    return torch.where(scores.isfinite(), scores, torch.nan)
