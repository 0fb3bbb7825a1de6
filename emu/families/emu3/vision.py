"""Emu3's vision tokenizer as its makers keep it, and the bounds of its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from emu.checkpoints.weights import WEIGHTS
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.files import read_json, write_json
from emu_tokenizers.pixels.resize import Resize
from emu_tokenizers.vision.naming import config_to, weights_to

NAMING = "emu3"
"""What `emu_tokenizers.vision.naming` calls these names of tensors and fields."""

PROCESSOR_FILE = "preprocessor_config.json"


def read_bounds(folder: Path, place: Path, factor: int) -> Resize:
    """The bounds of a picture's area, from whichever file says them.

    Args:
        folder: of the model.
        place: of its vision tokenizer.
        factor: pixels per code along each side.
    """
    table: dict[str, Any] = {}
    for file in (place / PROCESSOR_FILE, folder / PROCESSOR_FILE, folder / "processor_config.json"):
        if file.is_file():
            table = read_json(file)
            table = table.get("image_processor", table)
            break
    usual = Resize(factor)
    return Resize(factor, int(table.get("min_pixels", usual.least)), int(table.get("max_pixels", usual.most)))


def vision_tensors(tokenizer: VisionTokenizer, naming: str = NAMING) -> dict[str, Tensor]:
    """The tensors of a tokenizer under the names and shapes of a naming."""
    return {name: tensor.contiguous() for name, tensor in weights_to(tokenizer.state_dict(), naming).items()}


def write_vision(folder: Path, tokenizer: VisionTokenizer, resize: Resize) -> None:
    """Write a vision tokenizer's folder.

    Raises:
        ValueError: its architecture is not Emu3's; nothing was written then.
    """
    write_json(folder / "config.json", config_to(tokenizer.config, NAMING))
    write_json(folder / PROCESSOR_FILE, {"min_pixels": resize.least, "max_pixels": resize.most})
    save_file(vision_tensors(tokenizer), folder / WEIGHTS, metadata={"format": "pt"})
