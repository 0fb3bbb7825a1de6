"""Which library wrote a folder.

    emu            folders of this library
    transformers   `Emu3ForConditionalGeneration` or `Emu3ForCausalLM` of transformers
    emu3           the files of baaivision/Emu3 (Gen, Chat, Stage1)
    emu3.5         the files of baaivision/Emu3.5

The architecture is read from `config.json`; nothing in a folder is executed, and its Python files are never looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emu.checkpoints.weights import Checkpoint
from emu_tokenizers.files import read_json

FORMATS = ("emu", "transformers", "emu3", "emu3.5")

MODEL_TYPES = {"emu": "emu", "emu3": "transformers", "emu3_text_model": "transformers", "Emu3": "emu3"}
"""`model_type` of a language model's config.json -> format. Emu3 and Emu3.5 share theirs; the norms of queries tell them apart."""

VISION_TYPES = {"emu_vision_tokenizer": "emu", "emu3_vqgan": "transformers", "Emu3VisionVQ": "emu3"}
"""`model_type` of a vision tokenizer's config.json -> format."""

QUERY_NORM = "model.layers.0.self_attn.q_norm.weight"
"""Weight that Emu3.5 has and Emu3 has not."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a folder.

    Raises:
        FileNotFoundError: the folder or the file is missing.
        ValueError: it is no JSON object.
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


def detect(folder: str | Path) -> str:
    """The format of a folder with a language model: one of `FORMATS`.

    Raises:
        FileNotFoundError: the folder, its config.json or its weights are missing.
        ValueError: an architecture that is not read here; the message names the file, what it says and what is read.
    """
    folder = Path(folder)
    config = read_config(folder)
    kind = config.get("model_type")
    if kind in VISION_TYPES:
        raise ValueError(
            f"{folder / 'config.json'} describes a vision tokenizer (model_type {kind!r}), not a language model; pass it as "
            "vision_tokenizer=, or open it with VisionTokenizer.from_pretrained"
        )
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"{folder / 'config.json'} has model_type {kind!r}; this library reads {sorted(MODEL_TYPES)}. Convert the model with "
            "the tools of its own library first"
        )
    if MODEL_TYPES[kind] != "emu3":
        return MODEL_TYPES[kind]
    names = stored_names(folder)
    newer = QUERY_NORM in names if names else "head_dim" in config
    return "emu3.5" if newer else "emu3"


def stored_names(folder: Path) -> set[str]:
    """Names of the tensors in a folder, from the index of its shards or from headers; empty where weights are pickled."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return set(read_json(index).get("weight_map", {}))
    if not (folder / "model.safetensors").is_file():
        return set()
    return set(Checkpoint.open(folder).entries)
