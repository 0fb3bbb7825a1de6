"""Pictures of every mode become the pixels a viewer would show, and bad files are named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from emu_tokenizers.pixels.images import open_image, to_rgb
from emu_tokenizers.pixels.transforms import from_bytes, to_bytes, to_frames, to_image, to_pixels


def colours(height: int = 6, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pixels_lie_between_minus_one_and_one_and_come_back_exactly():
    array = colours()
    pixels = to_pixels(array)
    assert pixels.shape == (3, 6, 4) and pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(to_frames(pixels), array)
    assert np.array_equal(np.asarray(to_image(to_pixels(Image.fromarray(array)))), array)


def test_values_outside_are_clamped_only_when_they_become_bytes():
    assert to_frames(torch.tensor([-3.0, 0.0, 3.0]).view(3, 1, 1))[0, 0].tolist() == [0, 128, 255]


def test_exif_orientation_is_applied():
    array = np.zeros((2, 3, 3), dtype=np.uint8)
    array[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", exif=exif)
    upright = np.asarray(to_rgb(Image.open(buffer)))
    assert upright.shape == (3, 2, 3)
    assert (upright[:, 1] == 255).all() and (upright[:, 0] == 0).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 0)).convert(mode)
    assert (np.asarray(to_rgb(image)) == 255).all()


def test_half_transparent_black_is_grey():
    assert abs(int(np.asarray(to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))[0, 0, 0]) - 127) <= 1


def test_a_palette_with_a_transparent_entry_is_laid_over_white():
    image = Image.new("P", (1, 1), 0)
    image.putpalette([10, 20, 30])
    image.info["transparency"] = 0
    assert np.asarray(to_rgb(image))[0, 0].tolist() == [255, 255, 255]


def test_cmyk_becomes_rgb():
    assert np.asarray(to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))))[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bit_keeps_its_range():
    image = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.uint16))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB", "HSV", "I", "F"])
def test_every_other_mode_becomes_rgb(mode):
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_of_an_animated_picture_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(tmp_path / "two.gif"))[0, 0].tolist() == [255, 0, 0]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_image(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        open_image(tmp_path / "text.png")
    for kind in ("png", "jpg"):
        whole = io.BytesIO()
        Image.fromarray(colours(64, 64)).save(whole, format="JPEG" if kind == "jpg" else "PNG")
        path = tmp_path / f"half.{kind}"
        path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        with pytest.raises(ValueError, match="cannot be read to its end"):
            open_image(path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (5000, 4000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="5000x4000 pixels, more than 1000000"):
        open_image(tmp_path / "bomb.png", max_pixels=1_000_000)
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"too large|more than"):
        open_image(tmp_path / "huge.png")


@pytest.mark.parametrize("given", [torch.zeros(3, 4, 4), np.zeros((4, 4, 3))])
def test_only_pictures_and_bytes_are_taken(given):
    with pytest.raises(TypeError, match="uint8"):
        to_pixels(given)


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 3), (4, 4, 4)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        to_pixels(np.zeros(shape, dtype=np.uint8))


def test_every_byte_comes_back_through_pixels_of_any_shape():
    levels = torch.arange(256, dtype=torch.uint8)
    pixels = from_bytes(levels)
    assert pixels.dtype == torch.float32 and pixels[0] == -1 and pixels[-1] == 1
    assert torch.equal(to_bytes(pixels), levels)
    assert torch.equal(to_bytes(pixels.view(4, 4, 16)), levels.view(4, 4, 16))
