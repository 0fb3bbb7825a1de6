"""Configurations of released models as ours, and back.

Sources: `configuration_emu3.py` of baaivision/Emu3 and baaivision/Emu3.5, and transformers' `Emu3TextConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Emu3TextConfig

from emu.model import EmuConfig
from emu.vocabulary import Vocabulary

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""Fields that all of them call the same."""

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

NEWER_CONTROLS = {"tms": 202, "bss": 100, "ess": 101, "bog": 60, "eog": 61, "boc": 50, "eoc": 51}
"""Controls of Emu3.5 beyond those of Emu3 -> n of `<|extra_n|>` (`configs/config.py` of baaivision/Emu3.5): time stamp, begin and end
of the answer, of the plan for a whole document and of the plan for one image."""

FIRST_EXTRA = -200
"""`<|extra_0|>` relative to EOL, which is `<|extra_200|>`."""


def emu_config(table: Mapping[str, Any], form: str, vocabulary: Vocabulary | None = None) -> EmuConfig:
    """The configuration of a released language model as ours.

    Args:
        table: its config.json.
        form: "transformers", "emu3" or "emu3.5".
        vocabulary: table of ids, where it is known.

    Raises:
        ValueError: the model has parts that ours has not (biases, another activation), or broken sizes.
    """
    known = None if vocabulary is None else vocabulary.to_dict()
    if form == "transformers":
        return _from_transformers(table, known)
    raw = {**ORIGINAL_DEFAULTS, **table}
    _refuse(raw, {"hidden_act": "silu"})
    scaling = dict(raw["rope_scaling"] or {})
    rope = {"rope_type": scaling.pop("type", None) or scaling.pop("rope_type", "default"), **scaling}
    return EmuConfig(
        **{name: raw[name] for name in SIZES},
        head_dim=raw.get("head_dim") or (128 if form == "emu3.5" else None),
        rope_parameters={**rope, "rope_theta": float(raw["rope_theta"])},
        qk_norm=form == "emu3.5",
        attention_dropout=raw["attention_dropout"],
        residual_dropout=raw["attention_dropout"],
        embedding_dropout=raw["attention_dropout"],
        tie_word_embeddings=raw["tie_word_embeddings"],
        vocabulary=known,
    )


def _from_transformers(table: Mapping[str, Any], vocabulary: dict[str, Any] | None) -> EmuConfig:
    whole = "text_config" in table
    text = Emu3TextConfig(**(table["text_config"] or {} if whole else table))
    _refuse(text.to_dict(), {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False})
    return EmuConfig(
        **{name: getattr(text, name) for name in SIZES},
        head_dim=getattr(text, "head_dim", None),
        rope_parameters=dict(text.rope_parameters),  # type: ignore[arg-type]
        attention_dropout=text.attention_dropout,
        residual_dropout=text.attention_dropout,
        tie_word_embeddings=bool(table.get("tie_word_embeddings", False)),
        vocabulary=vocabulary,
    )


def _refuse(table: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if table.get(name, value) != value:
            raise ValueError(
                f"config.json has {name} {table[name]!r}; EmuForCausalLM computes {value!r} only, so this model cannot be read"
            )


def original_vocabulary(table: Mapping[str, Any], form: str) -> Vocabulary:
    """The table of ids of a model in the original format: codes follow the last control and fill the vocabulary.

    Raises:
        ValueError: there is no room for codes.
    """
    raw = {**ORIGINAL_DEFAULTS, **table}
    controls = {name: int(raw[field]) for name, field in ORIGINAL_CONTROLS.items()}
    first = max(controls.values()) + 1
    if form == "emu3.5":
        extra = controls["eol"] + FIRST_EXTRA
        controls |= {name: extra + number for name, number in NEWER_CONTROLS.items()}
    if first >= raw["vocab_size"]:
        raise ValueError(
            f"config.json has vocab_size {raw['vocab_size']} and controls up to id {first - 1}; expected codes behind them"
        )
    return Vocabulary(raw["vocab_size"], {"vision": (first, raw["vocab_size"] - first)}, controls)


def original_config(config: EmuConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Our configuration as the original's config.json, the inverse of `emu_config`; the dropout of embeddings becomes that of the rest.

    Raises:
        ValueError: the model has what the original cannot say (another rotary setting, unequal dropouts).
    """
    _check_dropouts(config)
    rope = dict(config.rope_parameters or {})
    theta, kind = rope.pop("rope_theta", config.rope_theta), rope.pop("rope_type", "default")
    if kind not in ("default", "linear", "dynamic"):
        raise ValueError(f"rope_type is {kind!r}; the original format knows 'default', 'linear' and 'dynamic'")
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
    if config.qk_norm:
        table["head_dim"] = config.head_dim
    elif config.head_dim * config.num_attention_heads != config.hidden_size:  # type: ignore[operator]
        raise ValueError(
            f"head_dim {config.head_dim} x {config.num_attention_heads} heads is not hidden_size {config.hidden_size}; the original "
            "format of Emu3 cannot say so"
        )
    if vocabulary is not None:
        table |= {field: vocabulary.control(name) for name, field in ORIGINAL_CONTROLS.items()}
    return table


def transformers_config(config: EmuConfig) -> dict[str, Any]:
    """Our configuration as keyword arguments of transformers' `Emu3TextConfig`, the inverse of `emu_config`.

    Raises:
        ValueError: the model has what transformers' Emu3 has not (QK-norm, unequal dropouts).
    """
    if config.qk_norm:
        raise ValueError(
            "the model has QK-norm, which transformers' Emu3 has not; convert it to 'emu' or 'emu3' instead"
        )
    _check_dropouts(config)
    table = {name: getattr(config, name) for name in SIZES}
    table |= {
        "rope_parameters": dict(config.rope_parameters or {}),
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:  # type: ignore[operator]
        table["head_dim"] = config.head_dim
    return table


def _check_dropouts(config: EmuConfig) -> None:
    rates = {name: getattr(config, name) for name in ("attention_dropout", "residual_dropout")}
    if len(set(rates.values())) > 1:
        raise ValueError(
            f"the model has the dropouts {rates}; the target format has one rate for both. Set them equal in config.json; they matter in "
            "training only"
        )
