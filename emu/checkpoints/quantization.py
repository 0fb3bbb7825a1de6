"""Weights in 8 or 4 bits, through torchao (an extra).

`quantization_config` of `from_pretrained` takes what transformers takes, e.g. `TorchAoConfig(Int8WeightOnlyConfig())`, or one of the words
below, which stand for a configuration that the device can run. Activations keep their dtype in all of them; embeddings and head are not
quantized.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

WORDS = {
    "int8": "8-bit integers, one scale a row",
    "int4": "4-bit integers, one scale for up to 32 numbers (CPU: held in 8 bits) or 128 (CUDA)",
    "fp8": "8-bit floats (e4m3), one scale a row on CUDA and CPU",
}
MISSING = "quantized weights need torchao, which is not installed; run pip install 'emu-tokens[quantized]'"


def quantization_config(given: Any, device: str = "cpu", widths: Sequence[int] = ()) -> Any:
    """The configuration for transformers.

    Args:
        given: one of `WORDS`, or a configuration, which is returned.
        device: type of the device that the weights will be on, "cpu" or "cuda".
        widths: of what the quantized layers take; numbers that share a scale are a divisor of each of them.

    Raises:
        ValueError: an unknown word, torchao is not installed, or no 32 numbers can share a scale of int4 on a GPU.
    """
    if not isinstance(given, str):
        return given
    if given not in WORDS:
        raise ValueError(
            f"quantization_config is {given!r}; expected one of {list(WORDS)}, or a configuration of transformers"
        )
    if find_spec("torchao") is None:
        raise ValueError(MISSING)
    from torchao import quantization
    from transformers import TorchAoConfig

    if given == "int8":
        return TorchAoConfig(quantization.Int8WeightOnlyConfig())
    if given == "fp8":
        return TorchAoConfig(quantization.Float8WeightOnlyConfig())
    group = math.gcd(128 if device == "cuda" else 32, *widths)
    if device == "cuda":
        if group < 32:
            raise ValueError(
                f"int4 on a GPU needs widths that are multiples of 32; those of the model are {sorted(set(widths))}. Choose 'int8'"
            )
        layout = {"group_size": group, "int4_packing_format": "tile_packed_to_4d"}
        return TorchAoConfig(quantization.Int4WeightOnlyConfig(**layout))
    settings = {"weight_dtype": torch.int4, "granularity": quantization.PerGroup(group)}  # type: ignore[attr-defined]
    return TorchAoConfig(quantization.IntxWeightOnlyConfig(**settings))


def is_quantized(table: Mapping[str, Any]) -> bool:
    """Whether a config.json describes quantized weights.

    Raises:
        ValueError: they were, by torchao, and it is not installed.
    """
    found = table.get("quantization_config")
    if isinstance(found, Mapping) and found.get("quant_method") == "torchao" and find_spec("torchao") is None:
        raise ValueError(f"the folder's {MISSING}")
    return found is not None


def target_of(device_map: Any) -> str:
    """Type of the device that a device map puts the layers on: "cpu" or "cuda"."""
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    places = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    return "cuda" if any(isinstance(place, int) or "cuda" in str(place) for place in places) else "cpu"
