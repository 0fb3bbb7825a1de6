"""Clips and token documents refuse what would give wrong output later."""

import numpy as np
import pytest
import torch
from PIL import Image

from emu.documents import TokenDocument, Video


def test_frames_of_pil_images_and_arrays_are_the_same_clip():
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    clip = Video([Image.fromarray(frame) for frame in array], fps=12.5)
    assert np.array_equal(clip.frames, Video(array).frames) and len(clip) == 3 and clip.fps == 12.5
    assert np.array_equal(np.asarray(clip.images()[2]), array[2])


@pytest.mark.parametrize(
    "frames, fps, error, message",
    [
        ([], 8, ValueError, "zero frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), 8, ValueError, "empty"),
        (np.zeros((2, 4, 4), np.uint8), 8, ValueError, r"expected uint8 \(T, H, W, 3\)"),
        (np.zeros((2, 4, 4, 3)), 8, ValueError, "uint8"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))], 8, ValueError, "unequal sizes"),
        (["a.png"], 8, TypeError, "PIL images"),
        ("a.mp4", 8, TypeError, r"Video\.open reads a file"),
        ([Image.new("RGB", (4, 4))], 0, ValueError, "fps is 0"),
    ],
)
def test_clips_that_cannot_be(frames, fps, error, message):
    with pytest.raises(error, match=message):
        Video(frames, fps)


def test_frames_of_any_mode_are_seen_as_people_see_them():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("L", (4, 6), 90)
    turned.info["exif"] = exif.tobytes()
    assert Video([turned, Image.new("RGBA", (6, 4), (0, 0, 0, 0))]).frames[:, 0, 0, 0].tolist() == [90, 255]


def test_pictures_have_no_times_so_that_a_rate_says_how_they_are_played(tmp_path):
    for number in range(12):
        Image.new("L", (6, 4), 10 * number).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(12)]
    for path in (tmp_path, str(tmp_path), files, [str(file) for file in files]):
        clip = Video.open(path)
        assert (len(clip), clip.fps) == (12, 8) and clip.frames[11, 0, 0].tolist() == [110] * 3
        part = Video.open(path, fps=4, start=0.5, frames=3, size=(2, 2))
        assert part.frames.shape == (3, 2, 2, 3) and part.fps == 4 and part.frames[:, 0, 0, 0].tolist() == [20, 30, 40]
    with pytest.raises(ValueError, match="no frames from 9 seconds on"):
        Video.open(tmp_path, start=9)


def test_pictures_of_unequal_sizes_need_a_size(tmp_path):
    for number in (1, 2):
        Image.new("L", (4 * number, 4)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match=r"2\.png has 4x8 pixels, .*1\.png has 4x4; give a size"):
        Video.open(tmp_path)
    assert Video.open(tmp_path, size=(4, 4)).frames.shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"fps": 0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 10**400}, "fps is 1000"),
        ({"fps": "8"}, "fps is '8'"),
        ({"start": -1}, "start is -1"),
        ({"start": float("inf")}, "start is inf"),
        ({"frames": 0}, "frames is 0"),
        ({"frames": 2.0}, "frames is 2.0"),
        ({"size": 64}, "size is 64"),
        ({"size": (0, 4)}, r"size is \(0, 4\)"),
        ({"size": (4, 4.0)}, "size is"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_a_file_is_opened(numbers, message):
    with pytest.raises(ValueError, match=message):
        Video.open("nowhere.mp4", **numbers)


def test_a_clip_is_limited_before_its_pictures_fill_the_memory(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "0.png")
    monkeypatch.setattr("emu_tokenizers.pixels.videos.MAX_CLIP_PIXELS", 100_000)
    assert len(Video.open([tmp_path / "0.png"] * 10)) == 10
    with pytest.raises(ValueError, match=r"0\.png and 10 more of 100x100 pixels are above the limit"):
        Video.open([tmp_path / "0.png"] * 11)


def test_weights_must_match_ids():
    with pytest.raises(ValueError, match="weights"):
        TokenDocument(torch.zeros(3, dtype=torch.int64), torch.zeros(2))
