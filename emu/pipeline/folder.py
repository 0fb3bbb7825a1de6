"""One folder for a trained model: transformer, both tokenizers and generation defaults.

config.json  model.safetensors      the transformer, as transformers saves it
text_tokenizer/  vision_tokenizer/  the tokenizers
multimodal_tokenizer.json           what joins them: layout, modalities, vocabulary, fingerprints
emu.json                            generation defaults, and the fingerprints of the tokenizers that the transformer was trained with
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from emu.checkpoints.bundled import bundled_models, find_model_folder, is_bundled
from emu.hub.formats import read_config
from emu.hub.quantization import is_quantized
from emu.hub.reading import is_released, read_released
from emu.hub.tokenizer import read_own_tokenizer
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import FILE_NAME as TOKENIZER_FILE
from emu.multimodal_tokenizer import TEXT_FOLDER, VISION_FOLDER, MultimodalTokenizer
from emu.pipeline.requests import GenerationDefaults
from emu.vocabulary import Vocabulary
from emu_tokenizers.files import new_folder, write_json

SETTINGS_FILE = "emu.json"
FORMAT_VERSION = 1
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
OUR_FILES = ("*.json", "model*.safetensors", TEXT_FOLDER, VISION_FOLDER, "*.partial")
"""What a model's folder holds, and what goes when another model takes its name."""
DAMAGED = (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, OSError, RuntimeError)
"""What libraries raise for files that are cut or do not fit each other."""


class Parts(NamedTuple):
    """What an `Emu` is made of."""

    model: EmuForCausalLM
    tokenizer: MultimodalTokenizer
    defaults: GenerationDefaults


def read_parts(path: str | Path, dtype: torch.dtype | None, options: Mapping[str, Any]) -> Parts:
    """Read a folder of ours, a bundled model, or a released model with its options.

    Raises:
        FileNotFoundError, TypeError, ValueError: see `Emu.from_pretrained`.
    """
    if is_bundled(path):
        path = find_model_folder(path)
    if options or is_released(path):
        ours = Path(path).is_dir() and not is_released(path)
        released = read_released(path, dtype=dtype or (torch.float32 if ours else "auto"), **options)
        known = read_defaults(released.folder, released.tokenizer).to_dict()
        return Parts(released.model, released.tokenizer, GenerationDefaults.from_dict({**known, **released.settings}))
    folder = find_folder(path)
    tokenizer = read_tokenizer(folder)
    defaults = read_defaults(folder, tokenizer)
    return Parts(read_model(folder, dtype), tokenizer, defaults)


def find_folder(path: str | Path) -> Path:
    """The folder meant by a path or by the name of a bundled model.

    Raises:
        FileNotFoundError: there is none, or parts of it are missing.
    """
    folder = find_model_folder(path) if is_bundled(path) else Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no model at {str(path)!r}; expected a folder written by Emu.save_pretrained, the folder or hub repository (owner/name) of a "
            f"released model, or a bundled model: {bundled_models()}"
        )
    missing = [name for name in ("config.json", TOKENIZER_FILE, TEXT_FOLDER) if not (folder / name).exists()]
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        missing.append(WEIGHT_FILES[0])
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {missing}; it is no complete model, save it again with Emu.save_pretrained"
        )
    return folder


def write_folder(
    folder: Path, model: EmuForCausalLM, tokenizer: MultimodalTokenizer, defaults: GenerationDefaults
) -> None:
    """Write all parts beside `folder`, then give them its name; a model of that name is replaced as a whole, other files in it stay."""
    settings = {
        "format_version": FORMAT_VERSION,
        "generation": defaults.to_dict(),
        "fingerprints": tokenizer.fingerprints,
    }
    with new_folder(folder, OUR_FILES) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / SETTINGS_FILE, settings)


def read_tokenizer(folder: Path) -> MultimodalTokenizer:
    """The tokenizers of a folder.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a file is damaged, or a tokenizer is not the one that the folder was saved with.
    """
    try:
        return read_own_tokenizer(folder)
    except FileNotFoundError:
        raise
    except (*DAMAGED, KeyError) as error:
        raise ValueError(f"the tokenizers in {folder} cannot be read, their files are damaged: {error}") from error


def read_model(folder: Path, dtype: torch.dtype | None) -> EmuForCausalLM:
    """The transformer of a folder, with every weight read.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a file is damaged, or weights are missing or of another shape.
    """
    try:
        kept = "auto" if is_quantized(read_config(folder)) else torch.float32
        return EmuForCausalLM.from_pretrained(folder, dtype=dtype or kept, local_files_only=True).eval()
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise ValueError(f"the transformer in {folder} cannot be read, its files are damaged: {error}") from error


def read_defaults(folder: Path, tokenizer: MultimodalTokenizer) -> GenerationDefaults:
    """Generation defaults of a folder; the library's own where it was exported without any.

    Raises:
        ValueError: the file cannot be read, or the transformer was trained with other tokenizers than the folder holds.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        return GenerationDefaults()
    settings = _read_settings(file)
    for name, trained in settings["fingerprints"].items():
        found = tokenizer.fingerprints.get(name)
        if found != trained:
            raise ValueError(
                f"the model in {folder} was trained with the {name} {trained}, the folder holds {found}; put the right {name} back"
            )
    try:
        return GenerationDefaults.from_dict(settings["generation"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON ({error}); save the model again") from error
    expected = {"format_version", "generation", "fingerprints"}
    if not isinstance(settings, dict) or set(settings) != expected:
        raise ValueError(f"{file} should hold {sorted(expected)}; save the model again")
    if settings["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format version {settings['format_version']!r}, this library reads {FORMAT_VERSION}"
        )
    return settings


def check_vocabulary(model: EmuForCausalLM, tokenizer: MultimodalTokenizer) -> None:
    """Raise ValueError where transformer and tokenizers speak of different ids; the message names both."""
    ours = tokenizer.vocabulary
    table = model.config.vocabulary
    theirs = Vocabulary.from_dict(table) if table is not None else None
    if theirs is not None and theirs.fingerprint != ours.fingerprint:
        raise ValueError(
            f"the model was trained on the vocabulary {theirs.fingerprint}, the tokenizer has {ours.fingerprint}; use its own"
        )
    if model.config.vocab_size != ours.size:
        raise ValueError(
            f"the model has {model.config.vocab_size} ids, the tokenizer {ours.size}; use the tokenizer it was trained with"
        )
