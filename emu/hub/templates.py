"""What released models expect around a user's words, and the settings of a task, as data.

A template is plain text with fields: `{text}` is the user's text, `{images}` the user's pictures, `{items}` both in the user's order, and
any control of the vocabulary can be named (`{bss}`). What stands between two controls or pictures is tokenised as one piece, as the
originals do; a user's text can never become a control.
"""

from __future__ import annotations

import itertools
import string
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from emu.documents import Text
from emu.multimodal_tokenizer import MultimodalTokenizer

NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, normal "
    "quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""Negative prompt of `image_generation.py` of baaivision/Emu3."""

POSITIVE_SUFFIX = " masterpiece, film grained, best quality."
"""What the same script appends to every prompt."""


@dataclass(frozen=True)
class Templates:
    """Templates of one released model.

    Attributes:
        generate: before the header of a block of codes.
        unconditional: the same for an empty negative prompt.
        answer: before text that the model writes.
        settings: what the model's scripts set for this task, by the names of `Emu.generate`, and the `image_area` of its pictures.
    """

    generate: str = "{items}"
    unconditional: str = "{items}"
    answer: str = "{items}"
    settings: dict[str, float] = field(default_factory=dict)


EMU3 = Templates(answer="You are a helpful assistant. USER: {items}. ASSISTANT:")
"""Modes G and U of Emu3-Gen and Emu3-Chat (`processing_emu3.py` of baaivision/Emu3)."""

EMU3_STAGE1 = Templates()
"""Emu3-Stage1: no words around the user's (README of baaivision/Emu3)."""

_ANSWER = "You are a helpful assistant for {task} task.{extra} USER: {text}{images} ASSISTANT: {{bss}}"
_EDIT = "You are a helpful assistant for {task} task. USER: {images}{text} ASSISTANT: {{bss}}"
_EXTRA = {"howto": " Please generate a response with interleaved text and images."}
_TEXT = {"text_temperature": 1.0, "text_top_k": 1024, "text_top_p": 0.9}
_INTERLEAVED = {"guidance_scale": 3.0, "top_k": 10240, "image_area": 518400, **_TEXT}
_SETTINGS: dict[str, dict[str, float]] = {
    "t2i": _TEXT,
    "x2i": _TEXT,
    "howto": _INTERLEAVED | {"text_temperature": 0.7, "text_top_k": 200, "text_top_p": 0.8},
}
EMU35_TASKS = ("t2i", "x2i", "howto", "story", "explore", "vla")


def emu35(task: str = "t2i") -> Templates:
    """Templates of Emu3.5 and Emu3.5-Image for a task (`configs/` of baaivision/Emu3.5).

    Raises:
        ValueError: an unknown task.
    """
    if task not in EMU35_TASKS:
        raise ValueError(f"no task {task!r}; Emu3.5 knows {EMU35_TASKS}")
    form = _EDIT if task == "x2i" else _ANSWER
    words = form.format(task=task, extra=_EXTRA.get(task, ""), text="{text}", images="{images}")
    unconditional = "You are a helpful assistant. USER: {images} ASSISTANT: {bss}"
    return Templates(words, unconditional, words, dict(_SETTINGS.get(task, _INTERLEAVED)))


NAMED = {"emu3": EMU3, "emu3-stage1": EMU3_STAGE1, "plain": EMU3_STAGE1} | {
    f"emu3.5-{task}": emu35(task) for task in EMU35_TASKS
}
"""Templates by the name that a folder carries."""


def render(template: str, tokenizer: MultimodalTokenizer, items: Any = ()) -> Tensor:
    """BOS and the ids of a template.

    Args:
        template: with fields `{text}`, `{images}`, `{items}` and names of controls.
        tokenizer: of the model.
        items: the user's words and pictures (or clips, or segments of codes), of sizes that the tokenizer takes.

    Returns:
        (n,) int64.

    Raises:
        ValueError: an unknown field, or pictures where the template has no place for them.
    """
    controls = tokenizer.vocabulary.controls
    listed = as_list(items)
    words = [item for item in listed if isinstance(item, str)]
    others = [item for item in listed if not isinstance(item, str)]
    fields: dict[str, list[Any]] = {"text": words, "images": others, "items": listed}
    parts = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    found = [name for _, name in parts if name is not None]
    for wanted in found:
        if wanted not in fields and wanted not in controls:
            raise ValueError(f"the template {template!r} has the field {wanted!r}; known are {[*fields, *controls]}")
    if others and not {"images", "items"} & set(found):
        raise ValueError(f"{len(others)} pictures for the template {template!r}, which has no place for them")
    pieces: list[Any] = []
    for literal, name in parts:
        pieces.append(literal)
        if name is not None:
            pieces += [_Control(controls[name])] if name in controls else fields[name]
    ids = [controls["bos"]]
    for is_text, group in itertools.groupby(pieces, lambda piece: isinstance(piece, str)):
        together = list(group)
        for piece in ["".join(together)] if is_text else together:
            ids += _ids(piece, tokenizer)
    return torch.tensor(ids, dtype=torch.int64)


@dataclass(frozen=True)
class _Control:
    id: int


def _ids(piece: Any, tokenizer: MultimodalTokenizer) -> list[int]:
    if isinstance(piece, _Control):
        return [piece.id]
    if isinstance(piece, str):
        return tokenizer.layout.encode_text(piece) if piece else []
    return tokenizer.layout.build(tokenizer.segments([piece]), add_special=False).ids.tolist()


def as_list(items: Any) -> list[Any]:
    """The items of a document in order, weighted text as its words."""
    listed = items if isinstance(items, list | tuple) and not isinstance(items, Text) else [items]
    return [item.text if isinstance(item, Text) else item for item in listed]
