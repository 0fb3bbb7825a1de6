"""Captioned colour pictures that travel with the package: 178 people in five skin tones, and 610 animals, plants, meals and things.

They are those of Noto Emoji (Google and others, github.com/googlefonts/noto-emoji, Apache License 2.0), drawn at 64x64 on white and reduced
to 48 colours each, with the names of Unicode's list; `benchmarks/emoji_sheet.py` made the files. One tone of every second person, all tones
equally often, is held out: what a model has to put together of two things that it has seen. `StoreEmoji` is the first stage of the demo.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu.own_data.picture_store import PICTURES, describe_store
from emu.stopping import say
from emu_tokenizers.files import new_folder
from emu_tokenizers.pixels.images import open_image, to_rgb

SHEET, TABLE = Path(__file__).with_name("emoji.webp"), Path(__file__).with_name("emoji.json")
SIDE, COLUMNS = 64, 40
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE_WORDS = "skin tone"


@dataclass(frozen=True)
class Emoji:
    """Captioned pictures.

    Attributes:
        pictures: (N, 64, 64, 3) uint8.
        captions: "cat", or "woman singer, dark skin tone".
        held_out: numbers of those that are not trained on.
    """

    pictures: np.ndarray
    captions: list[str]
    held_out: list[int]


def load_emoji(people: int | None = None, others: int | None = None) -> Emoji:
    """The pictures: people first, the five tones of each side by side.

    Args:
        people: only so many of them, each with five pictures; None for all 178.
        others: only so many of the others; None for all 610.
    """
    table = json.loads(TABLE.read_text("utf-8"))
    sheet = np.asarray(to_rgb(open_image(SHEET)))
    cells = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    toned = [number for number, line in enumerate(table) if "tone" in line]
    plain = [number for number, line in enumerate(table) if "tone" not in line]
    chosen = toned[: None if people is None else people * len(TONES)] + plain[:others]
    captions = [
        toned_caption(table[number]["name"], table[number]["tone"])
        if "tone" in table[number]
        else table[number]["name"]
        for number in chosen
    ]
    held_out = [place for place, number in enumerate(chosen) if table[number].get("held_out")]
    return Emoji(cells[chosen], captions, held_out)


def tone_words(tone: str) -> str:
    """ "dark skin tone": what asks for a tone."""
    return f"{tone} {TONE_WORDS}"


def toned_caption(name: str, tone: str) -> str:
    """Caption of a person in a tone."""
    return f"{name}, {tone_words(tone)}"


def person_and_tone(caption: str) -> tuple[str, str] | None:
    """What `toned_caption` was made of; None for the caption of something else."""
    name, comma, words = caption.rpartition(", ")
    tone = words.removesuffix(f" {TONE_WORDS}")
    return (name, tone) if comma and tone in TONES and words == tone_words(tone) else None


def people_of(captions: list[str]) -> dict[str, dict[str, int]]:
    """For each person the number of the caption in each tone."""
    found: dict[str, dict[str, int]] = {}
    for number, caption in enumerate(captions):
        parts = person_and_tone(caption)
        if parts is not None:
            found.setdefault(parts[0], {})[parts[1]] = number
    return found


class StoreEmoji:
    """Stage: writes the demo's pictures as `emu.own_data.SplitPictures` writes those of a source.

    Args:
        views: how often a training picture is tokenized, each time cropped or mirrored otherwise.
        people: only so many of the people, each in five tones; None for all.
        others: only so many of the other pictures; None for all.
        seed: of the crops.
    """

    def __init__(self, views: int = 1, people: int | None = None, others: int | None = None, seed: int = 0) -> None:
        if views < 1 or (people is not None and people < 2) or (others is not None and others < 0):
            raise ValueError(
                f"views is {views}, people is {people} and others is {others}; expected 1 or more, 2 or more, and 0 or more"
            )
        self.views, self.people, self.others, self.seed = views, people, others, seed

    def run(self, folder: Path) -> int:
        """Write the store; see `emu.training.stages.JobStage`."""
        table = self.write(folder)
        say(f"{len(table['train'])} pictures to train on, {len(table['held_out'])} held out")
        return 0

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the store, and return what it says of its split."""
        emoji = load_emoji(self.people, self.others)
        held_out = set(emoji.held_out)
        train = [row for row in range(len(emoji.captions)) if row not in held_out]
        with new_folder(folder) as partial:
            np.save(partial / PICTURES, emoji.pictures)
            table = {"train": train, "held_out": emoji.held_out, "views": self.views, "seed": self.seed}
            describe_store(partial, emoji.captions, table)
        return table
