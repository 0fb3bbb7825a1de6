"""One folder for a trained model: transformer, both tokenizers and generation defaults.

config.json  model.safetensors      the transformer, as transformers saves it
text_tokenizer/  vision_tokenizer/  the tokenizers
multimodal_tokenizer.json           what connects them: layout, modalities, vocabulary, fingerprints
emu.json                            generation defaults, what the transformer was trained with and for, the folder's files
                                    (see `emu.model_settings`)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from emu.checkpoints.bundled import bundled_models, find_model_folder, is_bundled
from emu.checkpoints.quantization import is_quantized
from emu.families.detection import read_config
from emu.hub.load import is_released, read_released
from emu.model import EmuForCausalLM
from emu.model_settings import SETTINGS_FILE, ModelSettings, check_files, read_settings, write_settings
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import GenerationDefaults
from emu.tokenizer_folder import CODEC_FOLDER, TOKENIZER_FILE, read_table
from emu.trained import UNKNOWN, Trained
from emu.vocabulary import Vocabulary
from emu_tokenizers.files import new_folder
from emu_tokenizers.folders import TEXT_FOLDER, VISION_FOLDER

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
OUR_FILES = ("*.json", "model*.safetensors", TEXT_FOLDER, VISION_FOLDER, "*.partial")
"""What a model's folder holds beside further codecs, and what goes when another model takes its name."""
DAMAGED = (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, OSError, RuntimeError)
"""What libraries raise for files that are cut or do not fit each other."""


class Parts(NamedTuple):
    """What an `Emu` is made of."""

    model: EmuForCausalLM
    tokenizer: MultimodalTokenizer
    defaults: GenerationDefaults
    trained: Trained


def read_parts(path: str | Path, dtype: torch.dtype | None, verify: bool, options: Mapping[str, Any]) -> Parts:
    """Read a folder in Emu's format, a bundled model, or a released model with its options.

    Raises:
        FileNotFoundError, TypeError, ValueError: see `Emu.from_pretrained`.
    """
    if is_bundled(path):
        path = find_model_folder(path)
    if options or is_released(path):
        ours = Path(path).is_dir() and not is_released(path)
        if Path(path).is_dir():
            check_written(Path(path), verify)
        released = read_released(path, dtype=dtype or (torch.float32 if ours else "auto"), **options)
        if not Path(path).is_dir():  # a repository, whose folder in the cache is known now
            check_written(released.folder, verify)
        parts = read_defaults(released.folder, released.tokenizer)
        known = parts.defaults.to_dict() | released.settings
        return Parts(released.model, released.tokenizer, GenerationDefaults.from_dict(known), parts.trained)
    folder = find_folder(path)
    check_written(folder, verify)
    tokenizer = read_tokenizer(folder)
    defaults, trained = read_defaults(folder, tokenizer)
    return Parts(read_model(folder, dtype), tokenizer, defaults, trained)


def find_folder(path: str | Path) -> Path:
    """Find the folder of a path or of the name of a bundled model.

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
            f"{folder} lacks {missing}; it is not a complete model, save it again with Emu.save_pretrained"
        )
    return folder


def write_folder(
    folder: Path,
    model: EmuForCausalLM,
    tokenizer: MultimodalTokenizer,
    defaults: GenerationDefaults,
    trained: Trained = UNKNOWN,
) -> None:
    """Write all parts beside `folder`, then give them its name; a model of that name is replaced as a whole, other files in it stay."""
    with new_folder(folder, [*OUR_FILES, *_codec_folders(folder, tokenizer)]) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_settings(partial, defaults.to_dict(), tokenizer.fingerprints, trained)


def _codec_folders(folder: Path, tokenizer: MultimodalTokenizer) -> list[str]:
    """Names of the codecs' folders, of the tokenizer and of the one that it replaces."""
    names = set(tokenizer.codecs)
    with suppress(FileNotFoundError, ValueError):  # a folder without a readable model has none
        names |= set(read_table(folder).fingerprints)
    # A name that leads out of the folder is a stranger's, and what lies there is not replaced.
    return [CODEC_FOLDER.format(name) for name in sorted(names) if re.fullmatch(r"[\w.-]+", name)]


def check_written(folder: Path, verify: bool) -> None:
    """Check a folder's files against its `emu.json`; does nothing if they were not recorded.

    Args:
        folder: of a model; one that is missing, or in another format, is left to the reader.
        verify: check their content too.

    Raises:
        FileNotFoundError, ValueError: see `emu.model_settings.check_files`; to be verified, and there is nothing to compare with.
    """
    settings = read_settings(folder)
    if settings is not None:
        check_files(folder, settings, verify=verify)
    elif verify:
        raise ValueError(
            f"{folder} cannot be verified: it has no {SETTINGS_FILE} that lists its files (Emu.save_pretrained writes one)"
        )


def read_tokenizer(folder: Path) -> MultimodalTokenizer:
    """Read the tokenizers of a folder.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a file is damaged, or a tokenizer is not the one that the folder was saved with.
    """
    try:
        return MultimodalTokenizer.from_pretrained(folder)
    except FileNotFoundError:
        raise
    except (*DAMAGED, KeyError) as error:
        raise ValueError(f"the tokenizers in {folder} cannot be read, their files are damaged: {error}") from error


def read_model(folder: Path, dtype: torch.dtype | None) -> EmuForCausalLM:
    """Read the transformer of a folder, with all its weights.

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


class Defaults(NamedTuple):
    """What a folder says about generation with its model."""

    defaults: GenerationDefaults
    trained: Trained


def read_defaults(folder: Path, tokenizer: MultimodalTokenizer) -> Defaults:
    """Read a folder's generation defaults and what its model was trained for; if it does not say, the library's defaults and nothing.

    Raises:
        ValueError: the file cannot be read, or the transformer was trained with other tokenizers than the folder holds.
    """
    settings = read_settings(folder) or ModelSettings({}, {})
    for name, trained in settings.fingerprints.items():
        found = tokenizer.fingerprints.get(name)
        if found != trained:
            raise ValueError(
                f"the model in {folder} was trained with the {name} {trained}, the folder holds {found}; put the right {name} back"
            )
    try:
        return Defaults(GenerationDefaults.from_dict(settings.generation, settings.trained), settings.trained)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS_FILE}: {error}") from error


def check_vocabulary(model: EmuForCausalLM, tokenizer: MultimodalTokenizer) -> None:
    """Raise ValueError if transformer and tokenizers have different vocabularies; the message names both."""
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
