"""Captioned clips of one size and length as folders of frames, divided into those to train on and those to measure on.

    train/000017/00.png ...     frames of a clip, likewise held_out/
    train.draw.jsonl            documents of caption and clip; train.describe.jsonl of clip and caption; likewise held_out
    split.json                  what was left out

Each clip keeps its own rate. As with pictures, the clips alone decide which are held out, and copies are not divided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
from emu.own_data.picture_views import PROMPT_WEIGHT
from emu_tokenizers.files import new_folder, write_file, write_json

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


class SplitClips:
    """Stage: reads a source of captioned clips into folders of frames.

    Args:
        source: see `emu.data.tokenizing.open_source`.
        size: side of the squares.
        frames: of a clip: of longer ones the first, of shorter ones the last is repeated.
        held_out: share of the clips to measure on.
        seed: of the choice.
        options: of the source, see `SourceOptions`.
    """

    def __init__(
        self,
        source: str,
        size: int,
        frames: int,
        held_out: float = 0.1,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if size < 8 or frames < 2 or not 0 < held_out < 1:
            raise ValueError(
                f"size is {size}, frames is {frames} and held_out is {held_out}; expected 8 or more, 2 or more, and a share below 1"
            )
        self.source, self.size, self.frames, self.held_out, self.seed = source, size, frames, held_out, seed
        self.options = SourceOptions(**(options or {}))

    def run(self, folder: Path) -> int:
        """Write the folders; returns 1 where clips were left out for being bad, see `emu.training.stages.JobStage`."""
        with new_folder(folder) as partial:
            keys, hashes, documents, left_out = self._read(partial)
            chosen, left_out.duplicates = unique_rows(keys)
            left_out.check_enough(len(chosen), self.source, "clip")
            groups = groups_of(np.array(hashes, np.uint8)[chosen])
            parts = divide([keys[row] for row in chosen], groups, self.held_out, self.seed)
            for name, places in zip(PARTS, parts, strict=True):
                self._write(partial, name, [documents[chosen[place]] for place in places])
            table = {name: len(places) for name, places in zip(PARTS, parts, strict=True)}
            write_json(partial / SPLIT, {**table, "left_out": left_out.counts, "first_bad": left_out.first_bad})
        left_out.say("clip", len(parts[0]), len(parts[1]))
        return 1 if left_out.bad else 0

    def _read(self, folder: Path) -> tuple[list[str], list[np.ndarray], list[tuple[Path, str, float]], LeftOut]:
        """Keys, hashes, (folder of frames, caption, rate), and what was left out."""
        keys, hashes, documents = list[str](), list[np.ndarray](), list[tuple[Path, str, float]]()
        left_out, source = LeftOut(), open_source(self.source, self.options)
        for clip, caption in left_out.good(source, lambda record: captioned_clip(source, record, self.size)):
            frames = clip.frames[: self.frames]
            frames = np.concatenate([frames, np.repeat(frames[-1:], self.frames - len(frames), axis=0)])
            place = folder / "read" / f"{len(keys):06d}"
            place.mkdir(parents=True)
            for number, frame in enumerate(frames):
                Image.fromarray(frame).save(place / f"{number:02d}.png", compress_level=1)
            keys.append(
                hashlib.sha256(frames.tobytes() + f"{clip.fps} {caption}".encode("utf-8", "replace")).hexdigest()
            )
            # Of a clip that goes on from another one's end the first and the last frame differ.
            hashes.append(np.concatenate([small_hash(frames[0]), small_hash(frames[-1])]))
            documents.append((place, caption, clip.fps))
        return keys, hashes, documents, left_out

    def _write(self, folder: Path, part: str, documents: list[tuple[Path, str, float]]) -> None:
        """Move clips into the folder of their part, numbered anew, and write their documents."""
        lines: dict[str, list[str]] = {"draw": [], "describe": []}
        (folder / part).mkdir()
        for number, (place, caption, fps) in enumerate(documents):
            place.rename(folder / part / f"{number:06d}")
            names = [f"{part}/{number:06d}/{frame:02d}.png" for frame in range(self.frames)]
            clip = {"frames": names, "fps": fps}
            drawn = [{"caption": caption, "weight": PROMPT_WEIGHT}, clip]
            described = [{**clip, "weight": PROMPT_WEIGHT}, caption]
            for task, items in (("draw", drawn), ("describe", described)):
                lines[task].append(json.dumps({"items": items}) + "\n")
        for task, written in lines.items():
            write_file(folder / f"{part}.{task}.jsonl", "".join(written).encode())
