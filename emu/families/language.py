"""The language model of any folder as an `EmuForCausalLM`, which is above this room: its shapes and its loader are handed in.

transformers does the loading (dtype, device map, shards, quantization, little memory); what is prepared here is our configuration and the
table of names, after the headers of the files were held against what the model needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.quantization import is_quantized, quantization_config, target_of
from emu.checkpoints.repositories import PLACES
from emu.checkpoints.weights import Checkpoint
from emu.families.base import Family, IncompleteTable
from emu.families.detection import find_family, read_config
from emu.model_config import EmuConfig
from emu.vocabulary import Vocabulary
from emu_tokenizers.bars import without_bars
from emu_tokenizers.files import read_json
from emu_tokenizers.weight_checks import check_finite

Shapes = Callable[[EmuConfig], Mapping[str, tuple[int, ...]]]
"""Name -> shape of every tensor of the transformer of a configuration."""

ADAPTER = "adapter_config.json"
"""File of a folder that PEFT wrote."""


def loading_options(
    path: str | Path, options: Mapping[str, Any], shapes: Shapes
) -> tuple[str, dict[str, Any], Path | None]:
    """What `PreTrainedModel.from_pretrained` needs to read the language model of a folder, whichever library wrote it.

    Args:
        path: folder or hub repository.
        options: the caller's, for `from_pretrained`; `allow_pickle` names pickled files that may be read.
        shapes: of the transformer.

    Returns:
        The folder, the options with our configuration and the table of names, and the folder of the adapter to put on the model, if
        `path` is one.

    Raises:
        FileNotFoundError: the folder, a shard or the weights are missing.
        ValueError: an unknown architecture, a broken file, pickled weights that were not allowed, or tensors that do not fit the
            configuration.
    """
    options = dict(options)
    allow_pickle: str | Iterable[str] = options.pop("allow_pickle", ())
    allow_pickle = [allow_pickle] if isinstance(allow_pickle, str) else list(allow_pickle)
    places = {name: options.pop(name) for name in PLACES if name in options}
    folder = find_model_folder(path, files=allow_pickle, **places)
    folder = folder / options.pop("subfolder", "")
    adapter = None
    if is_adapter(folder):
        adapter, folder = folder, base_of(folder)
    family = find_family(folder)
    checkpoint = Checkpoint.open(folder, allow_pickle)
    config = options.get("config")
    if not isinstance(config, EmuConfig):
        config = options["config"] = read_emu_config(config or folder)
    if "quantization_config" in options:
        target = target_of(options.get("device_map"))
        options["quantization_config"] = quantization_config(options["quantization_config"], target, _widths(config))
    if not is_quantized(read_config(folder)):
        check_tensors(
            checkpoint, family, config, shapes(config), any_shape=bool(options.get("ignore_mismatched_sizes"))
        )
    options["use_safetensors"] = not checkpoint.pickled
    mapping = key_mapping(checkpoint, family)
    if mapping:
        options["key_mapping"] = mapping
    return str(folder), options, adapter


def key_mapping(checkpoint: Checkpoint, family: Family) -> dict[str, str]:
    """Pattern -> our name of every tensor that the family calls otherwise, for transformers' loader.

    Each name has a pattern of its own: the loader's patterns know a single group, and leave what they do not match at random values.
    """
    ours = {name: family.to_ours(name) for name in checkpoint.entries if family.of_language_model(name)}
    return {f"^{re.escape(theirs)}$": name for theirs, name in ours.items() if name != theirs}


def _widths(config: EmuConfig) -> tuple[int, ...]:
    """Widths of what the linear layers of the blocks take."""
    assert config.head_dim is not None
    return config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter (LoRA) without its base."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter was trained on.

    Raises:
        FileNotFoundError: it is not there.
    """
    base = read_json(adapter / ADAPTER).get("base_model_name_or_path")
    if not base or not find_model_folder(base).is_dir():
        raise FileNotFoundError(
            f"{adapter / ADAPTER} was trained on the model {base!r}, which is not there; load that model and call its "
            f"load_adapter({str(adapter)!r})"
        )
    return find_model_folder(base)


def read_emu_config(folder: str | Path) -> EmuConfig:
    """Our configuration of the language model in a folder of any format.

    Raises:
        FileNotFoundError, ValueError: see `loading_options`.
    """
    folder = Path(folder)
    family, table = find_family(folder), read_config(folder)
    try:
        vocabulary = read_vocabulary(folder, family, table)
    except IncompleteTable:
        vocabulary = None
    config = family.config_from(table, vocabulary)
    if config.dtype is None:
        config.dtype = table.get("dtype", table.get("torch_dtype"))
    return config


def read_vocabulary(folder: Path, family: Family, config: Mapping[str, Any]) -> Vocabulary | None:
    """The table of ids of a folder, or None where it does not say.

    Raises:
        IncompleteTable: some controls have an id and others do not.
        ValueError: the tokenizer files and the configuration contradict each other.
    """
    try:
        return family.vocabulary(folder, config)
    except IncompleteTable:
        raise
    except ValueError as error:
        raise ValueError(
            f"{folder}: config.json and the tokenizer files do not fit each other: {error}. Restore those of one model"
        ) from error


def check_folder(folder: Path, allow_pickle: Iterable[str], shapes: Shapes) -> None:
    """Hold the headers of a folder's weights against its config.json, before anything large is read.

    Raises:
        FileNotFoundError, ValueError: see `loading_options`.
    """
    folder = base_of(folder) if is_adapter(folder) else folder
    family, checkpoint = find_family(folder), Checkpoint.open(folder, allow_pickle)
    if not is_quantized(read_config(folder)):
        config = read_emu_config(folder)
        check_tensors(checkpoint, family, config, shapes(config))


def check_tensors(
    checkpoint: Checkpoint,
    family: Family,
    config: EmuConfig,
    shapes: Mapping[str, tuple[int, ...]],
    any_shape: bool = False,
) -> None:
    """Hold the headers of a checkpoint against the shapes of the tensors of a configuration.

    Raises:
        ValueError: tensors are missing or have other shapes; the message names the file and the field that does not fit.
    """
    expected = dict(shapes)
    found = {family.to_ours(name): entry for name, entry in checkpoint.entries.items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{checkpoint.folder} lacks {len(missing)} of {len(expected)} tensors of the model, e.g. {missing[0]!r}; it holds "
            f"{len(found)}. A shard is missing, or config.json describes another model"
        )
    for name, shape in expected.items():
        entry = found[name]
        if not any_shape and entry.shape != shape:
            vocabulary = name in ("model.embed_tokens.weight", "lm_head.weight") and entry.shape[0] != shape[0]
            field = f"vocab_size {config.vocab_size}" if vocabulary else "its sizes"
            raise ValueError(
                f"{entry.file}: {name!r} has shape {list(entry.shape)}, expected {list(shape)} from {field} in config.json. The "
                "weights belong to another configuration; restore the config.json they were saved with"
            )


def read(
    reader: Callable[..., Any], path: str | Path, args: Iterable[Any], options: Mapping[str, Any], shapes: Shapes
) -> Any:
    """What `reader`, transformers' `from_pretrained`, makes of a folder or repository of any format.

    The model has no memory of foreign names (`save_pretrained` writes ours). One from a hub's repository is called by the repository's
    name, and not by its place in the cache, so that an adapter trained on it finds it on other machines.

    Raises:
        FileNotFoundError, ValueError: see `loading_options`; or torchao cannot quantize the weights here.
    """
    folder, options, adapter = loading_options(path, options, shapes)
    try:
        with without_bars():
            loaded = reader(folder, *args, **options)
    except RuntimeError as error:
        if "quantization_config" not in options:
            raise
        device = target_of(options.get("device_map"))
        raise ValueError(
            f"torchao could not quantize the weights of {folder} on {device} (its own words are above); choose another quantization, or "
            "device_map='cuda' for one that needs a GPU"
        ) from error
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    check_finite(model, folder)
    if adapter is None and not Path(path).is_dir():
        model.name_or_path = str(path)
    model._weight_conversions = []
    if adapter is not None:
        with without_bars():
            model.load_adapter(str(adapter))
    return loaded
