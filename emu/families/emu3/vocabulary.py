"""The table of ids of a released model, from the files of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu.families.emu3.config import original_vocabulary
from emu.vocabulary import Vocabulary
from emu_tokenizers.files import read_json

WORDS = {
    **{"pad": "<|endoftext|>", "bos": "<|extra_203|>", "eos": "<|extra_204|>", "eol": "<|extra_200|>"},
    **{"eof": "<|extra_201|>", "image": "<|image token|>", "boi": "<|image start|>", "eoi": "<|image end|>"},
}
"""Control -> its word in Emu3's tokenizer files (`tokenization_emu3.py`)."""

CODE_WORD = "<|visual token {:0>6d}|>"
"""Word of a code in Emu3's tokenizer files."""

KNOWN_SIZES = {184622: "emu3", 282926: "emu3.5"}
"""Vocabulary sizes of released models, whose tables are known without tokenizer files."""


class IncompleteTable(ValueError):
    """A folder that tells the ids of codes and not of every control: its language model can be read, its tokenizers cannot be used."""


def read_vocabulary(folder: Path, form: str, config: Mapping[str, Any]) -> Vocabulary | None:
    """The table of ids, or None where the folder does not tell.

    Args:
        folder: with config.json and perhaps tokenizer files.
        form: its format.
        config: its config.json.

    Raises:
        IncompleteTable: some words are there and others are missing.
        ValueError: the tokenizer files and the configuration contradict each other.
    """
    try:
        return _read(folder, form, config)
    except IncompleteTable:
        raise
    except ValueError as error:
        raise ValueError(
            f"{folder}: config.json and the tokenizer files do not fit each other: {error}. Restore those of one model"
        ) from error


def _read(folder: Path, form: str, config: Mapping[str, Any]) -> Vocabulary | None:
    if form == "emu":
        return Vocabulary.from_dict(config["vocabulary"]) if config.get("vocabulary") else None
    if form != "transformers":
        told = "boi_token_id" in config or config.get("vocab_size", 184622) in KNOWN_SIZES
        return original_vocabulary(config, form) if told else None
    text = config.get("text_config", config) or {}
    size = int(text.get("vocab_size", 184622))
    # transformers reads three kinds of words from the map (placeholder, end of row, codes), so the map may hold no others.
    words = _tokenizer_words(folder) | (config.get("vocabulary_map") or {})
    known = KNOWN_SIZES.get(size)
    if CODE_WORD.format(0) not in words:
        return original_vocabulary({"vocab_size": size}, known) if known else None
    try:
        return vocabulary_of_words(words, size, text, str(folder))
    except IncompleteTable:
        released = original_vocabulary({"vocab_size": size}, known) if known else None
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
    """Word -> id of every id behind the text: controls, codes, and `<|extra_n|>` for what has no other name."""
    first, count = vocabulary.range("vision")
    words = {word: vocabulary.control(name) for name, word in WORDS.items()}
    words |= {CODE_WORD.format(code): first + code for code in range(count)}
    taken = set(words.values())
    zero = vocabulary.control("eol") - 200
    for index in range(vocabulary.text[0] + vocabulary.text[1], vocabulary.size):
        if index not in taken:
            name = {zero - 2: "<|im_start|>", zero - 1: "<|im_end|>"}.get(index, f"<|extra_{index - zero}|>")
            words[name] = index
    return words


def vision_words(num_codes: int) -> list[str]:
    """The lines of the original's `emu3_vision_tokens.txt`."""
    return [WORDS[name] for name in ("image", "boi", "eoi")] + [CODE_WORD.format(code) for code in range(num_codes)]
