"""A trained model in one object: `Emu`."""

from emu.pipeline.emu import Emu
from emu.pipeline.requests import GenerationDefaults
from emu.pipeline.results import ImageResult, VideoResult

__all__ = ["Emu", "GenerationDefaults", "ImageResult", "VideoResult"]
