"""What training minimises; a recipe names one by class path (`model.objective`)."""

from emu.training.objectives.base import LossParts, Objective
from emu.training.objectives.dpo import DPO
from emu.training.objectives.grpo import GRPO
from emu.training.objectives.next_token import NextToken

__all__ = ["DPO", "GRPO", "LossParts", "NextToken", "Objective"]
