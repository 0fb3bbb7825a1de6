"""Damaged pictures and clips of every format: a problem that names the file, or content; nothing else, and bounded memory."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu.documents import Video
from emu_tokenizers.pixels.clip_process import clip_process
from emu_tokenizers.pixels.images import BadPicture, open_image, to_rgb
from emu_tokenizers.pixels.sources import clip_sources, picture_sources
from emu_tokenizers.pixels.videos import VideoFile
from tests.media_files import ANIMATIONS, PICTURES, VIDEOS, WRITERS, damaged, scene, whole

GIB = 1 << 30


def opened_by_the_user(file: Path) -> Image.Image | None:
    try:
        image = Image.open(file)
    except Exception:  # of the user's own call
        return None
    with image:
        return to_rgb(image)


READERS = {
    "open_image": lambda file: open_image(file),
    "open_image of bytes": lambda file: open_image(file.read_bytes(), name=file.name),
    "to_rgb": opened_by_the_user,
    "num_frames": lambda file: VideoFile(file, file.name).num_frames,
    "read of bytes": lambda file: VideoFile(file.read_bytes(), file.name).read(3, 2),
    "Video.open": lambda file: Video.open(file, frames=16),
    "Video.open at a rate": lambda file: Video.open([file], fps=5, start=0.1, frames=4, size=(16, 16)),
    "picture_sources": lambda file: picture_sources(file)[0].read(),
    "clip_sources": lambda file: clip_sources(file)[0].read(1, 4),
}


def memory(pid: int, what: str) -> int:
    """Resident bytes of a process: now ("VmRSS") or at most so far ("VmHWM")."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(what)), 0)


def read_damaged(folder: Path, count: int, readers: dict) -> Counter[str]:
    """Give `count` damaged files to each reader; returns how often what came out."""
    found: Counter[str] = Counter()
    random = np.random.default_rng(11)
    names = list(WRITERS)
    start, most, child = memory("self", "VmRSS"), 0, 0
    for number in range(count):
        name = names[int(random.integers(len(names)))]
        file = folder / f"{number}-{name}"
        file.write_bytes(damaged(whole(name), random))
        for reader, read in readers.items():
            try:
                read(file)
                found["read"] += 1
            except (BadPicture, FileNotFoundError) as error:
                assert file.name in str(error), (reader, error)
                found[getattr(error, "reason", "gone")] += 1
        process = clip_process._process
        if process is not None and process.poll() is None:
            child = max(child, memory(process.pid, "VmHWM"))
        most = max(most, memory("self", "VmHWM") - start)
        file.unlink()
    print(dict(found), f"most memory above the start: {most >> 20} MiB, of the process that decodes: {child >> 20} MiB")
    assert most < GIB and child < GIB + (128 << 20)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_are_problems_that_name_them_or_content(tmp_path, count):
    pytest.importorskip("av")
    found = read_damaged(tmp_path, count, READERS)
    assert sum(found.values()) == count * len(READERS)
    assert found["read"] > 0 and found["damaged"] > 0


@pytest.mark.parametrize("name", [*PICTURES, *ANIMATIONS])
def test_whole_pictures_of_every_format_are_read(name):
    if name in ANIMATIONS:
        assert len(VideoFile(whole(name), name).read(0, 9)) == 6
        return
    image = open_image(whole(name))
    assert image.mode == "RGB" and image.size == ((1024, 1024) if name == "rgb.icns" else (32, 32))  # of its largest


@pytest.mark.parametrize("name", VIDEOS)
def test_whole_videos_of_every_format_are_read(tmp_path, name):
    pytest.importorskip("av")
    (tmp_path / name).write_bytes(whole(name))
    clip = Video.open(tmp_path / name)
    assert (len(clip), VideoFile(tmp_path / name, name).num_frames, clip.fps) == (12, 12, 25)
    assert (
        np.abs(clip.frames[9, 20:44, 24:40].astype(int) - np.asarray(scene(9).resize((64, 64)))[20:44, 24:40]).mean()
        < 24
    )
