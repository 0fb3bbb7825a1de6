"""The table of ids of transformers' Emu3, which its files give word by word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu.families.base import IncompleteTable
from emu.families.emu3.vocabulary import CODE_WORD, FIRST_EXTRA, RELEASED_SIZE, WORDS, original_vocabulary
from emu.vocabulary import Vocabulary
from emu_tokenizers.files import read_json


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocabulary | None:
    """The table of ids of a folder; see `Family.vocabulary`."""
    text = config.get("text_config", config) or {}
    size = int(text.get("vocab_size", RELEASED_SIZE))
    released = original_vocabulary({}) if size == RELEASED_SIZE else None
    # transformers reads three kinds of words from the map (placeholder, end of row, codes), so the map may hold no others.
    words = _tokenizer_words(folder) | (config.get("vocabulary_map") or {})
    if CODE_WORD.format(0) not in words:
        return released
    try:
        return vocabulary_of_words(words, size, text, str(folder))
    except IncompleteTable:
        if released is None or released.range("vision")[0] != words[CODE_WORD.format(0)]:
            raise
        return released


def vocabulary_of_words(words: Mapping[str, int], size: int, text: Mapping[str, Any], source: str) -> Vocabulary:
    """The table that transformers' files describe word by word.

    Args:
        words: word -> id.
        size: of the vocabulary.
        text: text configuration, whose `pad_token_id`, `bos_token_id` and `eos_token_id` win over the words.
        source: named in messages.

    Raises:
        IncompleteTable: a control has no word.
        ValueError: the codes are not numbered without gaps.
    """
    controls = {name: words[word] for name, word in WORDS.items() if word in words}
    for name in ("pad", "bos", "eos"):
        given = text.get(f"{name}_token_id")
        if isinstance(given, int):
            controls[name] = given
    missing = [f"{name} ({WORDS[name]!r})" for name in WORDS if name not in controls]
    if missing:
        raise IncompleteTable(
            f"{source} has no word for {', '.join(missing)}; expected them in vocabulary_map of config.json or in tokenizer.json. "
            "Add the tokenizer files that the model was made with; EmuForCausalLM.from_pretrained reads the language model without them"
        )
    first = words[CODE_WORD.format(0)]
    codes = {word: index for word, index in words.items() if word.startswith("<|visual token ")}
    for code in range(len(codes)):
        if words.get(CODE_WORD.format(code)) != first + code:
            raise ValueError(
                f"{source} gives code {code} the id {words.get(CODE_WORD.format(code))}; expected {first + code}: codes are numbered "
                "without gaps"
            )
    return Vocabulary(size, {"vision": (first, len(codes))}, controls)


def _tokenizer_words(folder: Path) -> dict[str, int]:
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {}
    table = read_json(file)
    words = dict(table.get("model", {}).get("vocab") or {})
    return words | {token["content"]: token["id"] for token in table.get("added_tokens", [])}


def words_of_vocabulary(vocabulary: Vocabulary) -> dict[str, int]:
    """Word -> id of every id after the text: controls, codes, and `<|extra_n|>` for what has no other name."""
    first, count = vocabulary.range("vision")
    words = {word: vocabulary.control(name) for name, word in WORDS.items()}
    words |= {CODE_WORD.format(code): first + code for code in range(count)}
    taken = set(words.values())
    zero = vocabulary.control("eol") + FIRST_EXTRA
    for index in range(vocabulary.text[0] + vocabulary.text[1], vocabulary.size):
        if index not in taken:
            name = {zero - 2: "<|im_start|>", zero - 1: "<|im_end|>"}.get(index, f"<|extra_{index - zero}|>")
            words[name] = index
    return words
