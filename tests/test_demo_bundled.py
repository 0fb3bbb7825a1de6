"""The trained model that travels with the package."""

import json

import pytest

from emu import Emu
from emu.checkpoints.bundled import BUNDLED
from emu.demo.data import DigitsData
from emu.demo.digit_captions import DIGIT_NAMES, QUESTION
from emu.demo.run import GOALS


@pytest.fixture(scope="module")
def digits():
    return Emu.from_pretrained("digits", device="cpu")


def test_it_draws_digits_that_it_can_read_from_any_directory(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = digits.generate_images([f"a handwritten {name}" for name in DIGIT_NAMES], images_per_prompt=2)
    read = digits.generate_text([[result.image, QUESTION] for result in drawn], max_new_tokens=8)
    assert sum(f" {word}" in result.prompt for word, result in zip(read, drawn, strict=True)) >= 16


def test_it_moves_what_it_has_drawn(digits):
    seven = digits.generate_images("a handwritten seven")[0].image
    frames = digits.generate_videos("moving left", first_frames=[seven])[0].frames
    assert len(frames) == 8 and {frame.size for frame in frames} == {(32, 32)}


def test_it_carries_its_figures_and_they_meet_the_goals():
    metrics = json.loads((BUNDLED / "digits" / "metrics.json").read_text())
    assert all(metrics[name] >= goal for name, goal in GOALS.items())


def test_the_recipe_finds_its_tokenizers(digits):
    assert DigitsData().vocabulary.fingerprint == digits.tokenizer.vocabulary.fingerprint


def test_it_is_a_few_megabytes():
    assert sum(file.stat().st_size for file in (BUNDLED / "digits").rglob("*") if file.is_file()) < 12e6
