"""The vision tokenizer: pictures and clips to codes and back."""

from __future__ import annotations

from emu_tokenizers.vision.config import VisionTokenizerConfig
from emu_tokenizers.vision.tokenizer import VisionTokenizer, VisionTokenizerOutput

__all__ = ["VisionTokenizer", "VisionTokenizerConfig", "VisionTokenizerOutput"]
