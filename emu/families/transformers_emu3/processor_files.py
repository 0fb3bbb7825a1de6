"""transformers' `Emu3Processor` around our text tokenizer: what its folders need beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

from emu.families.emu3.text import tokenizer_table
from emu.families.emu3.vocabulary import WORDS
from emu.families.transformers_emu3.vocabulary import words_of_vocabulary
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer

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
