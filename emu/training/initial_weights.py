"""`model.init_from`: a new model whose weights are those of another, and whose vocabulary, length or rotary base may be its own.

    model:
      init_from: runs/stage1/model        # a model's folder, of any family, or a text model of transformers (Llama, Qwen3); or a checkpoint
      config: {...}                       # of the new model; that of the other where nothing is said

Blocks and last norm must be of one shape. Rows of embedding and head are found by what their ids stand for (`emu.hub.id_names`), and new
ids start at the mean of the old rows, which bounds how far what the model says moves ("Initializing new word embeddings for pretrained
language models", John Hewitt, 2021). The step count, the optimizer and the position in the data are new: to go on with a run exactly,
there is `--ckpt_path`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu.hub.id_names import folder_says_names, matched_rows, names_of_folder, names_of_tokenizer
from emu.model import EmuConfig, EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.stopping import say
from emu.training.read_weights import CPU, Split, build_filled, keep_whole
from emu.training.vocabularies import check_vocabulary, with_vocabulary
from emu.training.weight_sources import WeightSource, open_weights
from emu.vocabulary import Vocabulary

SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "qk_norm", "rms_norm_eps"),
)
"""Fields in which both models must agree."""


def source_of_weights_problems(
    config: EmuConfig | None, pretrained: str | None, init_from: str | None, *, there: bool
) -> list[str]:
    """What is wrong with where the weights of a module come from; one sentence each.

    Args:
        config, pretrained, init_from: of the module.
        there: whether `init_from` is written already; an earlier stage of a job may have to write it first.
    """
    if init_from is not None and pretrained is not None:
        return ["model.pretrained and model.init_from are given; leave one out: the former takes a model as it is"]
    if init_from is None and (config is None) == (pretrained is None):
        return [
            "give either model.config, for a new model, or model.pretrained, to go on with a trained one (or its weights: model.init_from)"
        ]
    if init_from is None or not there:
        return []
    try:
        source = _config_of(open_weights(init_from))
    except (FileNotFoundError, ValueError) as error:
        return [f"model.init_from: {error}"]
    return [] if config is None else shape_problems(source, config)


def shape_problems(source: EmuConfig, config: EmuConfig) -> list[str]:
    """What keeps a model of `config` from starting with weights of `source`; one sentence each."""
    differing = {name: getattr(source, name) for name in SHAPE if getattr(source, name) != getattr(config, name)}
    found = []
    if differing:
        ours = {name: getattr(config, name) for name in differing}
        found.append(
            f"model.init_from is a model of {_shown(differing)}, model.config has {_shown(ours)}; write the former into model.config, or "
            "leave model.config out"
        )
    if config.tie_word_embeddings and not source.tie_word_embeddings:
        found.append("model.init_from has a head of its own, model.config.tie_word_embeddings is true; set it to false")
    theirs, rope = dict(source.rope_parameters or {}), dict(config.rope_parameters or {})
    if rope.get("rope_type") == "default" != theirs.get("rope_type"):
        found.append(
            f"model.init_from has rotary positions of rope_type {theirs.get('rope_type')!r}, model.config plain ones; write "
            f"model.config.rope_parameters: {theirs}, or leave model.config out"
        )
    return found


def initial_config(source: EmuConfig, config: EmuConfig | None, vocabulary: Vocabulary | None) -> EmuConfig:
    """The configuration of the new model.

    Args:
        source: of the weights.
        config: what the recipe says; None for that of the weights.
        vocabulary: of the data; None where it is not known, which keeps the ids.

    Raises:
        ValueError: the two are not of one shape.
    """
    if config is not None and (problems := shape_problems(source, config)):
        raise ValueError("; ".join(problems))
    found = copy.deepcopy(source if config is None else config)
    if vocabulary is not None:
        found.vocabulary = None
        return with_vocabulary(found, vocabulary)
    for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "vocabulary"):
        setattr(found, name, getattr(source, name))
    return found


def start_from(
    path: str | Path,
    config: EmuConfig | None,
    vocabulary: Vocabulary | None,
    tokenizer: MultimodalTokenizer | None = None,
    split: Split = keep_whole,
    device: torch.device = CPU,
) -> EmuForCausalLM:
    """The new model, float32.

    Args:
        path: of the weights, see `open_weights`.
        config, vocabulary: see `initial_config`.
        tokenizer: that made the data; needed where the vocabulary is another one than that of the weights.
        split, device: see `emu.training.read_weights.build_filled`.

    Raises:
        FileNotFoundError, ValueError: see `open_weights` and `initial_config`; or nobody knows which ids are the same.
    """
    source = open_weights(path)
    old = _config_of(source)
    new = initial_config(old, config, vocabulary)
    rows = _rows(source, old, vocabulary, tokenizer)
    model = build_filled(new, source, rows, split, device)
    _tell(source.place, old, new, rows)
    return model


def go_on_with(
    path: str | Path, vocabulary: Vocabulary | None, split: Split = keep_whole, device: torch.device = CPU
) -> EmuForCausalLM:
    """A trained model as it is, float32.

    Args:
        path: of its folder, see `open_weights`.
        vocabulary: of the data; None where it is not known.
        split, device: see `emu.training.read_weights.build_filled`.

    Raises:
        FileNotFoundError, ValueError: see `open_weights`; or the data is of another vocabulary.
    """
    source = open_weights(path)
    config = _config_of(source)
    check_vocabulary(config, vocabulary)
    return build_filled(config, source, None, split, device)


def _config_of(source: WeightSource) -> EmuConfig:
    """The configuration of the weights' model.

    Raises:
        ValueError: a checkpoint does not say it.
    """
    if source.config is None:
        raise ValueError(
            f"{source.place} does not say the shape of its model; start from the model's folder that the run has written"
        )
    return source.config


def _rows(
    source: WeightSource, config: EmuConfig, vocabulary: Vocabulary | None, tokenizer: MultimodalTokenizer | None
) -> Tensor | None:
    """Where the row of each id stands in the weights, -1 for new ones; None where all stay as they are."""
    if vocabulary is None:
        return None
    says_names = source.place.is_dir() and folder_says_names(source.place)
    if tokenizer is None or not says_names:
        if source.vocabulary == vocabulary.fingerprint:
            return None
        remedy = (
            "name the tokenizers of the data in data.tokenizer"
            if says_names
            else f"{source.place} does not say what its ids stand for; start from a model's folder with its tokenizers, as RUN/model"
        )
        raise ValueError(
            f"{source.place} is of another vocabulary than the data, and rows are found by words: {remedy}"
        )
    rows = matched_rows(names_of_folder(source.place, config), names_of_tokenizer(tokenizer), vocabulary.size)
    if not (rows >= 0).any():
        raise ValueError(
            f"none of the ids of {source.place} stand for anything in the data: the text tokenizers share no piece; tokenise the data with "
            "the text tokenizer of the model (emu join)"
        )
    return None if torch.equal(rows, torch.arange(config.vocab_size)) else rows


def _tell(place: Path, old: EmuConfig, new: EmuConfig, rows: Tensor | None) -> None:
    """Say what changes."""
    told = []
    for name in ("max_position_embeddings", "rope_theta"):
        before, now = getattr(old, name), getattr(new, name)
        told += [f"{name} {before} -> {now}"] if before != now else []
    if rows is not None:
        found = int((rows >= 0).sum())
        told.append(f"{found} of {old.vocab_size} ids found again, {len(rows) - found} new ones at the mean of the old")
    say(f"weights of {place}" + (f": {'; '.join(told)}" if told else ", as they are"))


def _shown(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())
