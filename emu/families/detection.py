"""Which family a folder is of.

The architecture is read from `config.json`; nothing in a folder is executed, and its Python files are never looked at.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from emu.checkpoints.weights import INDEX, WEIGHTS, Checkpoint
from emu.families import FAMILIES
from emu.families.base import Family
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.files import read_json


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a folder.

    Raises:
        FileNotFoundError: the folder or the file is missing.
        ValueError: it is not a JSON object.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; expected one with config.json and safetensors")
    if not (folder / "config.json").is_file():
        found = sorted(file.name for file in folder.iterdir())[:8]
        raise FileNotFoundError(
            f"{folder} holds no config.json (it holds {found}); give the folder of the model itself"
        )
    return read_json(folder / "config.json")


def find_family(folder: str | Path) -> Family:
    """The family of a folder with a language model.

    Raises:
        FileNotFoundError: the folder or its config.json is missing.
        ValueError: an architecture that is not read here; the message names the file, what it says and what is read.
    """
    folder = Path(folder)
    config = read_config(folder)
    for family in FAMILIES.values():
        if family.detect(config, partial(stored_names, folder)):
            return family
    kind = config.get("model_type")
    if kind in vision_types():
        raise ValueError(
            f"{folder / 'config.json'} describes a vision tokenizer (model_type {kind!r}), not a language model; pass it as "
            "vision_tokenizer=, or open it with VisionTokenizer.from_pretrained"
        )
    known = sorted({kind for family in FAMILIES.values() for kind in family.model_types})
    raise ValueError(
        f"{folder / 'config.json'} has model_type {kind!r}; this library reads {known}. Convert the model with the tools of its own "
        "library first"
    )


def vision_types() -> set[str]:
    """`model_type` of the vision tokenizers of all families."""
    return {kind for family in FAMILIES.values() for kind in family.vision_types}


def stored_names(folder: Path) -> set[str]:
    """Names of the tensors in a folder, from the index of its shards or from headers; empty where weights are pickled."""
    index = folder / INDEX
    if index.is_file():
        return set(read_json(index).get("weight_map", {}))
    if not (folder / WEIGHTS).is_file():
        return set()
    return set(Checkpoint.open(folder).entries)


def is_vision_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vision tokenizer of any family."""
    return any(family.is_vision(folder) for family in FAMILIES.values())


def read_vision_tokenizer(folder: str | Path, allow_pickle: str | tuple[str, ...] | list[str] = ()) -> VisionTokenizer:
    """The vision tokenizer of a folder of its own, of any family.

    Args:
        folder: of the tokenizer.
        allow_pickle: names of pickled files that may be read where there are no safetensors.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: another architecture, a broken file, pickled weights that were not allowed, or tensors that do not fit.
    """
    folder = Path(folder)
    names = [allow_pickle] if isinstance(allow_pickle, str) else list(allow_pickle)
    for family in FAMILIES.values():
        if family.is_vision(folder):
            return family.vision(folder, names)
    raise ValueError(
        f"{folder / 'config.json'} has model_type {read_config(folder).get('model_type')!r}; expected a vision tokenizer: "
        f"{sorted(vision_types())}"
    )
