"""Emu3 as its makers released it: the files of baaivision/Emu3 (Gen, Chat, Stage1) and its vision tokenizer beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from emu.families.base import Family, Weights
from emu.families.emu3 import tiny
from emu.families.emu3.config import (
    ORIGINAL_DEFAULTS,
    RELEASED_SIZE,
    config_from,
    config_to,
    original_vocabulary,
    vision_words,
)
from emu.families.emu3.templates import EMU3, EMU3_STAGE1, NAMED, NEGATIVE_PROMPT
from emu.families.emu3.text import RANKS_FILE, ranks_of, read_text_tokenizer, tokenizer_table, write_ranks
from emu.families.emu3.vision import NAMING, read_bounds, write_vision
from emu.layouts import Emu3Layout
from emu.model_config import EmuConfig
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import Templates
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer, VisionTokenizer
from emu_tokenizers.files import write_file, write_json
from emu_tokenizers.folders import VISION_FOLDER
from emu_tokenizers.pixels.resize import Resize, size_of_ratio
from emu_tokenizers.vision.naming import MODEL_TYPES
from emu_tokenizers.vision.naming import config_to as vision_config_to

QUERY_NORM = "model.layers.0.self_attn.q_norm.weight"
"""Weight of Emu3.5, which shares its `model_type`, and not of Emu3."""


class Emu3Family(Family):
    """The original files. Names of tensors are Llama's, as ours are.

    Attributes:
        extra_controls: controls beyond those of every layout -> n of their word `<|extra_n|>`.
        released_size: size of the vocabulary whose table is known without files.
        vision_naming: whose fields and names of tensors its vision tokenizer has, see `emu_tokenizers.vision.naming`.
    """

    name = "emu3"
    title = "the original format of Emu3"
    layout = Emu3Layout.name
    model_types: Sequence[str] = ("Emu3",)
    vision_naming = NAMING
    vision_types: Sequence[str] = (MODEL_TYPES[NAMING],)
    templates: Mapping[str, Templates] = NAMED
    vision_repository: str | None = "BAAI/Emu3-VisionTokenizer"
    extra_controls: Mapping[str, int] = {}
    released_size: int = RELEASED_SIZE

    def detect(self, config: Mapping[str, Any], tensor_names: Callable[[], Set[str]]) -> bool:
        """Its `model_type`, and no norms of queries, which Emu3.5 has."""
        return super().detect(config, tensor_names) and not has_query_norm(config, tensor_names)

    def config_from(self, config: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> EmuConfig:
        """See `Family`; one dropout stands for that of attention, residual branches and embeddings."""
        return config_from(config, vocabulary)

    def config_to(self, config: EmuConfig, tokenizer: MultimodalTokenizer | None) -> dict[str, Any]:
        """The config.json of a model; see `write`."""
        if config.qk_norm:
            raise ValueError(
                f"the model has QK-norm, which {self.title} cannot hold; convert it to another family instead"
            )
        if config.head_dim * config.num_attention_heads != config.hidden_size:  # type: ignore[operator]
            raise ValueError(
                f"head_dim {config.head_dim} x {config.num_attention_heads} heads is not hidden_size {config.hidden_size}; {self.title} "
                "cannot say so"
            )
        return config_to(config, None if tokenizer is None else tokenizer.vocabulary)

    def holds(self, config: EmuConfig) -> bool:
        """A model without QK-norm."""
        return not config.qk_norm

    def vocabulary(self, folder: Path, config: Mapping[str, Any]) -> Vocabulary | None:
        """From the ids in config.json; None where it has none and the size is not the released one."""
        known = "boi_token_id" in config or config.get("vocab_size", RELEASED_SIZE) == self.released_size
        return original_vocabulary(config, self.extra_controls) if known else None

    def text(self, folder: Path, vocabulary: Vocabulary, split: str) -> TextTokenizer:
        """See `read_text_tokenizer`."""
        return read_text_tokenizer(folder, vocabulary, split)

    def resize(self, folder: Path, place: Path, factor: int, config: Mapping[str, Any]) -> Resize | None:
        """Bounds of the area, from the files of the image processor."""
        return read_bounds(folder, place, factor)

    def default_templates(self, name: str) -> Templates:
        """Plain for a Stage1, which was trained without instructions."""
        return EMU3_STAGE1 if "stage1" in name.lower() else EMU3

    def defaults(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of `image_generation.py` of baaivision/Emu3."""
        area = int(config.get("image_area", ORIGINAL_DEFAULTS["image_area"]))
        return {
            "size": list(size_of_ratio("1:1", area)),
            "guidance_scale": 3.0,
            "top_k": 2048,
            "negative_prompt": NEGATIVE_PROMPT,
        }

    def write(self, folder: Path, config: EmuConfig, tokenizer: MultimodalTokenizer | None) -> None:
        """Write config.json, the ranks of byte pairs, the words of codes, and the vision tokenizer under `vision_tokenizer/`."""
        table = self.config_to(config, tokenizer)
        if tokenizer is None:
            write_json(folder / "config.json", table)
            return
        vision = self.check_tokenizer(tokenizer)
        ranks = ranks_of(tokenizer_table(tokenizer.text))
        assert ranks is not None
        given, wanted = tokenizer.vocabulary, original_vocabulary(table, self.extra_controls)
        if (wanted.text, wanted.ranges) != (given.text, given.ranges):
            raise ValueError(
                f"the vocabulary has text {given.text} and codes {dict(given.ranges)}; {self.title} counts text, controls and codes in "
                f"this order: {wanted.text}, {dict(wanted.ranges)}. Keep the model in the family 'emu'"
            )
        write_json(folder / "config.json", table)
        write_ranks(ranks, folder / RANKS_FILE)
        words = vision_words(given.range("vision")[1])
        write_file(folder / "emu3_vision_tokens.txt", ("\n".join(words) + "\n").encode())
        (folder / VISION_FOLDER).mkdir()
        self.write_vision(folder / VISION_FOLDER, vision, tokenizer.resize or Resize())

    def check_tokenizer(self, tokenizer: MultimodalTokenizer) -> VisionTokenizer:
        """The vision tokenizer of a model that can be written.

        Raises:
            ValueError: another layout, no vision tokenizer, or one of another architecture.
        """
        if tokenizer.layout.name != self.layout:
            raise ValueError(
                f"the model's layout is {tokenizer.layout.name!r}, {self.title} holds {self.layout!r}; keep it in the family 'emu'"
            )
        if tokenizer.vision is None:
            raise ValueError(
                f"the model has no vision tokenizer, {self.title} needs one; pass language_model_only=True"
            )
        self.vision_config(tokenizer.vision)
        return tokenizer.vision

    def vision_config(self, vision: VisionTokenizer) -> dict[str, Any]:
        """The settings of a vision tokenizer in the family's fields.

        Raises:
            ValueError: its architecture is another one.
        """
        return vision_config_to(vision.config, self.vision_naming)

    def write_vision(self, folder: Path, vision: VisionTokenizer, resize: Resize) -> None:
        """Write the folder of the vision tokenizer."""
        write_vision(folder, vision, resize)

    def write_tiny(self, folder: Path, weights: Weights, *, alone: bool = False, **model: Any) -> None:
        """See `emu.families.emu3.tiny`."""
        tiny.write_language_model(folder, weights, config_to, **model)
        if not alone:
            tiny.write_vision(folder / VISION_FOLDER)


def has_query_norm(config: Mapping[str, Any], tensor_names: Callable[[], Set[str]]) -> bool:
    """Whether a folder of these files holds a model with norms of queries; where weights are pickled, the field `head_dim` decides."""
    names = tensor_names()
    return QUERY_NORM in names if names else "head_dim" in config
