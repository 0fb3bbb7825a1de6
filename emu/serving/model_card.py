"""What a server says of its model: OpenAI's fields, and what it can do, for the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emu.media import can_write_mp4
from emu.pipeline import Emu
from emu.pipeline.trained_limits import block_tasks, check_infill
from emu.serving.serving_options import ServingOptions
from emu.trained import task_name

EXAMPLES = {
    "digits": ("a handwritten seven", "a handwritten three", "a handwritten zero"),
    "pictures": (
        "woman cartwheeling, medium-dark skin tone",
        "man with beard, light skin tone",
        "person walking, dark skin tone",
    ),
    "shapes": ("a small red circle", "a green circle left of a purple square", "a blue ball rolling left at 4 fps"),
}
"""Prompts to try with the bundled models."""


def model_card(emu: Emu, name: str, revision: str, options: ServingOptions) -> dict[str, Any]:
    """An entry of `/v1/models`."""
    trained, defaults = emu.trained, emu.defaults
    sizes = [list(size) for size in trained.sizes] or ([list(defaults.size)] if defaults.size else [])
    about = {
        "tasks": tasks_of_model(emu),
        "sizes": sizes,
        "frames": defaults.frames,
        "fps": defaults.fps,
        "guidance_scale": defaults.guidance_scale,
        "question": defaults.question,
        "prompts": list(options.examples or EXAMPLES.get(name, ())),
        "revision": revision,
    }
    return {"id": name, "object": "model", "created": 0, "owned_by": "emu", "emu": about}


def tasks_of_model(emu: Emu) -> dict[str, str | None]:
    """What a model can do by the names of the page: None where it can, else why not."""
    trained, tokenizer = emu.trained, emu.tokenizer

    def clip() -> None:
        if not can_write_mp4():
            raise ValueError("writing MP4 needs PyAV: pip install 'emu-tokens[video]'")
        tokenizer.layout.modality("video")
        trained.check_task(*block_tasks(["text"], "video", 0))

    checks: dict[str, Callable[[], None]] = {
        "draw": lambda: trained.check_task(*block_tasks(["text"], "image", 0)),
        "describe": lambda: trained.check_task(task_name(["image", "text"], "text")),
        "edit": lambda: trained.check_task(*block_tasks(["image", "text"], "image", 0)),
        "fill": lambda: check_infill(trained, tokenizer, "image"),
        "animate": clip,
    }
    return {name: _reason(emu, check) for name, check in checks.items()}


def _reason(emu: Emu, check: Callable[[], None]) -> str | None:
    try:
        if emu.tokenizer.vision is None:
            raise ValueError("this model has no vision tokenizer, so it neither draws nor sees")
        check()
    except ValueError as error:
        return str(error)
    return None
