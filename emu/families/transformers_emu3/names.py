"""What the tensors of a language model are called, here and elsewhere.

Ours are the names of Llama, which the original keeps; transformers puts `text_model.` before them on disk, or `model.text_model.` in
memory.
"""

from __future__ import annotations

import re

TO_EMU: dict[str, dict[str, str]] = {
    "emu": {},
    "emu3": {},
    "emu3.5": {},
    "transformers": {r"^text_model\.lm_head\.": "lm_head.", r"^(?:model\.)?text_model\.(?:model\.)?": "model."},
}
"""Format -> (pattern -> replacement) that turns its names into ours, in order."""

VISION_PREFIX = re.compile(r"^(?:model\.)?vqmodel\.")
"""Before the names of the vision tokenizer that transformers keeps in the same files."""

NOT_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$")
"""Buffers that old checkpoints carry and that are computed."""


def to_emu(name: str, form: str) -> str:
    """Our name of a tensor of the language model."""
    for pattern, replacement in TO_EMU[form].items():
        name = re.sub(pattern, replacement, name)
    return name


def from_emu(name: str, form: str, whole: bool = True) -> str:
    """The inverse of `to_emu`: what a format calls our tensor.

    Args:
        name: ours.
        form: the format.
        whole: for transformers, whether the vision tokenizer is in the same files (`Emu3ForConditionalGeneration`).
    """
    return f"text_model.{name}" if form == "transformers" and whole else name


def of_language_model(name: str) -> bool:
    """Whether a tensor belongs to the language model: neither to the vision tokenizer nor computed."""
    return not VISION_PREFIX.match(name) and not NOT_WEIGHTS.search(name)
