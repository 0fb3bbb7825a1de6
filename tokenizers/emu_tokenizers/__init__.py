"""Tokenizers of text, images and video: words and pixels to ids and back."""

from emu_tokenizers.config import VisionTokenizerConfig
from emu_tokenizers.text import TextTokenizer
from emu_tokenizers.vision import VisionTokenizer, VisionTokenizerOutput

__all__ = ["TextTokenizer", "VisionTokenizer", "VisionTokenizerConfig", "VisionTokenizerOutput"]
