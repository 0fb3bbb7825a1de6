"""The transformer's weights in a model's folder of any family, or in a checkpoint of a run, read tensor by tensor under our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.quantization import is_quantized
from emu.checkpoints.weights import Checkpoint, read_header, rows_of_file
from emu.families.detection import find_family, read_config
from emu.families.language import check_tensors, is_adapter, read_emu_config
from emu.model import EmuConfig
from emu.model.model import tensor_shapes
from emu.training.checkpoint_file import SUFFIX, read_content
from emu.training.vocabularies import fingerprint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PREFIX = "model."
"""Of the transformer's tensors in a training checkpoint."""


@dataclass(frozen=True)
class WeightSource:
    """Weights, unread.

    Attributes:
        place: their folder, or the file of a checkpoint.
        config: of their model; None where a checkpoint does not say, as that of a run which began with a trained model.
        vocabulary: fingerprint of its table of ids; None where it is not known.
        shapes: of the tensors, by our names.
        read: gives one tensor by our name.
        read_rows: gives the rows of one, from the first of these numbers up to the second; those of a file are all that is read of it.
    """

    place: Path
    config: EmuConfig | None
    vocabulary: str | None
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    read_rows: Callable[[str, int, int], Tensor]


def open_weights(path: str | Path) -> WeightSource:
    """Open a folder, a bundled model, a hub's repository or a checkpoint of a run.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it is damaged, or holds no whole model in plain numbers.
    """
    if Path(path).suffix == SUFFIX:
        return _of_run(Path(path))
    folder = find_model_folder(path)
    if folder.is_dir() and is_adapter(folder):
        raise ValueError(f"{path} holds an adapter; merge it into a model first (model.merge true when it is trained)")
    family, table = find_family(folder), read_config(folder)
    if is_quantized(table):
        raise ValueError(f"{path} holds quantized weights; name the model that they were made of")
    config, checkpoint = read_emu_config(folder), Checkpoint.open(folder)
    check_tensors(checkpoint, family, config, tensor_shapes(config))
    theirs = {family.to_ours(name): name for name in checkpoint.entries if family.of_language_model(name)}
    if config.tie_word_embeddings:
        theirs.pop(HEAD, None)
    shapes = {name: checkpoint.entries[other].shape for name, other in theirs.items()}
    return WeightSource(
        folder,
        config,
        fingerprint(config),
        shapes,
        lambda name: checkpoint.tensor(theirs[name]),
        lambda name, first, end: checkpoint.rows(theirs[name], first, end),
    )


def _of_run(path: Path) -> WeightSource:
    """The transformer in a checkpoint of a run; errors as in `open_weights`."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}; give an existing file, or the folder of a model")
    content, header = read_content(path), read_header(path)
    numbers = {
        name.removeprefix(PREFIX): tensor["$tensor"]
        for name, tensor in content.get("state_dict", {}).items()
        if name.startswith(PREFIX)
    }
    if EMBEDDING not in numbers:
        raise ValueError(f"{path} holds an adapter or a tokenizer, and no whole transformer; name a model's folder")
    shapes = {name: header[number].shape for name, number in numbers.items()}
    table = content.get("configuration", {}).get("model", {}).get("config")
    config = None
    if table is not None:
        config = EmuConfig(**{**table, "vocab_size": shapes[EMBEDDING][0], "vocabulary": None})
        if config.tie_word_embeddings:
            shapes.pop(HEAD, None)

    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(numbers[name])
        return tensor

    def read_rows(name: str, first: int, end: int) -> Tensor:
        return rows_of_file(path, numbers[name], first, end)

    return WeightSource(path, config, content.get("emu", {}).get("vocabulary"), shapes, read, read_rows)
