"""What training minimises; a recipe names one by class path (`model.objective`)."""

from emu.training.objectives.base import LossParts, Objective
from emu.training.objectives.grpo import GRPO
from emu.training.objectives.next_token import NextToken

__all__ = ["GRPO", "LossParts", "NextToken", "Objective"]
