"""Text, images and video as tokens of one vocabulary: tokenizers, one transformer trained from scratch, guided sampling.

Names are loaded when they are first asked for, so that `import emu` costs milliseconds. transformers' `AutoConfig`, `AutoModelForCausalLM`
and `AutoProcessor` know the model type "emu" once any of them was (`from emu import EmuForCausalLM`), or after `import emu.hub`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.documents import Text, Video
    from emu.layouts import Emu3Layout, Emu35Layout
    from emu.model import EmuConfig, EmuForCausalLM
    from emu.multimodal_tokenizer import MultimodalTokenizer
    from emu.pipeline import Emu, ImageResult, VideoResult
    from emu.vocabulary import Vocabulary
    from emu_tokenizers import TextTokenizer, VisionTokenizer, VisionTokenizerConfig

__version__ = "0.1.0"

_HOMES = {
    "emu.documents": ("Text", "Video"),
    "emu.layouts": ("Emu35Layout", "Emu3Layout"),
    "emu.model": ("EmuConfig", "EmuForCausalLM"),
    "emu.multimodal_tokenizer": ("MultimodalTokenizer",),
    "emu.pipeline": ("Emu", "ImageResult", "VideoResult"),
    "emu.vocabulary": ("Vocabulary",),
    "emu.tokenizers": ("TextTokenizer", "VisionTokenizer", "VisionTokenizerConfig"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Emu",
    "Emu35Layout",
    "Emu3Layout",
    "EmuConfig",
    "EmuForCausalLM",
    "ImageResult",
    "MultimodalTokenizer",
    "Text",
    "TextTokenizer",
    "Video",
    "VideoResult",
    "VisionTokenizer",
    "VisionTokenizerConfig",
    "Vocabulary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'emu' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    import emu.hub  # noqa: F401  (registers with transformers' Auto classes)

    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


logging.getLogger("emu").addHandler(logging.NullHandler())
