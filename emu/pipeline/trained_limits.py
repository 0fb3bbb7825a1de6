"""Whether the model was trained for a request: checked before work starts, and reported in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from emu.generation.limits import beyond_positions
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import Size
from emu.trained import SHOWN, TEXT, Trained, infill_task, task_name
from emu.vocabulary import HOLE


def beyond_training(
    trained: Trained,
    positions: int,
    *,
    strict: bool,
    sizes: Collection[Size] = (),
    frames: int | None = None,
    rate: float | None = None,
    tokens: int,
) -> str:
    """Describe everything in a request that the model did not see in training, in one sentence; empty if it saw all of it.

    Args:
        trained: what the model was trained for.
        positions: of the model.
        strict: raise ValueError instead.
        sizes: of the request, all of them.
        frames, rate, tokens: of the request, see `Trained.problems`.

    Raises:
        ValueError: with `strict`, if something is outside the training.
    """
    found = [problem for size in dict.fromkeys(sizes) for problem in trained.problems(size=size)][:SHOWN]
    found += trained.problems(frames=frames, rate=rate)
    # Whoever passes the model's positions passes its training too; the harder limit is the one to name.
    beyond = beyond_positions(tokens, positions)
    found += [beyond] if beyond else trained.problems(tokens=tokens)
    message = f"the model was not trained for this: {', '.join(found)}" if found else ""
    if message and strict:
        raise ValueError(f"{message}; ask for what it was trained on, or leave strict out")
    return message


def block_tasks(kinds: Sequence[str], modality: str, given_frames: int) -> list[str]:
    """Return the tasks that generate a block after a document, starting with the one to name.

    Args:
        kinds: of the document's items; models trained with caption dropout also generate blocks from documents without words.
        modality: of the block.
        given_frames: frames of a clip that are given.
    """
    if given_frames:
        return [*(["image_to_video"] if given_frames == 1 else []), "video_continuation"]
    captioned = [] if TEXT in kinds else [[*kinds, TEXT], [TEXT, *kinds]]
    return [task_name(given, modality) for given in (kinds, *captioned)]


def check_infill(trained: Trained, tokenizer: MultimodalTokenizer, modality: str) -> None:
    """Raise ValueError if a model was not trained to fill in hidden cells of blocks of a modality."""
    task = infill_task(modality)
    trained.check_task(task)
    if tokenizer.layout.hole is None:
        raise ValueError(
            f"the model was not trained for {task}: its vocabulary has no control {HOLE!r}; train one with "
            f"MultimodalTokenizer(..., extra_controls=({HOLE!r},)) and data.infill"
        )


def next_tasks(tokenizer: MultimodalTokenizer, kinds: Sequence[str]) -> list[str]:
    """Return the tasks of anything that may follow a document in a layout."""
    return [task_name(kinds, kind) for kind in ("text", *tokenizer.layout.modalities)]
