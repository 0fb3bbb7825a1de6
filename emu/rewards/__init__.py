"""Rewards: what a generated picture or clip is worth, asked of any callable that a recipe or a command names by class path."""

from emu.rewards.base import Candidate, Reward, score

__all__ = ["Candidate", "Reward", "score"]
