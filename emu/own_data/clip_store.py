"""Captioned clips of one size and length as folders of frames, divided into those to train on and those to measure on.

    train/000017/00.png ...     frames of a clip, likewise held_out/
    train/000017-2/00.png ...   the same clip cropped, as its second further view; captions of views say that they are views
    train.draw.jsonl            documents of caption and clip; train.describe.jsonl of clip and caption; likewise held_out
    split.json                  {"train": N, "held_out": N, "views": V, "left_out": {reason: count}, "named": {reason: [file: message]}}

The documents of the clips themselves come first; those of all second views follow, and so on. Each clip keeps its own rate. As with
pictures, the clips alone decide which are held out, and copies are not divided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from emu.data.tokenizing import Record, RecordSource, SourceOptions, open_source
from emu.data.tokenizing.named_files import read_clip
from emu.documents import Video
from emu.own_data.captioned_records import LeftOut, with_caption
from emu.own_data.near_duplicates import groups_of, small_hash
from emu.own_data.picture_store import SPLIT, divide, unique_rows
from emu.own_data.picture_views import CROPPED, MIRRORED, cropped, described_document, drawn_document, may_mirror
from emu.randomness import derive_key
from emu_tokenizers.files import new_folder, write_file, write_json
from emu_tokenizers.pixels.images import as_arrays, open_image

PARTS = ("train", "held_out")


def captioned_clip(source: RecordSource, record: Record, size: int | None = None) -> tuple[Video, str]:
    """The clip and the caption of a record.

    Args:
        source: of the record.
        record: a document of one clip and one text.
        size: side of the square that the middle of each frame is resized to; None for its own size.

    Raises:
        Exception: of any kind, where it is bad.
    """
    item, caption = with_caption(source.read(record).get("items", ()), ("video", "frames"), "clip")
    return read_clip(item, source.folder, None if size is None else (size, size)), caption


def numbered_clip(frames: np.ndarray, caption: str, key: str, number: int) -> tuple[np.ndarray, str]:
    """View `number` (1 or more) of a clip (T, S, S, 3) uint8, all frames alike, and what makes it one; see `numbered_view` of pictures."""
    if number == 1 and may_mirror(caption):
        return frames[:, :, ::-1], MIRRORED
    seed = derive_key("view", key, number)
    view = np.stack([cropped(frame, np.random.default_rng(seed)) for frame in frames])
    mirrored = may_mirror(caption) and np.random.default_rng((seed, 1)).integers(2)
    return (view[:, :, ::-1], f"{CROPPED}, {MIRRORED}") if mirrored else (view, CROPPED)


@dataclass(frozen=True)
class ReadClip:
    """A clip that was read.

    Attributes:
        folder: of its frames.
        caption: of it.
        fps: its rate.
        key: digest of all of it.
    """

    folder: Path
    caption: str
    fps: float
    key: str

    @property
    def frames(self) -> np.ndarray:
        """(T, S, S, 3) uint8."""
        return as_arrays([open_image(file) for file in sorted(self.folder.iterdir())])


class SplitClips:
    """Stage: reads a source of captioned clips into folders of frames.

    Args:
        source: see `emu.data.tokenizing.open_source`.
        size: side of the squares.
        frames: of a clip: of longer ones the first, of shorter ones the last is repeated.
        held_out: share of the clips to measure on.
        views: how often a training clip is written, each time cropped or mirrored otherwise.
        seed: of the choice.
        options: of the source, see `SourceOptions`.
    """

    def __init__(
        self,
        source: str,
        size: int,
        frames: int,
        held_out: float = 0.1,
        views: int = 1,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if size < 8 or frames < 2 or views < 1 or not 0 < held_out < 1:
            raise ValueError(
                f"size is {size}, frames is {frames}, views is {views} and held_out is {held_out}; expected 8, 2 and 1 or more, and a "
                "share below 1"
            )
        self.source, self.size, self.frames, self.held_out = source, size, frames, held_out
        self.views, self.seed = views, seed
        self.options = SourceOptions(**(options or {}))

    def run(self, folder: Path) -> int:
        """Write the folders; returns 1 where clips were left out for being bad, see `emu.training.stages.JobStage`."""
        with new_folder(folder) as partial:
            clips, hashes, left_out = self._read(partial)
            chosen, left_out.duplicates = unique_rows([clip.key for clip in clips])
            left_out.check_enough(len(chosen), self.source, "clip")
            groups = groups_of(np.array(hashes, np.uint8)[chosen])
            parts = divide([clips[row].key for row in chosen], groups, self.held_out, self.seed)
            for name, places, views in zip(PARTS, parts, (self.views, 1), strict=True):
                self._write(partial, name, [clips[chosen[place]] for place in places], views)
            table = {name: len(places) for name, places in zip(PARTS, parts, strict=True)} | {"views": self.views}
            write_json(partial / SPLIT, {**table, "left_out": left_out.counts, "named": left_out.named})
        left_out.say("clip", len(parts[0]), len(parts[1]), folder / SPLIT)
        return 1 if left_out.bad else 0

    def _read(self, folder: Path) -> tuple[list[ReadClip], list[np.ndarray], LeftOut]:
        """Clips, their hashes, and what was left out."""
        clips, hashes = list[ReadClip](), list[np.ndarray]()
        left_out, source = LeftOut(), open_source(self.source, self.options)
        for clip, caption in left_out.good(source, lambda record: captioned_clip(source, record, self.size)):
            frames = clip.frames[: self.frames]
            frames = np.concatenate([frames, np.repeat(frames[-1:], self.frames - len(frames), axis=0)])
            place = folder / "read" / f"{len(clips):06d}"
            write_frames(place, frames)
            told = f"{clip.fps} {caption}".encode("utf-8", "replace")
            clips.append(ReadClip(place, caption, clip.fps, hashlib.sha256(frames.tobytes() + told).hexdigest()))
            # Of a clip that goes on from another one's end the first and the last frame differ.
            hashes.append(np.concatenate([small_hash(frames[0]), small_hash(frames[-1])]))
        return clips, hashes, left_out

    def _write(self, folder: Path, part: str, clips: list[ReadClip], views: int) -> None:
        """Write all views of clips into the folder of their part, numbered anew, and their documents."""
        lines: dict[str, list[str]] = {"draw": [], "describe": []}
        (folder / part).mkdir()
        for view in range(views):
            for number, one in enumerate(clips):
                place, told = folder / part / (f"{number:06d}-{view}" if view else f"{number:06d}"), ""
                if view == 0:
                    one.folder.rename(place)
                else:
                    here = replace(one, folder=folder / part / f"{number:06d}")
                    frames, told = numbered_clip(here.frames, one.caption, one.key, view)
                    write_frames(place, frames)
                clip = {
                    "frames": [f"{part}/{place.name}/{frame:02d}.png" for frame in range(self.frames)],
                    "fps": one.fps,
                }
                drawn, described = drawn_document(clip, one.caption, told), described_document(clip, one.caption)
                for task, items in (("draw", drawn), ("describe", described)):
                    lines[task].append(json.dumps({"items": items}) + "\n")
        for task, written in lines.items():
            write_file(folder / f"{part}.{task}.jsonl", "".join(written).encode())


def write_frames(folder: Path, frames: np.ndarray) -> None:
    """Write frames (T, S, S, 3) uint8 into a new folder."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(np.ascontiguousarray(frame)).save(folder / f"{number:02d}.png", compress_level=1)
