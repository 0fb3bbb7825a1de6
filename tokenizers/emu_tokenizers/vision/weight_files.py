"""Folders of config.json and safetensors: read from disk or the Hub, written without leaving half a file."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils import cached_file

from emu_tokenizers.files import read_json, write_file

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHOWN = 5
"""Most weights that do not fit that are named."""


def find(source: str | os.PathLike, name: str, **hub: Any) -> Path | None:
    """A file of a local folder or of a repository on the Hub; None if the folder or repository has no such file.

    Raises:
        FileNotFoundError: there is neither a folder nor a reachable repository of that name.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / hub.get("subfolder", "") / name
        return path if path.is_file() else None
    try:
        found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no folder {source}, and no repository of that name can be reached: {error}"
        ) from error
    return None if found is None else Path(found)


def read_settings(source: str | os.PathLike, **hub: Any) -> dict[str, Any]:
    """The config.json of a folder or repository.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is not a JSON object.
    """
    path = find(source, CONFIG, **hub)
    if path is None:
        raise FileNotFoundError(f"{source} holds no {CONFIG}; expected a folder written by save_pretrained")
    return read_json(path)


def read_weights(source: str | os.PathLike, **hub: Any) -> dict[str, Tensor]:
    """The weights of a folder or repository, in one file or in shards.

    Raises:
        FileNotFoundError: there are no safetensors.
        ValueError: a file is damaged.
    """
    index = find(source, INDEX, **hub)
    names = [WEIGHTS] if index is None else _shards(index)
    weights: dict[str, Tensor] = {}
    for name in names:
        path = find(source, name, **hub)
        if path is None:
            raise FileNotFoundError(f"{source} holds no {name}; expected a folder written by save_pretrained")
        try:
            weights |= safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or was not written to its end: {error}") from error
    return weights


def _shards(index: Path) -> list[str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(name == Path(str(name)).name for name in places.values()):
        raise ValueError(
            f'{index} is damaged: "weight_map" does not name a file of its own folder for each tensor; copy or save it again'
        )
    return sorted(set(places.values()))


def check_fit(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], optional: Collection[str], source: str) -> None:
    """Compare names and shapes of weights with those of a tokenizer.

    Args:
        weights: what was read, by our names.
        own: the tokenizer's state dict.
        optional: names that may be missing.
        source: what messages call the weights.

    Raises:
        ValueError: weights are missing, unknown or of another shape; the message names the first few.
    """
    problems = [f"missing {name}" for name in sorted(set(own) - set(weights) - set(optional))]
    problems += [f"unknown {name}" for name in sorted(set(weights) - set(own))]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{source} does not fit the configuration: {'; '.join(problems[:SHOWN])}{more}")


def write_folder(folder: str | os.PathLike, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors; each appears under its name only when it is complete."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_file(target / WEIGHTS, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write_file(target / CONFIG, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
