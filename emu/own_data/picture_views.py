"""Pictures of a store as they are trained on: cropped and mirrored, and as documents to tokenize.

A caption that is drawn says of a view that it is cropped or mirrored. So a model learns from views without drawing them: asked for the
caption alone it draws the picture as it is (non-leaking augmentation, Karras et al. 2022, arXiv 2206.00364, appendix F.2).

A view is a function of the picture, its caption, the split's seed and the number of the view, so that tokenizing is the same in any process
and for any order of the files.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from emu.data.tokenizing import Record, SourceOptions
from emu.data.tokenizing.records import digest
from emu.lines import Place
from emu.own_data.picture_store import SPLIT, PictureStore
from emu.randomness import derive_key
from emu_tokenizers.pixels.transforms import from_bytes
from emu_tokenizers.training.pixel_loader import SampledPixels

SIDES = re.compile(
    r"\b(left|right|leftward|rightward|clockwise|counterclockwise|anticlockwise|east|west|eastern|western)(s|wards?|hand)?\b",
    re.IGNORECASE,
)
"""Words that are no longer true of a mirrored picture."""
MIRRORED, CROPPED = "mirrored", "cropped"
"""What stands before the captions of views."""
LEAST_CROP = 0.85
"""Smallest side of a crop, as a share of the picture's."""
PROMPT_WEIGHT = 0.2
"""Loss weight of what comes before the answer: a picture that is described, a caption that is drawn."""
ANSWER_WEIGHT = 4.0
"""Loss weight of a caption that describes a picture, which has ten times as many tokens."""
WIDEST_CROP, CROPPED_SHARE = 0.75, 0.5
"""Smallest side, and share, of the crops that a vision tokenizer is trained on: without whole pictures among them it is trained for others
than it is asked to code, without crops it learns few pictures by heart."""


def may_mirror(caption: str) -> bool:
    """Whether a caption says nothing of left and right."""
    return SIDES.search(caption) is None


def cropped(picture: np.ndarray, random: np.random.Generator, least: float = LEAST_CROP) -> np.ndarray:
    """A square of a picture (S, S, 3) uint8, whose side is a share of at least `least`, at the size of the picture."""
    size = picture.shape[0]
    side = size * float(random.uniform(least, 1))
    left, top = random.uniform(0, size - side, 2)
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, box))


def numbered_view(store: PictureStore, row: int, number: int) -> tuple[np.ndarray, str]:
    """View `number` of a picture, and what makes it one: 0 is the picture, 1 its mirror image where that may be, others are random.

    Returns:
        Pixels (S, S, 3) uint8, and words for a caption, "" of the picture itself.
    """
    picture, caption = np.asarray(store.pictures[row]), store.captions[row]
    if number == 0:
        return picture, ""
    if number == 1 and may_mirror(caption):
        return picture[:, ::-1], MIRRORED
    random = np.random.default_rng(derive_key("view", store.key(row), store.split["seed"], number))
    view = cropped(picture, random)
    return (view[:, ::-1], f"{CROPPED}, {MIRRORED}") if may_mirror(caption) and random.integers(2) else (view, CROPPED)


def drawn_document(shown: Mapping[str, Any], caption: str, told: str = "") -> list[Mapping[str, Any]]:
    """Items of a document that is drawn: a caption, which says what makes its picture or clip a view, and that."""
    return [{"caption": f"{told}: {caption}" if told else caption, "weight": PROMPT_WEIGHT}, shown]


def described_document(shown: Mapping[str, Any], caption: str) -> list[Mapping[str, Any]]:
    """Items of a document that is described: a picture or clip, and its caption."""
    return [{**shown, "weight": PROMPT_WEIGHT}, {"text": caption, "weight": ANSWER_WEIGHT}]


def as_png(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, 3) uint8, made for speed."""
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(written, "png", compress_level=1)
    return written.getvalue()


class StoredPictures:
    """Source of `emu tokenize`, `own-pictures:FOLDER/train` or `own-pictures:FOLDER/held_out`: documents of a store.

    Args:
        name: folder of a store and part of it.
        options: `order` says whether the caption or the picture comes first.
    """

    takes = frozenset({"order"})

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.name, self.options = name, options
        self.folder, self.part = Path(name).parent, Path(name).name
        self._store = PictureStore(self.folder)
        self._views = self._store.split["views"] if self.part == "train" else 1
        self._rows = self._store.rows(self.part)

    @classmethod
    def accepts(cls, name: str) -> bool:
        """Never: the kind is always named."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.options)

    @property
    def length(self) -> int:
        """Number of documents."""
        return self._views * len(self._rows)

    @property
    def fingerprint(self) -> str:
        """The split, and the order in a document."""
        return digest((self.folder / SPLIT).read_bytes(), self.part, self.options.order)

    def records(self) -> Iterator[Record]:
        """All first views, then all second ones, ..."""
        for view in range(self._views):
            for row in self._rows:
                yield Record(Place(self.part, row, f"view {view} of picture"), (row, view))

    def state(self, record: Record) -> bytes:
        """The number of the picture and of the view; a store is written once."""
        return json.dumps([self.options.order, *record.content]).encode()

    def read(self, record: Record) -> Mapping[str, Any]:
        """The document of a view."""
        row, view = record.content
        pixels, told = numbered_view(self._store, row, view)
        caption, image = self._store.captions[row], {"image": as_png(pixels)}
        if self.options.order.startswith("caption"):
            return {"items": drawn_document(image, caption, told)}
        return {"items": described_document(image, caption)}


def as_sample(pixels: np.ndarray) -> Tensor:
    """(3, H, W) in [-1, 1]: pixels (H, W, 3) uint8 as a vision tokenizer is trained on them."""
    return from_bytes(torch.from_numpy(pixels.copy())).permute(2, 0, 1).contiguous()


class StoredPixels(SampledPixels):
    """Pictures of a store to train a vision tokenizer on: random crops, mirrored; the held-out ones as they are to validate.

    Args:
        folder: of the store.
        images_per_step: crops in a step, over all ranks.
        seed: of every choice; a crop is a function of the seed, the step and its place in the step.
        steps_per_epoch: steps that Lightning calls an epoch.
        validation_pictures: held-out pictures at most.
    """

    def __init__(
        self,
        folder: str,
        images_per_step: int = 16,
        seed: int = 0,
        steps_per_epoch: int = 1000,
        validation_pictures: int = 256,
    ) -> None:
        super().__init__()
        self.store = PictureStore(Path(folder))
        self.images_per_step, self.seed, self.steps_per_epoch = images_per_step, seed, steps_per_epoch
        self.validation_pictures = validation_pictures

    free_options = ("folder", "validation_pictures")
    """Names of the arguments that may change when a run is resumed; the store is known by its `identity`."""

    def __repr__(self) -> str:
        return f"StoredPixels({self.images_per_step} crops a step, seed {self.seed})"

    @property
    def counts(self) -> dict[str, int]:
        """Pictures in a step, over all ranks."""
        return {"image": self.images_per_step}

    @property
    def identity(self) -> dict[str, Any]:
        """What crops are drawn from."""
        return {"split": digest((self.store.folder / SPLIT).read_bytes())}

    def picture(self, random: np.random.Generator) -> np.ndarray:
        """(size, size, 3) uint8: a training picture, drawn by `random`."""
        rows = self.store.rows("train")
        return np.asarray(self.store.pictures[rows[int(random.integers(len(rows)))]])

    def sample(self, kind: str, random: np.random.Generator) -> Tensor:
        """One crop (3, size, size) in [-1, 1], drawn by `random`."""
        pixels = self.picture(random)
        if random.random() < CROPPED_SHARE:
            pixels = cropped(pixels, random, WIDEST_CROP)
        # Mirrored whatever the caption says: the tokenizer reads no captions.
        pixels = pixels[:, ::-1] if random.integers(2) else pixels
        return as_sample(pixels)

    def val_dataloader(self) -> DataLoader:
        """The held-out pictures, once."""
        rows = self.store.rows("held_out")[: self.validation_pictures]
        pixels = from_bytes(torch.from_numpy(np.stack([self.store.pictures[row] for row in rows]))).permute(0, 3, 1, 2)
        batches = [{"image": some.contiguous()} for some in pixels.split(32)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
