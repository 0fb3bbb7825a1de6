"""Templates of Emu3.5 by task, and what its scripts set for each (`configs/` of baaivision/Emu3.5)."""

from __future__ import annotations

from emu.templates import Templates

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
    words = _EDIT if task == "x2i" else _ANSWER
    words = words.format(task=task, extra=_EXTRA.get(task, ""), text="{text}", images="{images}")
    unconditional = "You are a helpful assistant. USER: {images} ASSISTANT: {bss}"
    return Templates(words, unconditional, words, dict(_SETTINGS.get(task, _INTERLEAVED)))


NAMED = {f"emu3.5-{task}": emu35(task) for task in EMU35_TASKS}
"""Templates by the name that users give."""
