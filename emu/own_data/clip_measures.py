"""What a model of one's own clips can do, each task beside what it aims at and beside two answers that need no model.

    text to clip      aims at the clip that was asked for    the training clip with the nearest caption; the mean clip
    continuation      aims at the clip's own second half     the last given frame, repeated; the half of the nearest caption's clip
    clip to text      aims at the clip's own caption         the caption of the training clip that looks nearest; the commonest caption

Clips are compared frame by frame at 16x16 pixels. No codes can do better than a clip after its codes: that distance stands beside.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu.documents import Video
from emu.own_data.picture_measures import (
    Measured,
    RealOnes,
    compare_drawings,
    describe,
    match,
    mean_distance,
    small,
)
from emu.own_data.picture_store import SPLIT
from emu.pipeline import Emu
from emu_tokenizers.files import read_json
from emu_tokenizers.pixels.images import as_arrays
from emu_tokenizers.pixels.metrics import CodeCounter, psnr
from emu_tokenizers.pixels.transforms import from_bytes, to_frames

COMPARED = 2000
"""Training clips that others are compared with at most, spread over all of them."""


@dataclass(frozen=True)
class StoredClips:
    """The clips of a folder that `SplitClips` wrote.

    Args:
        folder: of the clips.
        most: of the held-out clips that are drawn, gone on with and described.
    """

    folder: Path
    most: int

    def documents(self, part: str) -> list[tuple[str, Mapping[str, Any]]]:
        """Captions and clips, as files and a rate, of "train" or "held_out"; not the cropped and mirrored views."""
        lines = (
            (self.folder / f"{part}.draw.jsonl").read_text("utf-8").splitlines()[: read_json(self.folder / SPLIT)[part]]
        )
        return [(caption["caption"], clip) for caption, clip in (json.loads(line)["items"] for line in lines)]

    def read(self, clip: Mapping[str, Any]) -> Video:
        """The frames of a clip."""
        return Video.open([self.folder / name for name in clip["frames"]], fps=clip["fps"])

    @cached_property
    def held_out(self) -> tuple[list[Video], list[str]]:
        """All held-out clips and their captions."""
        documents = self.documents("held_out")
        return [self.read(clip) for _, clip in documents], [caption for caption, _ in documents]

    @cached_property
    def train(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The training clips that others are compared with."""
        documents = self.documents("train")
        return documents[:: -(-len(documents) // COMPARED)]

    @cached_property
    def chosen(self) -> list[int]:
        """Places of the held-out clips that are drawn, gone on with and described, spread over all of them."""
        count = len(self.held_out[0])
        return list(range(0, count, max(1, count // self.most)))[: self.most]

    @property
    def asked(self) -> tuple[list[Video], list[str]]:
        """The chosen clips and their captions."""
        clips, captions = self.held_out
        return [clips[place] for place in self.chosen], [captions[place] for place in self.chosen]

    @cached_property
    def real(self) -> RealOnes:
        """Training and held-out clips, to compare with."""
        train = [small_clips(self.read(clip).frames[None]) for _, clip in self.train]
        clips, captions = self.held_out
        ours = small_clips(np.stack([clip.frames for clip in clips]))
        return RealOnes(
            np.concatenate([*train, ours]), [*(caption for caption, _ in self.train), *captions], len(train)
        )

    def training_frames(self, places: Sequence[int] | np.ndarray) -> np.ndarray:
        """(N, T, H, W, 3) uint8: training clips by their places in `train`."""
        return np.stack([self.read(self.train[place][1]).frames for place in places])


def small_clips(clips: np.ndarray) -> np.ndarray:
    """(N, T * 768) uint8: clips (N, T, H, W, 3) uint8 at 16x16."""
    return small(clips.reshape(-1, *clips.shape[2:])).reshape(len(clips), -1)


@torch.no_grad()
def measure_clips(emu: Emu, clips: Sequence[Video]) -> Measured:
    """Quality of held-out clips after their codes, and how many kinds of codes they use."""
    vision = emu.tokenizer.vision
    assert vision is not None
    counter, quality, rebuilt = CodeCounter(vision.codebook_sizes), [], []
    for clip in clips:
        pixels = from_bytes(torch.from_numpy(clip.frames)).permute(0, 3, 1, 2)[None].contiguous()
        codes = vision.encode(pixels)
        counter.add(codes)
        decoded = vision.decode(codes)[:, : pixels.shape[1]]
        quality.append(float(psnr(decoded, pixels).mean()))
        rebuilt.append(to_frames(decoded)[0])
    pixels_a_code = vision.spatial_factor**2 * vision.temporal_factor
    metrics = {
        "reconstruction_psnr": round(float(np.mean(quality)), 3),
        "codebook_use": round(counter.measure().use, 4),
        "code_bits_per_pixel": round(math.log2(vision.codebook_sizes[0]) / pixels_a_code, 4),
        "held_out": len(clips),
    }
    return Measured(metrics, {"rebuilt": np.stack(rebuilt)})


def generated(emu: Emu, clips: Sequence[Video], captions: Sequence[str], given: int, seed: int) -> np.ndarray:
    """(N, T, H, W, 3) uint8: a clip for each caption, at the rate of the real one; `given` frames of that begin it."""
    made: dict[int, np.ndarray] = {}
    options: dict[str, Any] = {"size": clips[0].frames.shape[1:3], "frames": len(clips[0]), "seed": seed}
    for rate in sorted({clip.fps for clip in clips}):
        places = [place for place, clip in enumerate(clips) if clip.fps == rate]
        begun = [Video(clips[place].frames[:given], rate) for place in places] if given else None
        found = emu.generate_videos([captions[place] for place in places], first_frames=begun, fps=rate, **options)
        for place, one in zip(places, found, strict=True):
            made[place] = as_arrays(one.frames)
    return np.stack([made[place] for place in range(len(clips))])


def measure_drawn(emu: Emu, stored: StoredClips, rebuilt: np.ndarray, seed: int) -> Measured:
    """Clips for held-out captions.

    Args:
        rebuilt: (N, T, H, W, 3), the chosen clips after their codes.
    """
    clips, captions = stored.asked
    drawn = generated(emu, clips, captions, 0, seed)
    real, asked = stored.real, small_clips(np.stack([clip.frames for clip in clips]))
    metrics, nearest = compare_drawings(small_clips(drawn), asked, captions, real, "clip")
    train = real.small[: real.train]
    metrics |= {
        "asked_is_nearest_of_all_nearest_caption": real.nearest_is_asked(
            train[real.with_nearest_captions(captions)], captions
        ),
        "distance_to_asked_after_codes": mean_distance(small_clips(rebuilt), asked),
        "compared_training_clips": real.train,
    }
    pictures = {
        "drawn": drawn,
        "nearest": stored.training_frames(nearest),
        "asked": np.stack([clip.frames for clip in clips]),
        "nearest_to_asked": stored.training_frames(real.nearest_training(asked)[0]),
    }
    return Measured(metrics, pictures, {"asked": captions})


def measure_continued(emu: Emu, stored: StoredClips, rebuilt: np.ndarray, seed: int) -> Measured:
    """Second halves of held-out clips, given the first ones and the caption.

    Args:
        rebuilt: (N, T, H, W, 3), the chosen clips after their codes.
    """
    clips, captions = stored.asked
    given = max(1, len(clips[0]) // 2)
    continued = generated(emu, clips, captions, given, seed)
    frames = np.stack([clip.frames for clip in clips])
    asked = small_clips(frames[:, given:])
    still = np.repeat(frames[:, given - 1 : given], frames.shape[1] - given, axis=1)
    copied = stored.training_frames(stored.real.with_nearest_captions(captions))[:, given:]
    metrics = {
        "continued_distance": mean_distance(small_clips(continued[:, given:]), asked),
        "continued_distance_last_frame": mean_distance(small_clips(still), asked),
        "continued_distance_nearest_caption": mean_distance(small_clips(copied), asked),
        "continued_distance_after_codes": mean_distance(small_clips(rebuilt[:, given:]), asked),
    }
    return Measured(metrics, {"continued": continued})


def measure_told(emu: Emu, stored: StoredClips) -> Measured:
    """Captions that the model writes for held-out clips."""
    clips, captions = stored.asked
    written = describe(emu, [[clip] for clip in clips], captions)
    names = [caption for caption, _ in stored.train]
    places, _ = stored.real.nearest_training(small_clips(np.stack([clip.frames for clip in clips])))
    counts = Counter(names)
    commonest = max(sorted(counts), key=counts.__getitem__)
    for name, told in (
        ("nearest_clip", [names[place] for place in places]),
        ("commonest", [commonest] * len(captions)),
    ):
        written.metrics |= {f"{key}_{name}": value for key, value in match(told, captions).items()}
    return written
