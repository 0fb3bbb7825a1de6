"""transformers' `Emu3TextConfig` as ours, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Emu3TextConfig

from emu.families.base import refuse_other
from emu.families.emu3.config import SIZES, check_dropouts
from emu.model_config import EmuConfig
from emu.vocabulary import Vocabulary


def config_from(table: Mapping[str, Any], vocabulary: Vocabulary | None) -> EmuConfig:
    """The language model of a config.json, whole or of the text part alone; see `Family.config_from`."""
    inner = table["text_config"] or {} if "text_config" in table else table
    text = Emu3TextConfig(**inner)
    refuse_other(text.to_dict(), {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False})
    return EmuConfig(
        **{name: getattr(text, name) for name in SIZES},
        head_dim=getattr(text, "head_dim", None),
        rope_parameters=dict(text.rope_parameters),  # type: ignore[arg-type]
        attention_dropout=text.attention_dropout,
        residual_dropout=text.attention_dropout,
        tie_word_embeddings=bool(table.get("tie_word_embeddings", False)),
        vocabulary=None if vocabulary is None else vocabulary.to_dict(),
    )


def text_config(config: EmuConfig) -> dict[str, Any]:
    """Our configuration as keyword arguments of `Emu3TextConfig`, the inverse of `config_from`.

    Raises:
        ValueError: the model has features that transformers' Emu3 lacks (QK-norm, unequal dropouts).
    """
    if config.qk_norm:
        raise ValueError("the model has QK-norm, which transformers' Emu3 lacks; convert it to another family instead")
    check_dropouts(config)
    table = {name: getattr(config, name) for name in SIZES}
    table |= {
        "rope_parameters": dict(config.rope_parameters or {}),
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:  # type: ignore[operator]
        table["head_dim"] = config.head_dim
    return table
