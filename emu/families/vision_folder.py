"""Vision tokenizers of released models: in folders of their own, or inside the files of a language model.

Names and configurations are translated by `emu_tokenizers.vision.naming`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from emu.checkpoints.weights import Checkpoint
from emu.families.detection import VISION_TYPES, read_config
from emu.families.emu35.vision import read_ibq, read_settings
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.vision.naming import config_from, config_to, weights_from, weights_to


def read_vision_tokenizer(folder: str | Path, allow_pickle: str | Iterable[str] = ()) -> VisionTokenizer:
    """The vision tokenizer of a folder: ours, transformers' `Emu3VQVAE`, or the originals' of Emu3 and Emu3.5.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: another architecture, a broken file, pickled weights that were not allowed, or tensors that do not fit.
    """
    settings = read_settings(folder)
    if settings is not None:
        return read_ibq(folder, settings, allow_pickle)
    kind = read_config(folder).get("model_type")
    if kind not in VISION_TYPES:
        raise ValueError(
            f"{Path(folder) / 'config.json'} has model_type {kind!r}; expected a vision tokenizer: {sorted(VISION_TYPES)}"
        )
    checkpoint = Checkpoint.open(folder, allow_pickle)
    if not checkpoint.pickled:
        return VisionTokenizer.from_pretrained(folder)
    return build(read_config(folder), dict(checkpoint.tensors()), str(folder))


def is_vision_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vision tokenizer in a known format."""
    if read_settings(folder) is not None:
        return True
    return (folder / "config.json").is_file() and read_config(folder).get("model_type") in VISION_TYPES


def build(table: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> VisionTokenizer:
    """A tokenizer from its config.json and its tensors, in the naming of any library.

    Args:
        table: config.json.
        state: name -> tensor.
        source: named in messages.

    Raises:
        ValueError: parts that ours has not, or tensors that are missing, too many, or of another shape.
    """
    tokenizer = VisionTokenizer(config_from(table)).eval()
    tokenizer.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    tokenizer.load_weights(weights_from(state), source)
    return tokenizer


def released_config(tokenizer: VisionTokenizer, form: str) -> dict[str, Any]:
    """The config.json of a tokenizer in a format, "transformers" or "emu3".

    Raises:
        ValueError: the format cannot hold its architecture.
    """
    return config_to(tokenizer.config, form)


def released_tensors(tokenizer: VisionTokenizer, form: str) -> dict[str, Tensor]:
    """The tensors of a tokenizer under the names and shapes of a format."""
    return {name: tensor.contiguous() for name, tensor in weights_to(tokenizer.state_dict(), form).items()}


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts are equal, name by name and bit by bit."""
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
