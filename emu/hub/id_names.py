"""What each id of a model is, by a name that stays when ids are counted anew: a piece of text, a control, a code of a tokenizer.

Two models whose vocabularies have grown, or count in another order, share the rows of their embeddings by these names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from emu.families.detection import find_family, read_config
from emu.families.language import read_vocabulary
from emu.hub.load import read_tokenizer
from emu.model import EmuConfig
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu_tokenizers import TextTokenizer

IdName: TypeAlias = tuple[str, str, "str | int"]
"""("text", "", piece), ("control", "", name) or (codebook, fingerprint of its tokenizer, code)."""


def names_of_tokenizer(tokenizer: MultimodalTokenizer) -> dict[IdName, int]:
    """Name -> id of everything that a tokenizer's table gives an owner."""
    vocabulary, first = tokenizer.vocabulary, tokenizer.vocabulary.text[0]
    names = _text_names(tokenizer.text, first) | {
        ("control", "", name): index for name, index in vocabulary.controls.items()
    }
    for codebook, (start, count) in vocabulary.ranges.items():
        fingerprint = _codec_fingerprint(tokenizer, codebook)
        names |= {(codebook, fingerprint, code): start + code for code in range(count)}
    return names


def folder_says_names(folder: Path) -> bool:
    """Whether a model's folder says what its ids stand for: its tokenizers are there, or it is a text model of another library."""
    family, table = find_family(folder), read_config(folder)
    return not family.is_alone(folder, table) or read_vocabulary(folder, family, table) is None


def names_of_folder(folder: Path, config: EmuConfig) -> dict[IdName, int]:
    """Name -> id of a model's folder in any format; of a text model its pieces of text and the ids of its configuration.

    Args:
        folder: of the model, see `folder_says_names`.
        config: its configuration, as ours.

    Raises:
        FileNotFoundError: its tokenizers are missing.
        ValueError: they cannot be read, or do not belong to the model.
    """
    if not find_family(folder).is_alone(folder, read_config(folder)):
        return names_of_tokenizer(read_tokenizer(folder))
    names = _text_names(TextTokenizer.from_pretrained(folder), 0)
    for control in ("pad", "bos", "eos"):
        index = getattr(config, f"{control}_token_id")
        index = index[0] if isinstance(index, list) else index
        if index is not None:
            names["control", "", control] = index
    return {name: index for name, index in names.items() if index < config.vocab_size}


def matched_rows(old: dict[IdName, int], new: dict[IdName, int], size: int) -> Tensor:
    """Where the row of each new id stands among the old ones.

    Args:
        old, new: name -> id.
        size: number of new ids.

    Returns:
        (size,) int64, -1 for ids that the old vocabulary has not, or that have no name.
    """
    rows = torch.full((size,), -1, dtype=torch.int64)
    shared = [(index, old[name]) for name, index in new.items() if name in old]
    if shared:
        places, sources = torch.tensor(shared).T
        rows[places] = sources
    return rows


def _text_names(text: TextTokenizer, first: int) -> dict[IdName, int]:
    return {("text", "", piece): first + index for piece, index in text.pieces().items()}


def _codec_fingerprint(tokenizer: MultimodalTokenizer, codebook: str) -> str:
    """Digest of what decides the codes of a codebook; empty where they need no tokenizer."""
    for modality in tokenizer.layout.modalities.values():
        if modality.codebook == codebook.partition(".")[0] and modality.codec is not None:
            return str(tokenizer.codecs[modality.codec].fingerprint)
    return ""
