"""The first stage of the demo: its pictures as a `PictureStore`, with the split that the package fixes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from emu.demo.pictures.emoji import load_emoji
from emu.own_data.picture_store import CAPTIONS, PICTURES, SPLIT
from emu.stopping import say
from emu_tokenizers.files import new_folder, write_file, write_json


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
        emoji = load_emoji(self.people, self.others)
        held_out = set(emoji.held_out)
        train = [row for row in range(len(emoji.captions)) if row not in held_out]
        with new_folder(folder) as partial:
            np.save(partial / PICTURES, emoji.pictures)
            lines = "".join(json.dumps(caption) + "\n" for caption in emoji.captions)
            write_file(partial / CAPTIONS, lines.encode())
            table = {"train": train, "held_out": emoji.held_out, "views": self.views, "seed": self.seed}
            write_json(partial / SPLIT, table)
        say(f"{len(train)} pictures to train on, {len(held_out)} held out")
        return 0
