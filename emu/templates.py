"""What a model expects around a user's words, and the settings of a task, as data.

A template is plain text with fields: `{text}` is the user's text, `{images}` the user's pictures, `{items}` both in the user's order, and
any control of the vocabulary can be named (`{bss}`). `MultimodalTokenizer.render` turns one into ids.
"""

from __future__ import annotations

import string
from collections.abc import Collection
from dataclasses import dataclass, field

ITEMS = "{items}"
"""The template without words of its own: a document as it stands."""

FIELDS = ("text", "images", "items")
"""What a template may name beside controls."""


@dataclass(frozen=True)
class Templates:
    """Templates of one model.

    Attributes:
        generate: before the header of a block of codes.
        unconditional: the same for an empty negative prompt.
        answer: before text that the model writes.
        settings: what the model's scripts set for this task, by the names of `Emu.generate`, and the `image_area` of its pictures.
    """

    generate: str = ITEMS
    unconditional: str = ITEMS
    answer: str = ITEMS
    settings: dict[str, float] = field(default_factory=dict)


PLAIN = Templates()
"""No words around the user's, as models trained here are prompted."""


def parse_template(template: str, controls: Collection[str]) -> list[tuple[str, str | None]]:
    """A template as pairs of the words before a field and the field's name; the last name may be None.

    Args:
        template: e.g. "USER: {items} ASSISTANT: {bss}".
        controls: names of the vocabulary's controls.

    Raises:
        ValueError: a field is neither one of `FIELDS` nor a control.
    """
    parts = [(literal, name) for literal, name, _, _ in string.Formatter().parse(template)]
    for _, name in parts:
        if name is not None and name not in FIELDS and name not in controls:
            raise ValueError(
                f"the template {template!r} has the field {name!r}; expected one of {[*FIELDS, *sorted(controls)]}"
            )
    return parts
