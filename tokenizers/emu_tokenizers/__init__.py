"""Tokenizers of text, images and video: words and pixels to ids and back.

Names are loaded when they are first asked for: the process that decodes clips lives in this package and needs no torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu_tokenizers.text import TextTokenizer
    from emu_tokenizers.vision.config import VisionTokenizerConfig
    from emu_tokenizers.vision.tokenizer import VisionTokenizer, VisionTokenizerOutput

_HOME_OF = {
    "TextTokenizer": "emu_tokenizers.text",
    "VisionTokenizer": "emu_tokenizers.vision.tokenizer",
    "VisionTokenizerConfig": "emu_tokenizers.vision.config",
    "VisionTokenizerOutput": "emu_tokenizers.vision.tokenizer",
}

__all__ = ["TextTokenizer", "VisionTokenizer", "VisionTokenizerConfig", "VisionTokenizerOutput"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'emu_tokenizers' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


logging.getLogger("emu").addHandler(logging.NullHandler())
