"""What a model of one's own pictures can do: how near its drawings are to the pictures that were asked for, and to what it learned from.

Drawings are compared at 16x16 pixels. The picture that was asked for is held out; a copy of a training picture is never the nearest to it,
so it never counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu.data.loader import EvaluationLoader
from emu.data.shards import TokenShards
from emu.model.scoring import token_losses
from emu.own_data.picture_store import PictureStore
from emu.pipeline import Emu
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.pixels.images import as_arrays
from emu_tokenizers.pixels.metrics import CodeCounter, psnr
from emu_tokenizers.pixels.transforms import from_bytes, to_frames

SIDE = 16
"""Pixels at which pictures are compared."""
BATCH = 64
COMPARED = 4096
"""Pictures that others are compared with at a time."""


@dataclass
class Measured:
    """Figures, and what they were measured on.

    Attributes:
        metrics: by name.
        pictures: uint8 (N, H, W, 3) arrays by name.
        texts: by name.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def add(self, *parts: Measured) -> None:
        """Take in what others found; of equal names the last counts."""
        for part in parts:
            self.metrics |= part.metrics
            self.pictures |= part.pictures
            self.texts |= part.texts


def small(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """(N, 768) uint8: N pictures (H, W, 3) uint8 at 16x16, taken one by one."""
    resized = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX)) for one in pictures]
    return np.stack(resized).reshape(len(resized), -1)


def distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(N, M) float32: root mean square differences, in levels of 255, of (N, D) and (M, D)."""
    ours, found = ours.astype(np.float32), np.empty((len(ours), len(theirs)), np.float32)
    for start in range(0, len(theirs), COMPARED):  # as uint8 a hundred thousand of them take a quarter of the memory
        some = theirs[start : start + COMPARED].astype(np.float32)
        squares = (ours**2).sum(1)[:, None] + (some**2).sum(1)[None] - 2 * ours @ some.T
        found[:, start : start + COMPARED] = np.sqrt(np.maximum(squares, 0) / ours.shape[1])
    return found


@torch.no_grad()
def measure_reconstruction(vision: VisionTokenizer, store: PictureStore) -> Measured:
    """Held-out pictures after their codes, and how many kinds of codes they use."""
    counter, rebuilt, quality = CodeCounter(vision.codebook_sizes), [], []
    rows = store.rows("held_out")
    for start in range(0, len(rows), BATCH):
        originals = np.stack([store.pictures[row] for row in rows[start : start + BATCH]])
        pixels = from_bytes(torch.from_numpy(originals)).permute(0, 3, 1, 2).contiguous()
        codes = vision.encode(pixels)
        counter.add(codes)
        decoded = vision.decode(codes)
        quality.append(psnr(decoded, pixels).flatten())
        rebuilt.append(to_frames(decoded))
    used = counter.measure()
    metrics = {
        "reconstruction_psnr": round(float(torch.cat(quality).mean()), 3),
        "codebook_use": round(used.use, 4),
        "codebook_perplexity": round(used.perplexity, 1),
        "code_bits_per_pixel": round(math.log2(vision.codebook_sizes[0]) / vision.spatial_factor**2, 4),
    }
    return Measured(metrics, {"reconstructions": np.concatenate(rebuilt)})


@torch.no_grad()
def measure_bits(emu: Emu, held_out: str) -> Measured:
    """Bits a pixel that the model needs for the codes of held-out pictures or clips, given their captions."""
    shards = TokenShards(held_out)
    vision = emu.tokenizer.vision
    assert vision is not None
    first, count = emu.tokenizer.vocabulary.ranges["vision"]
    nats = codes = 0.0
    for batch in EvaluationLoader({"draw": shards}, shards.max_length, documents_per_batch=BATCH):
        losses = token_losses(emu.model, batch)
        is_code = (batch.input_ids >= first) & (batch.input_ids < first + count) & (batch.segment_ids > 0)
        nats += float(losses[is_code].sum())
        codes += float(is_code.sum())
    bits = nats / math.log(2) / max(1.0, codes)
    pixels = vision.spatial_factor**2 * vision.temporal_factor
    return Measured({"held_out_bits_per_code": round(bits, 4), "held_out_bits_per_pixel": round(bits / pixels, 5)})


def measure_drawings(emu: Emu, store: PictureStore, rows: Sequence[int], seed: int) -> Measured:
    """Drawings for the captions of held-out pictures, beside two baselines: the picture of the nearest training caption, and the mean."""
    captions = [store.captions[row] for row in rows]
    size = store.pictures.shape[1:3]
    made = emu.generate_images(captions, size=size, seed=seed)
    drawn = as_arrays([one.image for one in made])
    train, held_out = store.rows("train"), store.rows("held_out")
    every = [*train, *held_out]
    real = RealOnes(small(store.pictures[row] for row in every), [store.captions[row] for row in every], len(train))
    asked = small(store.pictures[row] for row in rows)
    metrics, places = compare_drawings(small(drawn), asked, captions, real, "picture")
    pictures = {
        "drawn": drawn,
        "asked": np.asarray(store.pictures)[list(rows)],
        "nearest": np.stack([store.pictures[train[place]] for place in places]),
    }
    return Measured(metrics, pictures, {"asked": captions})


@dataclass(frozen=True)
class RealOnes:
    """Real pictures or clips that what a model makes is compared with.

    Attributes:
        small: (N, D) uint8 as `small` makes them, training ones first.
        captions: N of them.
        train: how many are training ones.
    """

    small: np.ndarray
    captions: Sequence[str]
    train: int

    def nearest_training(self, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the training ones that are nearest to (N, D), and the distances: (N,) each."""
        found = distances(ours, self.small[: self.train])
        return found.argmin(1), found.min(1)

    def with_nearest_captions(self, captions: Sequence[str]) -> list[int]:
        """Places of the training ones whose captions share the largest part of their words with these."""
        return [nearest_caption(caption, self.captions[: self.train]) for caption in captions]

    def nearest_is_asked(self, ours: np.ndarray, captions: Sequence[str]) -> float:
        """Share of (N, D) whose nearest real one, training ones included, has the caption that was asked for."""
        nearest = distances(ours, self.small).argmin(1)
        return round(float(np.mean([self.captions[i] == asked for i, asked in zip(nearest, captions, strict=True)])), 4)


def mean_distance(ours: np.ndarray, asked: np.ndarray) -> float:
    """Mean over N of the root mean square differences, in levels of 255, of (N, D), or (1, D), from (N, D)."""
    return round(float(np.sqrt(((ours - asked.astype(np.float32)) ** 2).mean(1)).mean()), 2)


def compare_drawings(
    ours: np.ndarray, asked: np.ndarray, captions: Sequence[str], real: RealOnes, kind: str
) -> tuple[dict[str, Any], np.ndarray]:
    """Drawings beside two baselines, the training one with the nearest caption and the mean one.

    Args:
        ours: (N, D) uint8, as `small` makes them.
        asked: (N, D), the held-out ones whose captions were drawn.
        captions: N of them.
        real: all real ones.
        kind: "picture" or "clip", in the names of the figures.

    Returns:
        Figures, and (N,) places of the training ones that are nearest to the drawings.
    """
    train = real.small[: real.train]
    places, to_train = real.nearest_training(ours)
    metrics = {
        "asked_is_nearest_of_all": real.nearest_is_asked(ours, captions),
        "distance_to_asked": mean_distance(ours, asked),
        "distance_to_asked_nearest_caption": mean_distance(train[real.with_nearest_captions(captions)], asked),
        f"distance_to_asked_mean_{kind}": mean_distance(train.mean(0, keepdims=True), asked),
        "distance_to_nearest_training": round(float(to_train.mean()), 2),
        "distance_of_real_to_nearest_training": round(float(real.nearest_training(asked)[1].mean()), 2),
        "drawn": len(captions),
    }
    return metrics, places


def nearest_caption(caption: str, others: Sequence[str]) -> int:
    """The number of the caption that shares the largest part of its words with this one."""
    return int(np.argmax([shared(caption, one) for one in others]))


def measure_descriptions(emu: Emu, store: PictureStore, rows: Sequence[int]) -> Measured:
    """Captions that the model writes for held-out pictures."""
    captions = [store.captions[row] for row in rows]
    documents = [[Image.fromarray(np.asarray(store.pictures[row]))] for row in rows]
    found = describe(emu, documents, captions)
    found.metrics["described"] = len(rows)
    return found


def describe(emu: Emu, documents: Sequence[Sequence[Any]], captions: Sequence[str]) -> Measured:
    """What the model writes for documents of held-out pictures or clips, beside their captions."""
    room = max(len(emu.tokenizer.text.encode(caption)) for caption in captions) + 8
    texts = [text.strip() for text in emu.generate_text(documents, max_new_tokens=room)]
    return Measured(match(texts, captions), {}, {"described": texts, "described_real": list(captions)})


def match(texts: Sequence[str], captions: Sequence[str]) -> dict[str, float]:
    """Share of texts that are the very caption, and the mean share of words that they have in common."""
    pairs = list(zip(texts, captions, strict=True))
    return {
        "described_exactly": round(float(np.mean([text == caption for text, caption in pairs])), 4),
        "described_words": round(float(np.mean([shared(text, caption) for text, caption in pairs])), 4),
    }


def shared(text: str, caption: str) -> float:
    """Words that two texts share, as a share of all their words."""
    ours, theirs = set(text.casefold().split()), set(caption.casefold().split())
    return len(ours & theirs) / max(1, len(ours | theirs))
