"""Folders of this library: what `Emu.save_pretrained` and `EmuForCausalLM.save_pretrained` write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu.families.base import Family
from emu.layouts import Emu3Layout
from emu.model_config import EmuConfig
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.tokenizer_folder import TOKENIZER_FILE
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer, VisionTokenizerConfig


class OwnFamily(Family):
    """Our names, our configuration, and a `MultimodalTokenizer` beside them."""

    name = "emu"
    title = "this library"
    layout = Emu3Layout.name
    model_types = (EmuConfig.model_type,)
    vision_types = (VisionTokenizerConfig.model_type,)

    def config_from(self, config: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> EmuConfig:
        """As it stands."""
        return EmuConfig.from_dict(dict(config))

    def is_alone(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether `EmuForCausalLM.save_pretrained` wrote it, and nobody a tokenizer."""
        return not (folder / TOKENIZER_FILE).is_file()

    def vocabulary(self, folder: Path, config: Mapping[str, Any]) -> Vocabulary | None:
        """The table in config.json, where there is one."""
        return Vocabulary.from_dict(config["vocabulary"]) if config.get("vocabulary") else None

    def text(self, folder: Path, vocabulary: Vocabulary, split: str) -> TextTokenizer:
        """Raise FileNotFoundError: text tokenizers of this library stand beside the table that joins them, which is missing here."""
        raise FileNotFoundError(
            f"{folder} holds no {TOKENIZER_FILE}; expected a folder written by MultimodalTokenizer.save_pretrained"
        )

    def write(self, folder: Path, config: EmuConfig, tokenizer: MultimodalTokenizer | None) -> None:
        """Write config.json and the tokenizers."""
        config.architectures = ["EmuForCausalLM"]
        if tokenizer is not None:
            config.vocabulary = tokenizer.vocabulary.to_dict()
            tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
