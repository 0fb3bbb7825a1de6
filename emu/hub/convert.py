"""Models from one family to another, tensor by tensor: one file of weights is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.weights import Checkpoint, num_bytes
from emu.checkpoints.writer import ShardWriter, parse_size
from emu.families import FAMILIES, Family
from emu.families.detection import find_family, read_config
from emu.families.language import check_tensors, read_emu_config
from emu.hub.load import read_tokenizer
from emu.model import EmuConfig
from emu.model.model import tensor_shapes
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import Templates
from emu_tokenizers.files import read_json, write_json


@dataclass(frozen=True)
class ConversionSource:
    """A model to convert: its weights unread, its tokenizers read.

    Attributes:
        family: that it is of.
        config: of the transformer, as ours.
        checkpoint: its weights.
        tokenizer: its tokenizers; None for a language model alone.
    """

    family: Family
    config: EmuConfig
    checkpoint: Checkpoint
    tokenizer: MultimodalTokenizer | None

    @property
    def language_names(self) -> list[str]:
        """Names of the tensors of the transformer, as the source calls them."""
        return [name for name in self.checkpoint.entries if self.family.of_language_model(name)]


def open_source(
    path: str | Path,
    *,
    vision_tokenizer: str | Path | None = None,
    text_tokenizer: str | Path | None = None,
    templates: str | Templates | None = None,
    split: str = "original",
    allow_pickle: str | Iterable[str] = (),
    language_model_only: bool = False,
    revision: str | None = None,
) -> ConversionSource:
    """Open a model of any family; arguments and errors as in `emu.hub.load.read_released`."""
    allow_pickle = [allow_pickle] if isinstance(allow_pickle, str) else list(allow_pickle)
    folder = find_model_folder(path, files=allow_pickle, revision=revision)
    family = find_family(folder)
    checkpoint, config = Checkpoint.open(folder, allow_pickle), read_emu_config(folder)
    check_tensors(checkpoint, family, config, tensor_shapes(config))
    if language_model_only or family.is_alone(folder, read_config(folder)):
        return ConversionSource(family, config, checkpoint, None)
    tokenizer = read_tokenizer(
        path,
        vision_tokenizer=vision_tokenizer,
        text_tokenizer=text_tokenizer,
        templates=templates,
        split=split,
        allow_pickle=allow_pickle,
        revision=revision,
    )
    return ConversionSource(family, config, checkpoint, tokenizer)


def targets() -> list[str]:
    """Names of the families that models can be converted to."""
    return [name for name, family in FAMILIES.items() if family.writes]


def find_target(name: str, config: EmuConfig) -> Family:
    """The family to write: that of the name, or one that is also called so where only it can hold the model.

    Raises:
        ValueError: there is no such family, or none that can be written.
    """
    if name not in targets():
        raise ValueError(f"no target {name!r}; expected one of {targets()}")
    candidates = [FAMILIES[name], *(family for family in FAMILIES.values() if name in family.also_called)]
    return next((family for family in candidates if family.holds(config)), candidates[0])


def convert(
    source: ConversionSource,
    folder: Path,
    to: str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "5GB",
    progress: bool = False,
) -> None:
    """Write a model into an empty folder.

    Args:
        source: see `open_source`.
        folder: must exist.
        to: one of `targets()`.
        dtype: of the transformer's weights; None keeps theirs.
        max_shard_size: e.g. "5GB".
        progress: whether to show a progress bar.

    Raises:
        ValueError: an unknown target, or the target cannot express the model; nothing was written then.
    """
    target, size, tokenizer = find_target(to, source.config), parse_size(max_shard_size), source.tokenizer
    target.write(folder, source.config, tokenizer)
    writer = ShardWriter(folder, size, dtype)
    total = sum(num_bytes(source.checkpoint.entries[name]) for name in source.language_names)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress, dynamic_ncols=True) as bar:
        for name, tensor in source.checkpoint.tensors(source.language_names):
            bar.update(tensor.numel() * tensor.element_size())
            ours = source.family.to_ours(name)
            if ours == "lm_head.weight" and source.config.tie_word_embeddings:
                continue
            writer.add(target.from_ours(ours, alone=tokenizer is None), tensor)
        if tokenizer is not None:
            for name, tensor in target.inner_tensors(tokenizer).items():
                writer.add(name, tensor, keep_dtype=True)
    writer.close()
    if dtype is not None:
        file = folder / "config.json"
        write_json(file, read_json(file) | {"dtype": str(dtype).removeprefix("torch.")})
