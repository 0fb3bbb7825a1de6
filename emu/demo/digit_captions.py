"""What the demo says about its pictures: captions, questions, answers, and the prompts that it can draw."""

from __future__ import annotations

from typing import Any

from emu.demo.digits import CANVAS, DIRECTIONS

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CAPTIONS = ("a handwritten {}", "the digit {}", "a {} drawn by hand")
"""Captions of pictures; with " moving left" and so on after them, of clips."""

QUESTION = "Which digit is it?"
DESCRIBE = "Describe it."
"""What is asked about a picture: the answers are its name and its first caption."""


def image_caption(label: int, wording: int = 0) -> str:
    """Caption of a picture of this digit."""
    return CAPTIONS[wording].format(DIGIT_NAMES[label])


def clip_caption(label: int, direction: str, wording: int = 0) -> str:
    """Caption of a clip in which this digit moves."""
    return f"{image_caption(label, wording)} moving {direction}"


def motion_caption(direction: str) -> str:
    """What is asked for when a picture is to move."""
    return f"moving {direction}"


def answer(label: int, question: str) -> str:
    """What is said about a picture of this digit."""
    return DIGIT_NAMES[label] if question == QUESTION else image_caption(label)


def corpus(headers: tuple[str, ...]) -> list[str]:
    """Texts that the text tokenizer learns from: everything that documents say, and the meta text of their blocks."""
    labels, wordings = range(len(DIGIT_NAMES)), range(len(CAPTIONS))
    texts = [image_caption(label, wording) for label in labels for wording in wordings]
    texts += [clip_caption(label, way, wording) for label in labels for way in DIRECTIONS for wording in wordings]
    asked = [motion_caption(way) for way in DIRECTIONS] + [QUESTION, DESCRIBE, *headers]
    return texts + 10 * (list(DIGIT_NAMES) + asked)


def drawable_prompts() -> list[dict[str, Any]]:
    """Prompts of pictures, as lines of `prompts.jsonl`: prompt, label, and size (height, width) in pixels."""
    return [
        {"prompt": image_caption(label, wording), "label": label, "size": [CANVAS, CANVAS]}
        for wording in range(len(CAPTIONS))
        for label in range(len(DIGIT_NAMES))
    ]
