"""Text models of transformers that a multimodal model may start from: Llama (1 to 3) and Qwen3, without tokenizers for pictures.

Both compute what `EmuForCausalLM` does and call their weights as it does; Qwen3 has its norms of queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, Qwen3Config

from emu.families.base import Family, refuse_other
from emu.families.emu3.config import SIZES
from emu.layouts import Emu3Layout
from emu.model_config import EmuConfig
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer

CONFIGS: Mapping[str, type[LlamaConfig] | type[Qwen3Config]] = {
    config.model_type: config for config in (LlamaConfig, Qwen3Config)
}
"""`model_type` -> what transformers reads it with, which knows the defaults of fields that a file leaves out."""

BIASED = ("qwen2", "qwen2_moe")
"""Like Qwen3, but with biases in the projections of queries, keys and values, which ours do not have."""

ROPE_TYPES = ("default", "llama3")


class LlamaFamily(Family):
    """`LlamaForCausalLM` and `Qwen3ForCausalLM` as `save_pretrained` of transformers writes them."""

    name = "llama"
    title = "text models of transformers, Llama and Qwen3"
    layout = Emu3Layout.name
    modalities = ()
    model_types = tuple(CONFIGS)

    def detect(self, config: Mapping[str, Any], tensor_names: Callable[[], Set[str]]) -> bool:
        """Its `model_type`; that of Qwen2 too, so that it is refused with the reason."""
        return config.get("model_type") in (*self.model_types, *BIASED)

    def config_from(self, config: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> EmuConfig:
        """See `Family`; dropout of attention is all that these models have."""
        kind = config["model_type"]
        if kind in BIASED:
            raise ValueError(
                f"config.json has model_type {kind!r}, whose projections of queries, keys and values have biases; EmuForCausalLM has none. "
                f"Start from one of {sorted(CONFIGS)}: Qwen3 is the successor without them"
            )
        theirs = CONFIGS[kind](**config)
        table = theirs.to_dict()
        refuse_other(table, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False})
        if "sliding_attention" in (table.get("layer_types") or ()):
            raise ValueError(
                "config.json has layers with sliding_attention; EmuForCausalLM sees all earlier tokens in every layer, so this model "
                "cannot be read"
            )
        rope = dict(theirs.rope_parameters)  # type: ignore[arg-type]
        if rope.get("rope_type") not in ROPE_TYPES:
            raise ValueError(
                f"config.json has rope_type {rope.get('rope_type')!r}; expected one of {ROPE_TYPES}, so this model cannot be read"
            )
        settings: dict[str, Any] = {name: table.get(name) for name in (*SIZES, "head_dim", "attention_dropout")}
        settings |= {"rope_parameters": rope, "qk_norm": kind == Qwen3Config.model_type}
        return EmuConfig(**settings, tie_word_embeddings=bool(theirs.tie_word_embeddings))

    def is_alone(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Always: there is nothing but text."""
        return True

    def vocabulary(self, folder: Path, config: Mapping[str, Any]) -> Vocabulary | None:
        """None: of controls these models have two or three, under names of their own."""
        return None

    def text(self, folder: Path, vocabulary: Vocabulary, split: str) -> TextTokenizer:
        """The folder's tokenizer.json as it stands."""
        return TextTokenizer.from_pretrained(folder)
