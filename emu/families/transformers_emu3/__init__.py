"""Emu3 as transformers keeps it: `Emu3ForConditionalGeneration` with its processor, or `Emu3ForCausalLM` alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Emu3Config, Emu3TextConfig

from emu.checkpoints.weights import Checkpoint
from emu.families.base import Weights, build_vision
from emu.families.emu3 import Emu3Family
from emu.families.emu3.vision import vision_tensors
from emu.families.transformers_emu3 import tiny
from emu.families.transformers_emu3.config import config_from, text_config
from emu.families.transformers_emu3.vocabulary import read_vocabulary, text_words, write_processor
from emu.model_config import EmuConfig
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.vocabulary import Vocabulary
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.pixels.resize import Resize
from emu_tokenizers.vision.naming import MODEL_TYPES

NAMING = "transformers"
"""What `emu_tokenizers.vision.naming` calls these names of tensors and fields."""


RENAMES = {r"^text_model\.lm_head\.": "lm_head.", r"^(?:model\.)?text_model\.(?:model\.)?": "model."}
"""Ours are the names of Llama; transformers puts `text_model.` before them on disk, or `model.text_model.` in memory."""

VISION_PREFIX = re.compile(r"^(?:model\.)?vqmodel\.")
"""Before the names of the vision tokenizer."""


class TransformersEmu3Family(Emu3Family):
    """Emu3 under transformers' names, with the vision tokenizer in the files of the language model."""

    name = "transformers"
    title = "the format of transformers' Emu3"
    model_types = ("emu3", "emu3_text_model")
    vision_naming = NAMING
    vision_types = (MODEL_TYPES[NAMING],)
    renames = RENAMES
    templates = {}
    vision_repository = None

    def detect(self, config: Mapping[str, Any], tensor_names: Callable[[], Set[str]]) -> bool:
        """Its `model_type`, of the whole model or of the language model alone."""
        return config.get("model_type") in self.model_types

    def config_from(self, config: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> EmuConfig:
        """See `emu.families.transformers_emu3.config`."""
        return config_from(config, vocabulary)

    def from_ours(self, name: str, alone: bool = False) -> str:
        """Our names are those of `Emu3ForCausalLM`; the whole model puts a word before them."""
        return name if alone else f"text_model.{name}"

    def of_language_model(self, name: str) -> bool:
        """Neither computed nor of the vision tokenizer."""
        return super().of_language_model(name) and not VISION_PREFIX.match(name)

    def is_alone(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether it is an `Emu3ForCausalLM`."""
        return config["model_type"] == Emu3TextConfig.model_type

    def vocabulary(self, folder: Path, config: Mapping[str, Any]) -> Vocabulary | None:
        """From the words of ids; None where there are none and the size is not the released one."""
        return read_vocabulary(folder, config)

    def inner_vision(
        self, folder: Path, config: Mapping[str, Any], allow_pickle: Iterable[str]
    ) -> VisionTokenizer | None:
        """The vision tokenizer of an `Emu3ForConditionalGeneration`."""
        if config.get("vq_config") is None:
            return None
        checkpoint = Checkpoint.open(folder, allow_pickle)
        inside = dict(checkpoint.tensors(name for name in checkpoint.entries if VISION_PREFIX.match(name)))
        return build_vision(config["vq_config"], inside, str(folder))

    def write(self, folder: Path, config: EmuConfig, tokenizer: MultimodalTokenizer | None) -> None:
        """Write config.json and the files of the processor."""
        text = text_config(config)
        if tokenizer is None:
            language = Emu3TextConfig(**text)
            language.architectures = ["Emu3ForCausalLM"]
            language.save_pretrained(folder)
            return
        vision, tied = self.check_tokenizer(tokenizer), text.pop("tie_word_embeddings")
        whole = Emu3Config(
            text_config=text,
            vq_config=self.vision_config(vision),
            vocabulary_map=text_words(tokenizer.vocabulary, tokenizer.text),
            tie_word_embeddings=tied,
        )
        whole.architectures = ["Emu3ForConditionalGeneration"]
        resize = tokenizer.resize or Resize()
        write_processor(folder, tokenizer.text, tokenizer.vocabulary, (resize.least, resize.most))
        whole.save_pretrained(folder)

    def inner_tensors(self, tokenizer: MultimodalTokenizer) -> dict[str, Tensor]:
        """Those of the vision tokenizer."""
        vision = self.check_tokenizer(tokenizer)
        return {f"vqmodel.{name}": tensor for name, tensor in vision_tensors(vision, NAMING).items()}

    def write_tiny(self, folder: Path, weights: Weights, *, alone: bool = False, **model: Any) -> None:
        """See `emu.families.transformers_emu3.tiny`."""
        tiny.write_model(
            folder, **model
        )  # transformers makes the weights, of the vision tokenizer in the same files too
