"""The demo's data: the digits of the package, canvases, clips and captions."""

import pytest
import torch

from emu.demo.digit_captions import CAPTIONS, DIGIT_NAMES, corpus, drawable_prompts
from emu.demo.digits import (
    CANVAS,
    DIRECTIONS,
    FRAMES,
    REST,
    TRAVEL,
    draw,
    draw_clips,
    draw_stills,
    load_digits,
    to_rgb_pixels,
)
from emu.demo.judge import centred, centres


@pytest.fixture(scope="module")
def held_out():
    return load_digits()[1].first(8)


def test_the_digits_are_those_of_scikit_learn_split_into_quarters_of_every_class():
    datasets = pytest.importorskip("sklearn.datasets")
    selection = pytest.importorskip("sklearn.model_selection")
    theirs = datasets.load_digits()
    rows = torch.arange(len(theirs.target))
    expected = selection.train_test_split(rows.numpy(), test_size=0.25, random_state=0, stratify=theirs.target)
    for digits, places in zip(load_digits(), expected, strict=True):
        places = torch.from_numpy(places).sort().values
        assert torch.equal(digits.labels, torch.from_numpy(theirs.target)[places])
        assert torch.equal(digits.images, torch.from_numpy(theirs.images[places] / 16).float())


def test_no_class_is_held_out_by_more_or_less_than_a_quarter():
    train, held_out = load_digits()
    for digit in range(10):
        counts = [int((digits.labels == digit).sum()) for digits in (train, held_out)]
        assert abs(counts[1] - sum(counts) / 4) <= 1


def test_a_shift_by_a_pixel_moves_the_picture_by_a_pixel(held_out):
    still = draw_stills(held_out.images)
    moved = draw_stills(held_out.images, (1, -1))
    assert torch.equal(moved[:, :-1, 1:], still[:, 1:, :-1])


def test_hardly_anything_of_a_digit_is_lost_at_the_end_of_its_way(held_out):
    light = draw_stills(held_out.images).float().sum(dim=(1, 2))
    for x, y in DIRECTIONS.values():
        far = torch.full((len(held_out),), TRAVEL + 1)
        assert torch.allclose(draw(held_out.images, x * far, y * far).float().sum(dim=(1, 2)), light, rtol=0.1)


@pytest.mark.parametrize("rest", [0, REST])
def test_clips_begin_with_the_still_and_move_at_a_constant_speed_in_their_direction(held_out, rest):
    ways = torch.arange(len(held_out)) % len(DIRECTIONS)
    clips = draw_clips(held_out.images, ways, torch.zeros(len(held_out), 2), rest)
    assert clips.shape == (len(held_out), FRAMES, CANVAS, CANVAS) and clips.dtype == torch.uint8
    still = draw_stills(held_out.images)
    for frame in range(max(rest, 1)):
        assert torch.equal(clips[:, frame], still)
    headings = torch.tensor(list(DIRECTIONS.values()))[ways]
    way = torch.stack([centres(frame) for frame in clips.unbind(1)], dim=1)  # (N, T, 2)
    steps = way[:, max(rest, 1) :] - way[:, max(rest, 1) - 1 : -1]
    expected = headings[:, None] * TRAVEL / (FRAMES - max(rest, 1))
    assert torch.allclose(steps, expected.expand_as(steps), atol=0.2)


def test_centred_pictures_have_their_centre_of_mass_in_the_middle(held_out):
    away = draw(held_out.images, torch.full((8,), 4.0), torch.full((8,), -3.0))
    assert (centres(centred(away)) - (CANVAS - 1) / 2).abs().max() <= 0.51
    assert torch.equal(centred(away).flatten(1).sum(1), away.flatten(1).sum(1))


def test_pixels_are_rgb_from_minus_one_to_one():
    pixels = to_rgb_pixels(torch.tensor([[[0, 255]]], dtype=torch.uint8))
    assert pixels.shape == (1, 3, 1, 2) and pixels.unique().tolist() == [-1.0, 1.0]


def test_every_prompt_is_in_the_corpus_once_for_each_digit_and_wording():
    lines = drawable_prompts()
    assert len({line["prompt"] for line in lines}) == len(lines) == len(DIGIT_NAMES) * len(CAPTIONS)
    texts = set(corpus(("4*4",)))
    for line in lines:
        assert line["prompt"] in texts and DIGIT_NAMES[line["label"]] in line["prompt"]
        assert line["size"] == [CANVAS, CANVAS]
