"""Emu3's text tokenizer: byte-level BPE given as ranks, with the split pattern and the normalisation of the original.

The original (`tokenization_emu3.py` of baaivision/Emu3) runs `emu3.tiktoken`, a file of `base64(token) rank` lines, through tiktoken. Here
the same ranks become a `tokenizer.json` for the `tokenizers` library, with the interface of `TextTokenizer`: same ids, no tiktoken. The
words of control tokens in a user's text are text.

transformers' converted folders hold the same ranks with another split pattern (GPT-2's) and without normalisation, which gives other
ids for code, URLs and double newlines; `split` chooses whose ids to produce. A rank here is the place of a pair of bytes in the order of
merging, which is also its id; it has nothing to do with the ranks of processes.
"""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from emu.families.base import SPLITS
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer
from emu_tokenizers.files import read_json

RANKS_FILE = "emu3.tiktoken"
HUGGING_FACE_FILE = "tokenizer.json"

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before merging, from `tokenization_emu3.py`: a letter run takes one leading sign, digits stand alone."""


def read_ranks(file: str | Path) -> dict[bytes, int]:
    """The ranks of a `.tiktoken` file.

    Returns:
        token bytes -> rank, which is also its id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not `base64 rank`, a rank repeats or is missing, or a single byte has none.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}; expected lines of 'base64-token rank' as in {RANKS_FILE}")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{file}, line {number} is {line[:40]!r}; expected a base64 token and its rank") from error
    check_ranks(ranks, str(file))
    return ranks


def check_ranks(ranks: Mapping[bytes, int], source: str) -> None:
    """Whether ranks make a byte-level tokenizer: ids 0..n-1, each once, and one for every byte.

    Raises:
        ValueError: they do not; the message names `source`.
    """
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"{source} has {len(ranks)} tokens with ranks up to {max(ranks.values(), default=-1)}; expected each of "
            f"0..{len(ranks) - 1} once. The file is cut short or joined from two; copy it again"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(
            f"{source} has no token for the bytes {missing[:8]}; expected all 256, so that any text has ids"
        )


def write_ranks(ranks: Mapping[bytes, int], file: str | Path) -> None:
    """Write ranks in the format of tiktoken, the inverse of `read_ranks`."""
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda it: it[1])
    )
    Path(file).write_text("".join(lines))


def from_ranks(ranks: Mapping[bytes, int], split: str = "original") -> TextTokenizer:
    """The text tokenizer of these ranks.

    Args:
        ranks: token bytes -> rank.
        split: "original" cuts text as Emu3 does, "transformers" as transformers' converted folders do.

    Raises:
        ValueError: the ranks leave ids or bytes out, or an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {SPLITS}")
    check_ranks(ranks, "the table of ranks")
    table: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if split == "original" else None,
        "pre_tokenizer": _pre_tokenizer(split),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # tiktoken looks a whole piece up before it merges; transformers' converted tokenizers do not.
            "ignore_merges": split == "original",
            "vocab": {surface(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])},
            "merges": merges(ranks),
        },
    }
    return TextTokenizer(json.dumps(table, ensure_ascii=False).encode(), "tokenizer.json")


def _pre_tokenizer(split: str) -> dict[str, Any]:
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": split != "original"}
    if split != "original":
        return by_bytes
    cut = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, by_bytes]}


def merges(ranks: Mapping[bytes, int]) -> list[list[str]]:
    """Pairs that merge, in order of their rank.

    A token is only ever formed from the two parts into which merging its own bytes alone falls before the last step: whatever was merged
    inside it in a longer text was merged without its neighbours' help. So one pair per token says all that the ranks say.
    """
    pairs = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _parts(token, ranks)
            if len(parts) == 2:
                pairs.append([surface(parts[0]), surface(parts[1])])
    return pairs


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Merge the bytes of a token, lowest rank first and leftmost among equals, until it is whole or stuck; the parts before that."""
    parts = [token[i : i + 1] for i in range(len(token))]
    never = len(ranks)
    of_pairs = [ranks.get(parts[i] + parts[i + 1], never) for i in range(len(parts) - 1)]
    while len(parts) > 2 and (lowest := min(of_pairs)) < never:
        place = of_pairs.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        del of_pairs[place]
        if place < len(of_pairs):
            of_pairs[place] = ranks.get(parts[place] + parts[place + 1], never)
        if place:
            of_pairs[place - 1] = ranks.get(parts[place - 1] + parts[place], never)
    return parts


def ranks_of(tokenizer_json: Mapping[str, Any]) -> dict[bytes, int] | None:
    """The ranks inside a byte-level `tokenizer.json` without its special tokens, or None where it is of another kind."""
    model = tokenizer_json.get("model", {})
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(tokenizer_json.get("pre_tokenizer")):
        return None
    specials = {token["content"] for token in tokenizer_json.get("added_tokens", [])}
    ranks = {}
    for word, rank in model["vocab"].items():
        if word in specials or not set(word) <= _BYTE_OF.keys():
            continue
        ranks[bytes(_BYTE_OF[character] for character in word)] = rank
    return ranks


def surface(token: bytes) -> str:
    """How the `tokenizers` library writes bytes: printable ones as they are, the rest as letters from U+0100 on."""
    return "".join(_CHARACTER_OF[byte] for byte in token)


def _printable(spans: Iterable[tuple[str, str]]) -> list[int]:
    return [code for first, last in spans for code in range(ord(first), ord(last) + 1)]


_SHOWN = _printable([("!", "~"), ("\u00a1", "\u00ac"), ("\u00ae", "\u00ff")])
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
_CHARACTER_OF = {byte: chr(byte) for byte in _SHOWN} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


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
