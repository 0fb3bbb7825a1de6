"""Whether a request is one that the model was trained for: a warning before work starts, once, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emu.documents import CodeSegment, Plan, Text, TextSegment
from emu.generation.limits import beyond_positions, warn_caller
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import Size
from emu.trained import Trained, task_name


def warn_beyond_training(
    trained: Trained,
    positions: int,
    *,
    strict: bool,
    size: Size | None = None,
    frames: int | None = None,
    rate: float | None = None,
    tokens: int,
) -> None:
    """Warn the caller of everything in a request that the model did not see in training, in one warning.

    Args:
        trained: what the model was trained for.
        positions: of the model.
        strict: raise ValueError instead.
        size, frames, rate, tokens: of the request, see `Trained.problems`.

    Raises:
        ValueError: with `strict`, where something is outside of it.
    """
    found = trained.problems(size=size, frames=frames, rate=rate)
    # Whoever passes the model's positions passes its training too; the harder limit is the one to name.
    beyond = beyond_positions(tokens, positions)
    found += [beyond] if beyond else trained.problems(tokens=tokens)
    if not found:
        return
    message = f"the model was not trained for this: {', '.join(found)}"
    if strict:
        raise ValueError(f"{message}; ask for what it was trained on, or leave strict out")
    warn_caller(f"{message}; expect poor results")


def kinds_of(tokenizer: MultimodalTokenizer, items: Sequence[Any]) -> list[str]:
    """The kind of each item of a document, by the names of `emu.trained`; items of no known kind are left to the tokenizer to refuse."""
    kinds = []
    for item in items:
        if isinstance(item, str | Text | Plan | TextSegment):
            kinds.append("text")
        elif isinstance(item, CodeSegment):
            kinds.append(item.modality)
        else:
            kinds += [name for name, modality in tokenizer.layout.modalities.items() if modality.accepts(item)][:1]
    return kinds


def block_tasks(prompt: str, modality: str, given_frames: int) -> list[str]:
    """Tasks that make a block from a prompt, the one to name first.

    Args:
        prompt: its text; models that learn to leave captions out make blocks from none.
        modality: of the block.
        given_frames: frames of a clip that are given.
    """
    if given_frames:
        return [*(["image_to_video"] if given_frames == 1 else []), "video_continuation"]
    named = task_name(["text"], modality)
    return [named] if prompt else [task_name([], modality), named]


def next_tasks(tokenizer: MultimodalTokenizer, kinds: Sequence[str]) -> list[str]:
    """Tasks of whatever may follow a document in a layout."""
    return [task_name(kinds, kind) for kind in ("text", *tokenizer.layout.modalities)]
