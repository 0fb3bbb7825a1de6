"""Documents of the demo that are made of its pictures: a person recoloured by words, and pictures set in motion.

    picture, "dark skin tone", the same person's other picture         ToneChanges
    "cat bouncing", clip                                                Motions

Both are sources of `emu tokenize` over a folder that `StoreEmoji` wrote, `tone-changes:FOLDER/train` and so on; drawing and describing are
those of one's own pictures, `own-pictures`. Neither picture of a trained change is a held-out one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from emu.data.tokenizing import Record, SourceOptions
from emu.data.tokenizing.records import digest
from emu.demo.pictures.emoji import people_of, person_and_tone, tone_words
from emu.demo.pictures.motions import FPS, MOTIONS, clip_of, moving_caption
from emu.lines import Place
from emu.own_data.picture_store import PictureStore
from emu.own_data.picture_views import PROMPT_WEIGHT, StoredPictures, as_png, drawn_document, numbered_view

HELD_OUT_CLIPS = 90
"""Pictures, at most, whose motion that is not trained on is held out to measure on."""


def tone_changes(store: PictureStore, part: str) -> list[tuple[int, int]]:
    """(given, asked) rows: two training pictures of one person; or, held out, a training picture and the tone that is not trained on."""
    held_out, found = set(store.rows("held_out")), list[tuple[int, int]]()
    for number, tones in enumerate(people_of(store.captions).values()):
        rows = list(tones.values())
        seen = [row for row in rows if row not in held_out]
        if part == "train":
            found += itertools.permutations(seen, 2)
        else:
            found += [(seen[number % len(seen)], row) for row in rows if row in held_out]
    return found


def motions(store: PictureStore, part: str) -> list[tuple[int, int]]:
    """(row, number of a motion): each training picture in all motions but one, and, held out, some of them in that one."""
    rows = store.rows("train")
    if part == "train":
        return [(row, motion) for row in rows for motion in range(len(MOTIONS)) if motion != unseen_motion(row)]
    return [(row, unseen_motion(row)) for row in rows[:: -(-len(rows) // HELD_OUT_CLIPS)]]


def unseen_motion(row: int) -> int:
    """The motion in which a picture is not trained on; another one for neighbours, the tones of one person among them."""
    return row % len(MOTIONS)


class DerivedDocuments(StoredPictures):
    """What the sources of this file share; arguments as of `StoredPictures`."""

    takes = frozenset[str]()

    def __init__(self, name: str, options: SourceOptions) -> None:
        super().__init__(name, options)
        self._contents = self.contents()

    def contents(self) -> list[tuple[int, int]]:
        """What each document is made from, in order."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its documents are made from")

    @property
    def length(self) -> int:
        """Number of documents."""
        return len(self._contents)

    @property
    def fingerprint(self) -> str:
        """The split and the kind of the documents."""
        return digest(super().fingerprint, type(self).__name__)

    def records(self) -> Iterator[Record]:
        """The documents in order."""
        for number, content in enumerate(self._contents):
            yield Record(Place(self.part, number, "document"), (number, *content))


class ToneChanges(DerivedDocuments):
    """Source `tone-changes:FOLDER/train` or `tone-changes:FOLDER/held_out`: a picture, the words of a tone, the picture in that tone."""

    def contents(self) -> list[tuple[int, int]]:
        """See `tone_changes`."""
        return tone_changes(self._store, self.part)

    def read(self, record: Record) -> Mapping[str, Any]:
        """The document; in every other one both pictures are mirrored, where their captions allow it."""
        number, given, asked = record.content
        # The first two views are functions of a picture's caption, which says the same of both; crops are each picture's own.
        view = number % min(2, self._views)
        before, after = (as_png(numbered_view(self._store, row, view)[0]) for row in (given, asked))
        parts = person_and_tone(self._store.captions[asked])
        assert parts is not None
        words = {"caption": tone_words(parts[1]), "weight": PROMPT_WEIGHT}
        return {"items": [{"image": before, "weight": PROMPT_WEIGHT}, words, {"image": after}]}


class Motions(DerivedDocuments):
    """Source `motions:FOLDER/train` or `motions:FOLDER/held_out`: the caption of a picture and its motion, and the clip."""

    def contents(self) -> list[tuple[int, int]]:
        """See `motions`."""
        return motions(self._store, self.part)

    def read(self, record: Record) -> Mapping[str, Any]:
        """The document."""
        _, row, motion = record.content
        clip = clip_of(np.asarray(self._store.pictures[row]), MOTIONS[motion])
        words = moving_caption(self._store.captions[row], MOTIONS[motion])
        return {"items": drawn_document({"frames": [as_png(frame) for frame in clip], "fps": FPS}, words)}
