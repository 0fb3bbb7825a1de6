"""Clips come as a player shows them: upright, at the right times, whatever their file says about itself."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu.documents import Video
from emu.media import gif_bytes, mp4_bytes
from emu_tokenizers.pixels.images import BadPicture
from emu_tokenizers.pixels.videos import VideoFile
from tests.media_files import scene

av = pytest.importorskip("av")
STEP = 6
"""Grey levels between two frames of `write_video`."""


def write_video(path: Path, count: int = 30, rate: int = 10, codec: str = "libx264", **about) -> Path:
    """Frame k is of grey level 6 k, its upper left quarter the inverse.

    Args:
        about: seconds (of each frame), title, size (width, height), pixels, aspect, and options of the codec.
    """
    seconds, width_height = about.pop("seconds", None), about.pop("size", (32, 16))
    title, pixels = about.pop("title", None), about.pop("pixels", "yuv420p")
    aspect = about.pop("aspect", None)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options={"g": "8", **about})
        (stream.width, stream.height), stream.pix_fmt = width_height, pixels
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if title:
            file.metadata["title"] = title
        for number in range(count):
            array = np.full((stream.height, stream.width, 3), STEP * number, np.uint8)
            array[: stream.height // 2, : stream.width // 2] = 255 - STEP * number
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if seconds:
                frame.pts, frame.time_base = round(1000 * seconds[number]), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def numbers(frames: np.ndarray | list[Image.Image]) -> list[int]:
    """Which frames of `write_video` these are."""
    return [round(int(np.asarray(frame)[-2, -2, 0]) / STEP) for frame in frames]


def clip_length(file) -> float:
    return VideoFile(file, "a").seconds


UNEVEN = [number / 30 for number in range(30)] + [1 + 3.0 * number for number in range(1, 10)]
"""Thirty frames in the first second, then one every three."""


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_are_found_by_number_whatever_their_times(tmp_path, ending):
    file = write_video(tmp_path / f"a.{ending}", 39, rate=30, seconds=UNEVEN)
    clip = VideoFile(file, "a")
    assert clip.num_frames == 39
    for start, count in ((0, 3), (11, 4), (28, 20), (38, 1), (39, 1), (50, 2)):
        assert numbers(clip.read(start, count)) == list(range(start, min(start + count, 39)))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_at_even_times_are_those_that_a_player_shows(tmp_path, ending):
    file = write_video(tmp_path / f"a.{ending}", 39, rate=30, seconds=UNEVEN)
    clip = Video.open(file, fps=10)
    assert numbers(clip.frames)[:11] == [*range(0, 30, 3), 29] and 280 <= len(clip) <= 290  # by what the last one lasts
    assert set(numbers(clip.frames)[10:40]) == {29} and numbers(clip.frames)[40] == 30  # the next one comes at 4 s
    assert numbers(Video.open(file, fps=10, start=0.5, frames=3).frames) == [15, 18, 21]
    assert numbers(Video.open(file, fps=1, start=10, frames=4).frames) == [32, 32, 32, 33]
    assert 28 <= clip_length(file) <= 29


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_clip_of_even_times_lasts_as_long_as_its_frames(tmp_path, ending):
    codec = "ffv1" if ending == "avi" else "libx264"
    assert clip_length(write_video(tmp_path / f"a.{ending}", 31, rate=30, codec=codec)) == 31 / 30


@pytest.mark.parametrize(
    "fps, expected", [(None, range(12)), (25, range(12)), (5, (0, 5, 10)), (50, [k // 2 for k in range(24)])]
)
@pytest.mark.parametrize("ending", ["mp4", "webm", "mkv", "avi"])
def test_a_rate_drops_or_repeats_frames(tmp_path, fps, expected, ending):
    codec = {"webm": "libvpx", "avi": "ffv1"}.get(ending, "libx264")
    clip = Video.open(write_video(tmp_path / f"a.{ending}", 12, rate=25, codec=codec), fps=fps)
    assert numbers(clip.frames) == list(expected) and clip.fps == (fps or 25)


def test_start_and_frames_take_a_part_and_size_crops_the_middle(tmp_path):
    file = write_video(tmp_path / "a.mp4", 30)
    clip = Video.open(file, start=1.2, frames=4, size=(8, 12))
    assert clip.frames.shape == (4, 8, 12, 3) and numbers(clip.frames) == [12, 13, 14, 15]
    with pytest.raises(BadPicture, match=r"a\.mp4 has no frames from 3 seconds on") as caught:
        Video.open(file, start=3)
    assert caught.value.reason == "empty"


def test_no_more_is_decoded_than_is_asked_for(tmp_path):
    file = write_video(tmp_path / "a.mkv", 40, codec="ffv1", g="1")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) // 4))  # the rest cannot be decoded
    assert numbers(Video.open(file, frames=10).frames) == list(range(10))


def with_matrix(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 of which the track is shown with x going to a x + c y and y to b x + d y."""
    a, b, c, d = (value << 16 for value in matrix)
    place = data.index(b"tkhd") + 44
    return data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (-1, 0, 0, -1),
        (0, 1, -1, 0),
        (0, -1, 1, 0),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_a_clip_is_turned_as_its_camera_was_held(tmp_path, matrix):
    file = write_video(tmp_path / "a.mp4", 3)
    straight = Video.open(file).frames[0]
    a, b, c, d = matrix
    y, x = (grid.ravel() for grid in np.mgrid[: straight.shape[0], : straight.shape[1]])
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    expected = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    expected[to_y, to_x] = straight[y, x]
    file.write_bytes(with_matrix(file.read_bytes(), matrix))
    assert np.array_equal(np.asarray(VideoFile(file, "a").read()[0]), expected)
    assert np.array_equal(Video.open(file).frames[0], expected)


def test_a_title_in_another_encoding_does_no_harm(tmp_path):
    file = write_video(tmp_path / "a.mp4", 3, title="A TITLE")
    file.write_bytes(file.read_bytes().replace(b"A TITLE", b"\xc4 T\xefT\xffE"))
    assert len(Video.open(file)) == 3


def test_wide_pixels_are_made_square(tmp_path):
    file = write_video(tmp_path / "a.mp4", 3, aspect=Fraction(4, 3), size=(36, 16))
    assert Video.open(file).frames.shape == (3, 16, 48, 3)


@pytest.mark.parametrize(
    ("codec", "ending", "pixels", "size"),
    [("ffv1", "mkv", "yuv420p10le", (32, 16)), ("ffv1", "mkv", "gray16le", (31, 17)), ("libx264", "mp4", "yuv444p", (31, 17)),
     ("libx264", "mp4", "yuv420p10le", (32, 16)), ("prores_ks", "mov", "yuva444p10le", (32, 16))],
)  # fmt: skip
def test_deep_and_odd_clips_are_read(tmp_path, codec, ending, pixels, size):
    file = write_video(tmp_path / f"a.{ending}", 5, codec=codec, pixels=pixels, size=size)
    clip = Video.open(file)
    assert clip.frames.shape == (5, size[1], size[0], 3) and numbers(clip.frames) == list(range(5))


def test_alpha_of_a_clip_is_laid_over_white(tmp_path):
    with av.open(str(tmp_path / "a.mov"), "w") as file:
        stream = file.add_stream("qtrle", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "argb"
        array = np.zeros((16, 16, 4), np.uint8)
        array[:8, :, 3] = 255
        file.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgba").reformat(format="argb")))
        file.mux(stream.encode())
    frame = Video.open(tmp_path / "a.mov").frames[0]
    assert (frame[:8] == 0).all() and (frame[8:] == 255).all()


def test_a_file_of_sound_alone_is_not_a_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(BadPicture, match=r"a\.mp4 holds no video") as caught:
        Video.open(tmp_path / "a.mp4")
    assert caught.value.reason == "not a video"


def test_a_file_without_frames_is_empty_or_damaged(tmp_path):
    file = write_video(tmp_path / "a.mkv", 4)
    data = file.read_bytes()
    file.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75")])  # up to the first cluster
    with pytest.raises(BadPicture, match=r"a\.mkv"):
        Video.open(file)


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n", "ffconcat version 1.0\nfile '{other}'\n"]
)
def test_a_list_of_other_files_is_not_a_video(tmp_path, text):
    other = write_video(tmp_path / "other.mp4", 3)
    (tmp_path / "a.mp4").write_text(text.format(other=other))
    with pytest.raises(BadPicture, match=r"a\.mp4"):
        Video.open(tmp_path / "a.mp4")


@pytest.mark.parametrize("fps", [3, 8, 12.5])
def test_what_we_write_is_read_back(tmp_path, fps):
    frames = [scene(number // 2 if number > 5 else number) for number in range(12)]  # GIF joins equal neighbours
    for name, data in (("a.gif", gif_bytes(frames, fps)), ("a.mp4", mp4_bytes(frames, fps))):
        (tmp_path / name).write_bytes(data)
        clip = Video.open(tmp_path / name)
        assert (len(clip), clip.fps) == (12, fps)
        error = np.abs(clip.frames.astype(int) - np.stack([np.asarray(frame) for frame in frames]))
        assert error.mean() < 8


@pytest.mark.parametrize(
    ("kind", "ending"), [("GIF", "gif"), ("WEBP", "webp"), ("PNG", "png"), ("PNG", "apng"), ("AVIF", "avif")]
)
def test_durations_of_animations_are_their_times(tmp_path, kind, ending):
    first, *others = (scene(number) for number in range(4))
    file = tmp_path / f"a.{ending}"
    first.save(file, format=kind, save_all=True, append_images=others, duration=[100, 300, 100, 200])
    clip = Video.open(file)
    assert clip.fps == 10 and len(clip) == 7
    shown = [int(np.abs(clip.frames[place].astype(int) - clip.frames[0]).mean() > 0) for place in range(7)]
    assert shown == [0, 1, 1, 1, 1, 1, 1] and np.array_equal(clip.frames[1], clip.frames[3])
    assert not np.array_equal(clip.frames[4], clip.frames[3])
    assert len(VideoFile(file.read_bytes(), "a").read(0, 10)) == 4  # by number they are four


def test_a_gif_is_composed_over_white(tmp_path):
    def part(box: tuple[int, int, int, int]) -> Image.Image:
        image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
        image.paste((255, 0, 0, 255), box)
        return image

    parts = [part((0, 0, 8, 8)), part((8, 8, 16, 16))]
    parts[0].save(tmp_path / "a.gif", save_all=True, append_images=parts[1:], duration=100, disposal=2)
    frames = Video.open(tmp_path / "a.gif").frames
    for frame, (row, column) in zip(frames, ((2, 2), (12, 12)), strict=True):
        assert frame[row, column].tolist() == [255, 0, 0]
        assert (frame == 255).all(axis=-1).sum() == 16 * 16 - 64


def test_a_frame_of_no_duration_lasts_as_viewers_show_it(tmp_path):
    scene(0).save(tmp_path / "a.gif", save_all=True, append_images=[scene(1)], duration=0)
    clip = Video.open(tmp_path / "a.gif")
    assert (len(clip), clip.fps) == (2, 10)


def test_a_default_image_is_not_a_frame():
    written = io.BytesIO()
    scene(9).save(
        written, format="PNG", save_all=True, default_image=True, append_images=[scene(0), scene(1)], duration=100
    )
    frames = VideoFile(written.getvalue(), "a").read(0, 5)
    assert len(frames) == 2 and np.array_equal(np.asarray(frames[0]), np.asarray(scene(0)))


def test_two_views_of_one_scene_are_one_frame():
    written = io.BytesIO()
    scene(0).save(written, format="MPO", save_all=True, append_images=[scene(1)])
    assert VideoFile(written.getvalue(), "a").num_frames == 1


def test_the_cover_of_a_song_is_not_a_video():
    from emu_tokenizers.pixels.reels import _is_cover

    class Stream:
        disposition = 0x400

    assert _is_cover(Stream())
