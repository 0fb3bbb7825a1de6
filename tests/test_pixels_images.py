"""One reader of pictures: whatever way a picture comes in, the same pixels, those that a viewer would show."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from emu.documents import Video
from emu_tokenizers.pixels.images import MAX_PIXELS, BadPicture, open_image, to_rgb
from emu_tokenizers.pixels.resize import Resize
from emu_tokenizers.pixels.sources import picture_sources
from emu_tokenizers.pixels.videos import VideoFile
from tests.media_files import PICTURES, scene, whole

RAMP = np.tile(np.linspace(0, 1, 32), (32, 1))


def deep(scale: float, kind: type) -> Image.Image:
    return Image.fromarray((RAMP * scale).astype(kind))


def black_square_on_nothing() -> Image.Image:
    array = np.zeros((32, 32, 4), np.uint8)
    array[8:24, 8:24, 3] = 255
    return Image.fromarray(array)


def turned(orientation: int, image: Image.Image) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    written = io.BytesIO()
    image.save(written, format="PNG", exif=exif)
    return Image.open(io.BytesIO(written.getvalue()))


def mean(image: Image.Image | np.ndarray) -> float:
    return float(np.asarray(image).mean())


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (deep(65535, np.uint16), 127.5),
        (deep(200, np.uint16), 0.4),  # dark, and dark it stays
        (deep(65535, np.int32), 127.5),
        (deep(255, np.int32), 127.5),
        (deep(1, np.float32), 127.5),
        (deep(255, np.float32), 127.5),
        (deep(65535, np.float32), 127.5),
        (black_square_on_nothing(), 191.25),
        (black_square_on_nothing().convert("LA"), 191.25),
        (black_square_on_nothing().convert("RGBa"), 191.25),
        (black_square_on_nothing().convert("LA").convert("La"), 191.25),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_deep_and_transparent_pictures_come_out_right_by_every_door(image, expected, tmp_path):
    assert abs(mean(to_rgb(image)) - expected) < 1
    assert abs(mean(Video([image, image]).frames) - expected) < 1
    if image.mode in ("I;16", "RGBA", "LA"):
        for ending in ("png", "tiff"):
            image.save(tmp_path / f"deep.{ending}")
            assert abs(mean(open_image(tmp_path / f"deep.{ending}")) - expected) < 1
            assert abs(mean(Video.open(tmp_path / f"deep.{ending}").frames) - expected) < 1


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "rgb.icns"])  # large, and like any other
def test_a_file_a_source_a_clip_and_an_object_are_the_same_pixels(name, tmp_path):
    file = tmp_path / name
    file.write_bytes(whole(name))
    expected = np.asarray(open_image(file))
    with Image.open(file) as image:
        assert np.array_equal(np.asarray(to_rgb(image)), expected)
        assert np.array_equal(Video([image]).frames[0], expected)
    assert np.array_equal(np.asarray(picture_sources(tmp_path)[0].read()[0]), expected)
    assert np.array_equal(np.asarray(VideoFile(file, name).read()[0]), expected)
    assert np.array_equal(Video.open(tmp_path).frames[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was_held_and_only_once(orientation):
    image = scene().crop((0, 0, 32, 20))
    expected = np.asarray(ImageOps.exif_transpose(turned(orientation, image)))
    upright = to_rgb(turned(orientation, image))
    assert np.array_equal(np.asarray(upright), expected)
    assert np.array_equal(np.asarray(to_rgb(upright)), expected)
    assert np.array_equal(Video([turned(orientation, image)]).frames[0], expected)
    resized = Resize(factor=4, least=4, most=1 << 20)(turned(orientation, image))
    assert resized.size == upright.size and np.array_equal(np.asarray(resized), expected)


def odd_exif(orientation: int) -> bytes:
    """Orientation beside the name of the software as a DOUBLE, which cannot be written back."""
    table = struct.pack("<H", 2) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    table += struct.pack("<HHII", 0x0131, 12, 1, 8 + 2 + 24 + 4) + struct.pack("<I", 0)
    return b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + table + struct.pack("<d", 1.5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_of_exif_only_the_orientation_is_read_and_nothing_is_written_back(kind):
    written = io.BytesIO()
    scene().crop((0, 0, 32, 20)).save(written, format=kind, exif=odd_exif(6))
    assert open_image(written.getvalue()).size == (20, 32)
    written = io.BytesIO()
    scene().crop((0, 0, 32, 20)).save(written, format=kind, exif=b"Exif\0\0II*\0\xff\xff\xff\xff rubbish")
    assert open_image(written.getvalue()).size == (32, 20)


def test_a_grey_value_that_means_transparent_is_white():
    image = deep(65535, np.uint16)
    image.info["transparency"] = 0
    found = np.asarray(to_rgb(image))
    assert (found[:, 0] == 255).all() and (found[:, 1] == 8).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I;16", "F"])
def test_pictures_that_are_converted_in_strips_are_those_converted_at_once(mode, monkeypatch):
    image = deep(65535, np.uint16) if mode == "I;16" else scene(0, mode)
    at_once = np.asarray(to_rgb(image))
    monkeypatch.setattr("emu_tokenizers.pixels.images._BAND_PIXELS", 3 * image.width)
    assert np.array_equal(np.asarray(to_rgb(image)), at_once)


def test_what_is_not_finite_is_black_or_white():
    image = Image.fromarray(np.array([[np.nan, -np.inf, np.inf, 0.5]], np.float32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 0, 255, 128]


def test_a_stack_of_pages_is_not_a_picture_but_a_clip(tmp_path):
    pages = [scene(number) for number in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(BadPicture, match=r"stack\.tif has several pages") as caught:
        open_image(tmp_path / "stack.tif")
    assert caught.value.reason == "several pages"
    assert np.array_equal(Video.open(tmp_path / "stack.tif").frames[2], np.asarray(pages[2]))


def test_a_smaller_copy_in_a_tiff_is_not_a_page(tmp_path):
    whole, small = scene(), scene().resize((8, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}  # reduced resolution
    whole.save(tmp_path / "both.tif", save_all=True, append_images=[small])
    with Image.open(tmp_path / "both.tif") as image:
        assert image.n_frames == 2
    assert np.array_equal(np.asarray(open_image(tmp_path / "both.tif")), np.asarray(whole))


def test_formats_that_start_other_programs_are_refused(tmp_path):
    scene().save(tmp_path / "a.eps")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.eps").read_bytes())  # whatever its ending says
    for name in ("a.eps", "b.png"):
        with pytest.raises(BadPicture, match="is not a picture"):
            open_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 400 + ".png", "takes no such name"), ("a\0b.png", "no"), ("no.png", "no file")],
)
def test_names_of_no_file_are_told_as_such(tmp_path, name, message):
    for read in (open_image, Video.open):
        with pytest.raises(FileNotFoundError, match=message):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="is a folder"):
        open_image(tmp_path)


def test_pipes_and_devices_are_not_files():
    if not Path("/dev/zero").exists():
        pytest.skip("no devices here")
    with pytest.raises(FileNotFoundError, match="/dev/zero"):
        open_image("/dev/zero")


def test_a_bomb_is_refused_by_its_header(tmp_path):
    header = bytearray(whole("rgb.bmp"))
    header[18:26] = struct.pack("<ii", 9000, 9000)
    (tmp_path / "bomb.bmp").write_bytes(header)
    with pytest.raises(BadPicture, match=rf"bomb\.bmp has 9000x9000 pixels, more than {MAX_PIXELS}") as caught:
        open_image(tmp_path / "bomb.bmp")
    assert caught.value.reason == "too large"
