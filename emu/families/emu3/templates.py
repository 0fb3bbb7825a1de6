"""Templates of released models, and what their scripts set for a task."""

from __future__ import annotations

from emu.templates import PLAIN, Templates

NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, normal "
    "quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""Negative prompt of `image_generation.py` of baaivision/Emu3."""

POSITIVE_SUFFIX = " masterpiece, film grained, best quality."
"""What the same script appends to every prompt."""


EMU3 = Templates(answer="You are a helpful assistant. USER: {items}. ASSISTANT:")
"""Modes G and U of Emu3-Gen and Emu3-Chat (`processing_emu3.py` of baaivision/Emu3)."""

EMU3_STAGE1 = PLAIN
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
