"""Generation: one engine under every job."""

from emu.generation.engine import Engine, GenerationStats
from emu.generation.sampling import Sampling

__all__ = ["Engine", "GenerationStats", "Sampling"]
