"""One vocabulary for model and data."""

from __future__ import annotations

import copy

from emu.model import EmuConfig
from emu.vocabulary import Vocabulary


def check_vocabulary(config: EmuConfig, vocabulary: Vocabulary | None) -> None:
    """Refuse data of another vocabulary than the model's.

    Raises:
        ValueError: both are known and differ, or there are more ids than rows of the embedding.
    """
    if vocabulary is None:
        return
    ours = fingerprint(config)
    if ours not in (None, vocabulary.fingerprint):
        raise ValueError(
            f"the model is of the vocabulary {ours}, the data of {vocabulary.fingerprint}; they must be one"
        )
    if ours is None and vocabulary.size > config.vocab_size:
        raise ValueError(f"the data has {vocabulary.size} ids, the model {config.vocab_size}")


def fingerprint(config: EmuConfig | None) -> str | None:
    """That of the configuration's vocabulary, None where it has no table."""
    if config is None or config.vocabulary is None:
        return None
    return Vocabulary.from_dict(config.vocabulary).fingerprint


def with_vocabulary(config: EmuConfig, vocabulary: Vocabulary) -> EmuConfig:
    """The configuration of a new model for a vocabulary: its size, its special ids and its table.

    Raises:
        ValueError: the configuration holds the table of another vocabulary.
    """
    if fingerprint(config) is not None:
        check_vocabulary(config, vocabulary)
    config = copy.deepcopy(config)
    config.vocabulary = vocabulary.to_dict()
    config.vocab_size = vocabulary.size
    config.pad_token_id = vocabulary.control("pad")
    config.bos_token_id = vocabulary.control("bos")
    config.eos_token_id = vocabulary.control("eos")
    return config
