"""Pictures and instructions as the documents of an edit: [picture, "make it red"], whose next item is the new picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from emu.data.tokenizing.picture_sizes import Sizing
from emu.documents import CodeSegment
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import Size
from emu_tokenizers.pixels.images import open_image, to_rgb


def edit_documents(pictures: Any, prompts: Any) -> list[list[Any]]:
    """Return one document for each pair of a picture and an instruction.

    Args:
        pictures: a picture for all prompts, or a list with one per prompt, or with any number for a single prompt; if a prompt is
            about several pictures, its entry is a list of them.
        prompts: one text for all pictures, or a list of one each.

    Raises:
        TypeError: a prompt is not a text.
        ValueError: there are none, or their numbers differ.
    """
    listed = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
    words = list(prompts) if isinstance(prompts, list | tuple) else [prompts]
    for number, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"prompt {number} is {type(word).__name__}; expected a text that says what to do")
    if not listed or not words:
        raise ValueError(f"{len(listed)} pictures and {len(words)} prompts; give at least one of each")
    count = max(len(listed), len(words))
    if len(listed) not in (1, count) or len(words) not in (1, count):
        raise ValueError(
            f"{len(listed)} pictures for {len(words)} prompts; give one picture or one prompt for all, or as many of both "
            "(several pictures for one prompt are a list of their own)"
        )
    pairs = zip(listed * (count // len(listed)), words * (count // len(words)), strict=True)
    return [[*(several if isinstance(several, list | tuple) else [several]), word] for several, word in pairs]


def edit_sizes(documents: Sequence[Sequence[Any]], tokenizer: MultimodalTokenizer, usual: Size | None) -> list[Size]:
    """Return (height, width) of each document's output: that of its last picture as the tokenizer takes it.

    Pictures in files are resized to the model's default size if it has one.
    """
    return [_size_of(document[-2] if len(document) > 1 else None, tokenizer, usual) for document in documents]


def _size_of(picture: Any, tokenizer: MultimodalTokenizer, usual: Size | None) -> Size:
    factor = 1 if tokenizer.vision is None else tokenizer.vision.spatial_factor
    if isinstance(picture, CodeSegment):
        return picture.codes.shape[0] * factor, picture.codes.shape[1] * factor
    is_file = isinstance(picture, str | os.PathLike)
    if is_file and usual is not None and tokenizer.resize is None:
        return usual
    image = as_picture(picture)
    if is_file and tokenizer.resize is None:
        return Sizing(factor).own_size(image.height, image.width)
    image = image if tokenizer.resize is None else tokenizer.resize(image)
    return image.height, image.width


def as_picture(picture: Any) -> Image.Image:
    """Return a picture as users give it, upright and in RGB.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: it is not a picture.
    """
    if isinstance(picture, str | os.PathLike):
        return open_image(picture)
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3:
        return Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        shown = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise TypeError(f"a picture is {shown}; expected a PIL image, a path or a uint8 array (H, W, 3)")
    return to_rgb(picture)
