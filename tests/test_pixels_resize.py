"""Sizes of released models: pictures are resized as the originals resize them, and ratios become grids of codes."""

from __future__ import annotations

import math
import random

import pytest
from PIL import Image

from emu_tokenizers.pixels.resize import EMU35_GRIDS, Resize, grid_of_ratio


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *(((512, 512), (512, 512)), ((1000, 667), (1000, 664)), ((100, 50), (728, 368)), ((4000, 3000), (1176, 880))),
        *(((517, 901), (520, 904)), ((8, 40), (232, 1152)), ((4096, 1024), (2048, 512)), ((1020, 1028), (1024, 1024))),
    ],
)
def test_sizes_are_those_of_the_released_smart_resize(size, expected):
    height, width = Resize().within(*size)
    assert (height, width) == expected
    image = Resize()(Image.new("RGBA", (size[1], size[0])))
    assert image.size == (width, height) and image.mode == "RGB"


def test_a_resized_picture_is_a_grid_of_codes_within_the_bounds_of_about_its_shape():
    draw = random.Random(0)
    for _ in range(2000):
        height = draw.randint(8, 3000)
        width = draw.randint(max(8, math.ceil(height / 5)), 5 * height)
        new_height, new_width = Resize().within(height, width)
        assert new_height % 8 == 0 and new_width % 8 == 0
        assert 512 * 512 <= new_height * new_width <= 1024 * 1024
        assert abs(math.log(new_height / new_width * width / height)) < 8 / new_height + 8 / new_width


def test_a_picture_of_a_good_size_is_left_alone():
    image = Image.new("RGB", (768, 512))
    assert Resize()(image).size == image.size


def test_bounds_and_factor_are_the_tokenizers():
    resized = Resize(factor=4, least=0, most=40 * 40)(Image.new("L", (90, 60)))
    assert resized.mode == "RGB" and resized.size == (48, 32)


@pytest.mark.parametrize("size", [(4, 100), (100, 501), (501, 100)])
def test_a_picture_too_small_or_too_thin_is_refused(size):
    with pytest.raises(ValueError, match="at least 8 pixels, none more than five times the other"):
        Resize().within(*size)


def test_pictures_of_emu35_all_have_one_area():
    resize = Resize(factor=16, area=1048576)
    assert resize.to_area(1024, 1024) == (1024, 1024)
    assert resize.to_area(300, 400) == (880, 1184)


@pytest.mark.parametrize("ratio", ["16/9", "0:1", "wide", "1:2:3", "100000:1"])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        grid_of_ratio(ratio)


def test_grids_of_emu35_keep_their_area():
    assert all(3800 < height * width <= 4096 for height, width in EMU35_GRIDS.values())
