"""Emu3's table of ids, from its config.json, and the words of its ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emu.families.emu3.config import ORIGINAL_CONTROLS, ORIGINAL_DEFAULTS
from emu.vocabulary import Vocabulary

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
