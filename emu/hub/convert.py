"""Models from one format to another, tensor by tensor: one file of weights is in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.weights import WEIGHTS, Checkpoint, num_bytes
from emu.checkpoints.writer import ShardWriter, parse_size
from emu.families import vision_folder as vision
from emu.families.detection import detect, read_config
from emu.families.emu3.byte_pairs import RANKS_FILE, ranks_of, write_ranks
from emu.families.emu3.config import original_config, original_vocabulary, transformers_config
from emu.families.emu3.vocabulary import vision_words
from emu.families.emu35.vision import ibq_settings, write_ibq
from emu.families.language import check_tensors, read_emu_config
from emu.families.transformers_emu3 import names
from emu.families.transformers_emu3.processor_files import text_words, tokenizer_table, write_processor
from emu.hub.load import read_tokenizer
from emu.model import EmuConfig
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.templates import Templates
from emu.tokenizer_folder import TOKENIZER_FILE
from emu_tokenizers.files import write_file
from emu_tokenizers.pixels.resize import Resize

TARGETS = ("emu", "transformers", "emu3")
VISION_FOLDER = "vision_tokenizer"


@dataclass(frozen=True)
class Source:
    """A model to convert: its weights unread, its tokenizers read.

    Attributes:
        form: its format.
        config: of the transformer, as ours.
        checkpoint: its weights.
        tokenizer: its tokenizers; None for a language model alone.
    """

    form: str
    config: EmuConfig
    checkpoint: Checkpoint
    tokenizer: MultimodalTokenizer | None

    @property
    def language_names(self) -> list[str]:
        """Names of the tensors of the transformer, in the source's own words."""
        return [name for name in self.checkpoint.entries if names.of_language_model(name)]


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
) -> Source:
    """Open a model of any format; arguments and errors as in `emu.hub.load.read_released`."""
    allow_pickle = [allow_pickle] if isinstance(allow_pickle, str) else list(allow_pickle)
    folder = find_model_folder(path, files=allow_pickle, revision=revision)
    form = detect(folder)
    checkpoint, config = Checkpoint.open(folder, allow_pickle), read_emu_config(folder)
    check_tensors(checkpoint, form, config)
    if language_model_only or _is_alone(folder, form):
        return Source(form, config, checkpoint, None)
    tokenizer = read_tokenizer(
        path,
        vision_tokenizer=vision_tokenizer,
        text_tokenizer=text_tokenizer,
        templates=templates,
        split=split,
        allow_pickle=allow_pickle,
        revision=revision,
    )
    return Source(form, config, checkpoint, tokenizer)


def _is_alone(folder: Path, form: str) -> bool:
    if form == "emu":
        return not (folder / TOKENIZER_FILE).is_file()
    return form == "transformers" and read_config(folder)["model_type"] == "emu3_text_model"


def convert(
    source: Source,
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
        to: one of `TARGETS`.
        dtype: of the transformer's weights; None keeps theirs.
        max_shard_size: e.g. "5GB".
        progress: whether to show a progress bar.

    Raises:
        ValueError: an unknown target, or the target cannot express the model; nothing was written then.
    """
    if to not in TARGETS:
        raise ValueError(f"no target {to!r}; expected one of {TARGETS}")
    size = parse_size(max_shard_size)
    {"emu": _to_emu, "transformers": _to_transformers, "emu3": _to_original}[to](source, folder)
    writer = ShardWriter(folder, size, dtype)
    whole = source.tokenizer is not None
    total = sum(num_bytes(source.checkpoint.entries[name]) for name in source.language_names)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not progress, dynamic_ncols=True) as bar:
        for name, tensor in source.checkpoint.tensors(source.language_names):
            bar.update(tensor.numel() * tensor.element_size())
            ours = names.to_emu(name, source.form)
            if ours == "lm_head.weight" and source.config.tie_word_embeddings:
                continue
            writer.add(names.from_emu(ours, to, whole), tensor)
        if to == "transformers" and source.tokenizer is not None and source.tokenizer.vision is not None:
            for name, tensor in vision.released_tensors(source.tokenizer.vision, to).items():
                writer.add(f"vqmodel.{name}", tensor, keep_dtype=True)
    writer.close()
    _set_dtype(folder / "config.json", dtype)


def _set_dtype(file: Path, dtype: torch.dtype | None) -> None:
    if dtype is not None:
        table = json.loads(file.read_text())
        _write_json(file, {**table, "dtype": str(dtype).removeprefix("torch.")})


def _to_emu(source: Source, folder: Path) -> None:
    source.config.architectures = ["EmuForCausalLM"]
    if source.tokenizer is not None:
        source.config.vocabulary = source.tokenizer.vocabulary.to_dict()
        source.tokenizer.save_pretrained(folder)
    source.config.save_pretrained(folder)


def _to_transformers(source: Source, folder: Path) -> None:
    from transformers import Emu3Config, Emu3TextConfig

    text = transformers_config(source.config)
    if source.tokenizer is None:
        config = Emu3TextConfig(**text)
        config.architectures = ["Emu3ForCausalLM"]
        config.save_pretrained(folder)
        return
    tokenizer, tied = _emu3_parts(source, "transformers"), text.pop("tie_word_embeddings")
    assert tokenizer.vision is not None
    whole = Emu3Config(
        text_config=text,
        vq_config=vision.released_config(tokenizer.vision, "transformers"),
        vocabulary_map=text_words(tokenizer.vocabulary, tokenizer.text),
        tie_word_embeddings=tied,
    )
    whole.architectures = ["Emu3ForConditionalGeneration"]
    resize = _resize(tokenizer)
    write_processor(folder, tokenizer.text, tokenizer.vocabulary, (resize.least, resize.most))
    whole.save_pretrained(folder)


def _to_original(source: Source, folder: Path) -> None:
    if source.tokenizer is None:
        _write_json(folder / "config.json", original_config(source.config, None))
        return
    newer = source.config.qk_norm
    tokenizer = _emu3_parts(source, "emu3")
    table = original_config(source.config, tokenizer.vocabulary)
    wanted = original_vocabulary(table, "emu3.5" if newer else "emu3")
    given = tokenizer.vocabulary
    if (wanted.text, wanted.ranges) != (given.text, given.ranges):
        raise ValueError(
            f"the vocabulary has text {given.text} and codes {dict(given.ranges)}; the original format counts text, controls and codes in "
            f"this order: {wanted.text}, {dict(wanted.ranges)}. Keep the model in the format 'emu'"
        )
    assert tokenizer.vision is not None
    ranks = ranks_of(tokenizer_table(tokenizer.text))
    assert ranks is not None
    resize = _resize(tokenizer)
    if newer:
        table["image_area"] = resize.area or table.get("image_area", 1024 * 1024)
    _write_json(folder / "config.json", table)
    write_ranks(ranks, folder / RANKS_FILE)
    words = vision_words(tokenizer.vocabulary.range("vision")[1])
    write_file(folder / "emu3_vision_tokens.txt", ("\n".join(words) + "\n").encode())
    inner = folder / VISION_FOLDER
    inner.mkdir()
    if newer:
        write_ibq(inner, tokenizer.vision)
        return
    _write_json(inner / "config.json", vision.released_config(tokenizer.vision, "emu3"))
    _write_json(inner / "preprocessor_config.json", {"min_pixels": resize.least, "max_pixels": resize.most})
    save_file(vision.released_tensors(tokenizer.vision, "emu3"), inner / WEIGHTS, metadata={"format": "pt"})


def _emu3_parts(source: Source, to: str) -> MultimodalTokenizer:
    """The tokenizers, if a target can hold them.

    Raises:
        ValueError: it cannot.
    """
    tokenizer = source.tokenizer
    assert tokenizer is not None
    wanted = "emu3.5" if to == "emu3" and source.config.qk_norm else "emu3"
    if tokenizer.layout.name != wanted:
        raise ValueError(
            f"the model's layout is {tokenizer.layout.name!r}, the format {to!r} holds {wanted!r}; keep it in the format 'emu'"
        )
    if tokenizer.vision is None:
        raise ValueError(
            f"the model has no vision tokenizer, the format {to!r} needs one; pass language_model_only=True"
        )
    if wanted == "emu3.5":
        ibq_settings(tokenizer.vision.config)
    else:
        vision.released_config(tokenizer.vision, to)
    tokenizer_table(tokenizer.text)
    return tokenizer


def _resize(tokenizer: MultimodalTokenizer) -> Resize:
    return tokenizer.resize or Resize()


def _write_json(file: Path, table: dict[str, Any]) -> None:
    write_file(file, (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode())
