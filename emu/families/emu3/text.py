"""Emu3's text tokenizer, from whichever files a folder has."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from emu.families.base import SPLITS
from emu.families.emu3.byte_pairs import RANKS_FILE, from_ranks, ranks_of, read_ranks
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer
from emu_tokenizers.files import read_json

HUGGING_FACE_FILE = "tokenizer.json"


def read_text_tokenizer(folder: str | Path, vocabulary: Vocabulary, split: str = "original") -> TextTokenizer:
    """The text tokenizer in a folder: `emu3.tiktoken`, or the `tokenizer.json` of transformers' conversion.

    Args:
        folder: of the model, or of the tokenizer alone.
        vocabulary: of the model.
        split: "original" gives the ids that the model was trained on whatever the files say about splitting; "transformers" keeps the
            rule of a `tokenizer.json`.

    Raises:
        FileNotFoundError: there is neither file.
        ValueError: a broken file, an unknown split, or more ids than the vocabulary has for text.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {SPLITS}")
    first, count = vocabulary.text
    if (folder / RANKS_FILE).is_file():
        text, source = from_ranks(read_ranks(folder / RANKS_FILE), split), folder / RANKS_FILE
    elif (folder / HUGGING_FACE_FILE).is_file():
        source = folder / HUGGING_FACE_FILE
        text = _from_table(read_json(source), count, split)
    else:
        raise FileNotFoundError(
            f"{folder} holds no text tokenizer; expected {RANKS_FILE} or {HUGGING_FACE_FILE}. Emu3.5 keeps it in its repository under "
            "src/tokenizer_emu3_ibq: pass that folder as text_tokenizer="
        )
    if first or text.size != count:
        raise ValueError(
            f"{source} has {text.size} text ids, the model's vocabulary {count} before its first control; use the tokenizer that the "
            "model was trained with"
        )
    return text


def _from_table(table: dict[str, Any], count: int, split: str) -> TextTokenizer:
    ranks = ranks_of(table)
    if ranks is not None and split == "original":
        return from_ranks({token: rank for token, rank in ranks.items() if rank < count})
    model = table.get("model", {})
    if isinstance(model.get("vocab"), dict):
        table = {**table, "model": {**model, "vocab": {word: i for word, i in model["vocab"].items() if i < count}}}
    return TextTokenizer(json.dumps({**table, "added_tokens": []}, ensure_ascii=False).encode(), HUGGING_FACE_FILE)


def tokenizer_table(text: TextTokenizer) -> dict[str, Any]:
    """The `tokenizer.json` of a text tokenizer.

    Raises:
        ValueError: it is a SentencePiece model, or not a byte-level BPE.
    """
    with tempfile.TemporaryDirectory() as folder:
        text.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        table = json.loads(file.read_text()) if file.is_file() else None
    if table is None or ranks_of(table) is None:
        raise ValueError(
            "the text tokenizer is not a byte-level BPE; folders of Emu3 hold nothing else. Keep the model in the family 'emu'"
        )
    return table
