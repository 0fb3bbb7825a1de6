"""Generation: one engine under every job."""

from emu.generation.engine import Engine
from emu.generation.sampling import Sampling
from emu.generation.session import GenerationStats

__all__ = ["Engine", "GenerationStats", "Sampling"]
