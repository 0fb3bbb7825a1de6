"""The data of the bundled models, as examples for `emu evaluate`: digits, and people in five skin tones, animals and things."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emu.data.tokenizing import SourceOptions, open_source
from emu.data.tokenizing.document_reader import DocumentReader
from emu.demo.digit_captions import CAPTIONS, DIGIT_NAMES, image_caption
from emu.demo.digits import SHIFTS, Digits, draw_stills, load_digits, to_rgb_pixels
from emu.demo.judge import DigitJudge
from emu.demo.measure import grey
from emu.demo.pictures.emoji import StoreEmoji
from emu.demo.pictures.tone_judge import ToneJudge
from emu.demo.tasks import TASKS, DigitDocuments, encode_digits
from emu.documents import CodeSegment, TextSegment, TokenDocument
from emu.evaluation.suites.training_examples import HELD_OUT, TRAINED
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.own_data.picture_store import PictureStore

BATCH = 256


class _Usual(random.Random):
    """Chance that leaves no caption out and takes the first wording."""

    def random(self) -> float:
        return 0.99

    def randrange(self, *bounds: int) -> int:  # type: ignore[override]
        return 0


class DigitExamples:
    """Handwritten digits in the five tasks of the demo: centred where they are held out, in nine places where they were trained on.

    Args:
        tokenizer: of the model.

    Raises:
        ValueError: it has no vision tokenizer.
    """

    tasks = tuple(TASKS)

    def __init__(self, tokenizer: MultimodalTokenizer) -> None:
        if tokenizer.vision is None:
            raise ValueError("the model has no vision tokenizer; handwritten digits are pictures and clips")
        self.tokenizer, self.vision = tokenizer, tokenizer.vision.eval()
        self.digits: dict[str, Digits] = dict(zip((TRAINED, HELD_OUT), load_digits(), strict=True))
        self._encoded: dict[tuple[str, int], Mapping[str, DigitDocuments]] = {}

    def documents(self, task: str, part: str, limit: int | None = None) -> list[TokenDocument]:
        """See `emu.evaluation.suites.training_examples.TrainingExamples`."""
        if part == TRAINED and task == "text_to_image":
            return self._trained_pictures(limit)
        digits = self.digits[part]
        count = len(digits) if limit is None else min(limit, len(digits))
        source = self._sources(part, count)[task]
        # Directions take turns, so that a limit leaves none of them out.
        return [source.compose(digit, digit % source.per_digit, _Usual()) for digit in range(count)]

    def _sources(self, part: str, count: int) -> Mapping[str, DigitDocuments]:
        if (part, count) not in self._encoded:
            encoded = encode_digits(self.vision, self.digits[part].first(count), 0, SHIFTS[:1])
            self._encoded[part, count] = {name: task(encoded, self.tokenizer) for name, task in TASKS.items()}
        return self._encoded[part, count]

    @torch.no_grad()
    def _trained_pictures(self, limit: int | None) -> list[TokenDocument]:
        """Every training digit in every place that training showed."""
        digits = self.digits[TRAINED] if limit is None else self.digits[TRAINED].first(-(-limit // len(SHIFTS)))
        found = []
        for shift in SHIFTS:
            for part in draw_stills(digits.images, shift).split(BATCH):
                found.append(self.vision.encode(to_rgb_pixels(part).to(self.vision.dtype)))
        layout, codes = self.tokenizer.layout, torch.cat(found).cpu()
        words = [
            TextSegment(torch.tensor(layout.encode_text(image_caption(label))), 0.0)
            for label in range(len(DIGIT_NAMES))
        ]
        labels = digits.labels.tolist() * len(SHIFTS)
        return [
            layout.build([words[label], CodeSegment("image", grid)])
            for label, grid in zip(labels[:limit], codes, strict=False)
        ]

    @cached_property
    def _judge(self) -> DigitJudge:
        return DigitJudge(self.digits[TRAINED])

    def grade(self, captions: Sequence[str], pixels: np.ndarray) -> np.ndarray:
        """Whether the digit that a classifier of real digits sees is the one that the caption names."""
        labels = {form.format(name): number for number, name in enumerate(DIGIT_NAMES) for form in CAPTIONS}
        asked = torch.tensor(numbers_of(captions, labels, "digits"))
        return (self._judge(grey([Image.fromarray(picture) for picture in pixels])) == asked).numpy()


class EmojiExamples:
    """The pictures of `emu demo pictures`, drawn, described, recoloured and set in motion.

    Args:
        tokenizer: of the model.
    """

    SOURCES: Mapping[str, tuple[str, SourceOptions]] = {
        "text_to_image": ("own-pictures", SourceOptions(order="caption,image")),
        "image_to_text": ("own-pictures", SourceOptions(order="image,caption")),
        "image_and_text_to_image": ("tone-changes", SourceOptions()),
        "text_to_video": ("motions", SourceOptions()),
    }
    tasks = tuple(SOURCES)

    def __init__(self, tokenizer: MultimodalTokenizer) -> None:
        self.reader = DocumentReader(tokenizer, Path())
        self._held = tempfile.TemporaryDirectory(prefix="emu-examples-")

    @cached_property
    def folder(self) -> Path:
        """A store of the pictures, for as long as these examples are held."""
        folder = Path(self._held.name) / "pictures"
        StoreEmoji(views=2).write(folder)
        return folder

    def documents(self, task: str, part: str, limit: int | None = None) -> list[TokenDocument]:
        """See `emu.evaluation.suites.training_examples.TrainingExamples`."""
        kind, options = self.SOURCES[task]
        source = open_source(f"{kind}:{self.folder / part}", options)
        records = list(source.records())
        if limit is not None and limit < len(records):
            records = [records[place * len(records) // limit] for place in range(limit)]
        drafts, batches = [self.reader.draft(source.read(record)) for record in records], self.reader.batches()
        for piece in (piece for draft in drafts for piece in draft.pieces if piece.pixels is not None):
            batches.add(piece)
        batches.flush()
        return [self.reader.finish(draft).document for draft in drafts]

    @cached_property
    def _judge(self) -> ToneJudge:
        return ToneJudge(PictureStore(self.folder))

    def grade(self, captions: Sequence[str], pixels: np.ndarray) -> np.ndarray:
        """Whether of all real pictures the one with this caption is the nearest."""
        rows = {caption: row for row, caption in enumerate(self._judge.store.captions)}
        return np.asarray(self._judge.is_nearest(pixels, numbers_of(captions, rows, "pictures")))


def numbers_of(captions: Sequence[str], known: Mapping[str, int], data: str) -> list[int]:
    """What captions name, by number.

    Raises:
        ValueError: a caption is not one of this data, as where the model's text tokenizer cannot write it.
    """
    unknown = [caption for caption in captions if caption not in known]
    if unknown:
        raise ValueError(
            f"the caption {unknown[0]!r} is none of {data!r}, whose pictures this grader knows; name the data that the model was trained on"
        )
    return [known[caption] for caption in captions]
