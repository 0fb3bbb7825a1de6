"""The words of transformers' Emu3 in its files, where each id has one: read as a table of ids, and written with tokenizer and processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu.families.base import IncompleteTable
from emu.families.emu3.config import CODE_WORD, FIRST_EXTRA, RELEASED_SIZE, WORDS, original_vocabulary
from emu.families.emu3.text import tokenizer_table
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer
from emu_tokenizers.files import read_json

PLACEHOLDER = "<image>"
"""transformers' word for a code that is not known yet; it takes the id of `<|extra_0|>`."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{% if message['role'] != 'system' %}{{ ' ' }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Turns in the words of mode U: "You are a helpful assistant. USER: <image>text ASSISTANT:"."""


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


def text_words(vocabulary: Vocabulary, text: TextTokenizer) -> dict[str, int]:
    """Word -> id of the whole vocabulary, `vocabulary_map` in transformers' config.json."""
    words = dict(tokenizer_table(text)["model"]["vocab"])
    words |= _special_words(vocabulary)
    return dict(sorted(words.items(), key=lambda item: item[1]))


def _special_words(vocabulary: Vocabulary) -> dict[str, int]:
    words = words_of_vocabulary(vocabulary)
    free = words.pop("<|extra_0|>", None)
    if free is None:
        raise ValueError(
            "the vocabulary has no id that is neither text, control nor code; transformers' Emu3 needs one as the placeholder of codes"
        )
    return {PLACEHOLDER: free, **words}


def write_processor(folder: Path, text: TextTokenizer, vocabulary: Vocabulary, pixels: tuple[int, int]) -> None:
    """Write tokenizer and processor of `Emu3Processor` into a folder.

    Args:
        folder: to write to.
        text: a byte-level BPE.
        vocabulary: with at least one id that is free for the placeholder.
        pixels: least and greatest area of a picture.

    Raises:
        ValueError: transformers cannot express the tokenizer or the vocabulary.
    """
    import tokenizers
    from transformers import Emu3ImageProcessor, Emu3Processor, PreTrainedTokenizerFast

    table, words = tokenizer_table(text), _special_words(vocabulary)
    marks = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    table["added_tokens"] = [
        {"id": index, "content": word, **marks} for word, index in sorted(words.items(), key=lambda item: item[1])
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(table)),
        pad_token=WORDS["pad"],
        bos_token=WORDS["bos"],
        eos_token=WORDS["eos"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": PLACEHOLDER,
            "boi_token": WORDS["boi"],
            "eoi_token": WORDS["eoi"],
            "image_wrapper_token": WORDS["image"],
            "eof_token": WORDS["eof"],
        },
    )
    images = Emu3ImageProcessor(
        image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5], min_pixels=pixels[0], max_pixels=pixels[1]
    )
    Emu3Processor(images, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
