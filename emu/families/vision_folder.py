"""Vision tokenizers in folders of their own, under any of the names that `emu_tokenizers.vision.naming` knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from emu.checkpoints.weights import Checkpoint
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.files import read_json
from emu_tokenizers.vision.naming import config_from, weights_from


def model_type(folder: Path) -> str | None:
    """The `model_type` of a folder's config.json, None where it has none."""
    file = folder / "config.json"
    return read_json(file).get("model_type") if file.is_file() else None


def read(folder: Path, allow_pickle: Iterable[str]) -> VisionTokenizer:
    """The vision tokenizer of a folder with config.json.

    Raises:
        FileNotFoundError: its weights are missing.
        ValueError: a broken file, pickled weights that were not allowed, or tensors that do not fit.
    """
    checkpoint = Checkpoint.open(folder, allow_pickle)
    if not checkpoint.pickled:
        return VisionTokenizer.from_pretrained(folder)
    return build(read_json(folder / "config.json"), dict(checkpoint.tensors()), str(folder))


def build(table: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> VisionTokenizer:
    """A tokenizer from its config.json and its tensors, under the names of any library.

    Args:
        table: config.json.
        state: name -> tensor.
        source: named in messages.

    Raises:
        ValueError: features that ours lacks, or tensors that are missing, too many, or of another shape.
    """
    tokenizer = VisionTokenizer(config_from(table)).eval()
    tokenizer.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    tokenizer.load_weights(weights_from(state), source)
    return tokenizer
