"""Emu3's config.json as our configuration and table of ids, and back.

Sources: `configuration_emu3.py` of baaivision/Emu3 and baaivision/Emu3.5, which share their fields, and `tokenization_emu3.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emu.families.base import refuse_other
from emu.model_config import EmuConfig
from emu.vocabulary import Vocabulary

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""Fields that we, transformers and the original call the same."""

ORIGINAL_DEFAULTS: dict[str, Any] = {
    "vocab_size": 184622,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 9216,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "pad_token_id": 151643,
    "bos_token_id": 151849,
    "eos_token_id": 151850,
    "img_token_id": 151851,
    "boi_token_id": 151852,
    "eoi_token_id": 151853,
    "eol_token_id": 151846,
    "eof_token_id": 151847,
    "image_area": 518400,
    "tie_word_embeddings": False,
    "rope_theta": 1_000_000.0,
    "rope_scaling": None,
    "attention_dropout": 0.1,
}
"""What a field that the original's config.json leaves out means."""

ORIGINAL_CONTROLS = {
    **{"pad": "pad_token_id", "bos": "bos_token_id", "eos": "eos_token_id", "eol": "eol_token_id"},
    **{"eof": "eof_token_id", "image": "img_token_id", "boi": "boi_token_id", "eoi": "eoi_token_id"},
}
"""Control -> field of the original's config.json."""


WORDS = {
    **{"pad": "<|endoftext|>", "bos": "<|extra_203|>", "eos": "<|extra_204|>", "eol": "<|extra_200|>"},
    **{"eof": "<|extra_201|>", "image": "<|image token|>", "boi": "<|image start|>", "eoi": "<|image end|>"},
}
"""Control -> its word in Emu3's tokenizer files (`tokenization_emu3.py`)."""

CODE_WORD = "<|visual token {:0>6d}|>"
"""Word of a code in Emu3's tokenizer files."""

FIRST_EXTRA = -200
"""`<|extra_0|>` relative to EOL, which is `<|extra_200|>`."""

RELEASED_SIZE = ORIGINAL_DEFAULTS["vocab_size"]
"""Size of the released vocabulary, whose table is known without tokenizer files."""


def config_from(table: Mapping[str, Any], vocabulary: Vocabulary | None, **changes: Any) -> EmuConfig:
    """Our configuration of a config.json; `changes` are fields of ours that the file does not say. See `Family.config_from`."""
    raw = {**ORIGINAL_DEFAULTS, **table}
    refuse_other(raw, {"hidden_act": "silu"})
    scaling = dict(raw["rope_scaling"] or {})
    rope = {"rope_type": scaling.pop("type", None) or scaling.pop("rope_type", "default"), **scaling}
    settings = {
        **{name: raw[name] for name in SIZES},
        "head_dim": raw.get("head_dim"),
        "rope_parameters": {**rope, "rope_theta": float(raw["rope_theta"])},
        "attention_dropout": raw["attention_dropout"],
        "residual_dropout": raw["attention_dropout"],
        "embedding_dropout": raw["attention_dropout"],
        "tie_word_embeddings": raw["tie_word_embeddings"],
        "vocabulary": None if vocabulary is None else vocabulary.to_dict(),
    }
    return EmuConfig(**{**settings, **changes})


def config_to(config: EmuConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Our configuration as the original's config.json, the inverse of `config_from`; the dropout of embeddings becomes that of the rest.

    Raises:
        ValueError: the model has what the original cannot say (another rotary setting, unequal dropouts).
    """
    check_dropouts(config)
    rope = dict(config.rope_parameters or {})
    theta, kind = rope.pop("rope_theta", config.rope_theta), rope.pop("rope_type", "default")
    if kind not in ("default", "linear", "dynamic"):
        raise ValueError(f"rope_type is {kind!r}; the original's config.json holds 'default', 'linear' and 'dynamic'")
    table: dict[str, Any] = {
        "architectures": ["Emu3ForCausalLM"],
        "model_type": "Emu3",
        **{name: getattr(config, name) for name in SIZES},
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, "factor": float(rope["factor"])},
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": "silu",
        "pretraining_tp": 1,
        "use_cache": True,
    }
    if vocabulary is not None:
        table |= {field: vocabulary.control(name) for name, field in ORIGINAL_CONTROLS.items()}
    return table


def check_dropouts(config: EmuConfig) -> None:
    """Raise ValueError where attention and residual branches have dropouts of their own: both other formats have one rate."""
    rates = {name: getattr(config, name) for name in ("attention_dropout", "residual_dropout")}
    if len(set(rates.values())) > 1:
        raise ValueError(
            f"the model has the dropouts {rates}; the target has one rate for both. Set them equal in config.json; they matter in "
            "training only"
        )


def original_vocabulary(table: Mapping[str, Any], extras: Mapping[str, int] | None = None) -> Vocabulary:
    """The table of ids of a config.json: codes follow the last control and fill the vocabulary.

    Args:
        table: config.json.
        extras: further controls -> n of their word `<|extra_n|>`.

    Raises:
        ValueError: there is no room for codes.
    """
    raw = {**ORIGINAL_DEFAULTS, **table}
    controls = {name: int(raw[field]) for name, field in ORIGINAL_CONTROLS.items()}
    first = max(controls.values()) + 1
    zero = controls["eol"] + FIRST_EXTRA
    controls |= {name: zero + number for name, number in (extras or {}).items()}
    if first >= raw["vocab_size"]:
        raise ValueError(
            f"config.json has vocab_size {raw['vocab_size']} and controls up to id {first - 1}; expected codes after them"
        )
    return Vocabulary(raw["vocab_size"], {"vision": (first, raw["vocab_size"] - first)}, controls)


def vision_words(num_codes: int) -> list[str]:
    """The lines of the original's `emu3_vision_tokens.txt`."""
    return [WORDS[name] for name in ("image", "boi", "eoi")] + [CODE_WORD.format(code) for code in range(num_codes)]
