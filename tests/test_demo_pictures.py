"""`emu demo pictures` on nineteen pictures with a few steps, and the model that travels with the package."""

import json

import pytest

from emu import Emu
from emu.checkpoints.bundled import is_bundled
from emu.cli.main import main
from emu.demo.pictures.bundle import MOST_BYTES, bundle
from emu.demo.pictures.emoji import load_emoji
from emu.demo.pictures.emoji_report import GOALS, missed
from emu.demo.pictures.pictures_run import run_pictures, seeded

FEW = {
    "pictures.people": 3,
    "pictures.others": 4,
    "pictures.views": 2,
    "text.vocab_size": 400,
    "vision.trainer.max_steps": 3,
    "vision.trainer.val_check_interval": 3,
    "vision.checkpoint.every_n_steps": 3,
    "vision.model.quantizer_warmup_steps": 1,
    "vision.model.config.base_channels": 4,
    "transformer.trainer.max_steps": 2,
    "transformer.trainer.val_check_interval": 2,
    "transformer.checkpoint.every_n_steps": 2,
    "transformer.model.config.hidden_size": 32,
    "transformer.model.config.intermediate_size": 64,
    "transformer.model.config.num_hidden_layers": 1,
    "report.each": 1,
}
WORDS = [word for name, value in FEW.items() for word in (f"--{name}", str(value))]


def test_long_is_of_the_digits(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "pictures", "--long"])
    assert "--long goes with the digits" in capsys.readouterr().err


def test_a_seed_is_that_of_every_part():
    assert seeded(0) == [] and seeded(7).count("7") == len(seeded(7)) / 2 >= 5


def test_goals_that_were_missed_are_named():
    reached = {name: goal.least for name, goal in GOALS.items()}
    assert missed(reached) == [] and missed({**reached, "drawn_is_nearest": 0.1}) == ["drawn_is_nearest"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "pictures"
    return folder, run_pictures(folder, words=WORDS)


@pytest.mark.slow
def test_the_demo_leaves_a_model_that_does_every_task_and_a_report(run):
    folder, metrics = run
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    kinds = ("", "_copied", "_mean")
    assert {f"drawn_is_nearest{kind}" for kind in kinds} | {f"recoloured_tone_right{kind}" for kind in kinds} <= set(
        metrics
    )
    assert metrics["animated_motion_right_of_real"] == 1.0 and metrics["drawn_is_nearest_copied"] == 0.0
    page = (folder / "report.html").read_text()
    for title in (
        "Every task",
        "Draw",
        "Image to text",
        "Recolour by words",
        "Animate",
        "Reconstructions",
        "Learning: transformer",
    ):
        assert title in page
    emu = Emu.from_pretrained(folder / "model")
    assert {"text_to_image", "image_to_text", "image_and_text_to_image", "text_to_video"} <= set(emu.trained.tasks)
    assert len(emu.generate_videos("cat bouncing")[0].frames) == 4


@pytest.mark.slow
def test_a_demo_that_is_done_is_not_done_again(run):
    folder, metrics = run
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    again = run_pictures(folder, words=WORDS)
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert {name: again[name] for name in GOALS} == {name: metrics[name] for name in GOALS}


@pytest.mark.slow
def test_a_run_is_bundled_at_half_its_size(run, tmp_path):
    folder, _ = run
    size = bundle(folder, tmp_path / "bundled")
    assert size < MOST_BYTES and set(GOALS) <= set(json.loads((tmp_path / "bundled" / "metrics.json").read_text()))
    weights = [(path / "model.safetensors").stat().st_size for path in (folder / "model", tmp_path / "bundled")]
    assert weights[1] < 0.55 * weights[0]
    assert Emu.from_pretrained(tmp_path / "bundled").generate_images("baby, light skin tone")[0].image.size == (64, 64)


bundled = pytest.mark.skipif(not is_bundled("pictures"), reason="the model `pictures` is not in this checkout")


SHORT_OF = ["drawn_tone_right", "recoloured_tone_right", "animated_right"]
"""Goals that the bundled model does not reach yet, as docs/pictures.md says; one that does leaves the list."""


@bundled
def test_the_bundled_model_reaches_its_goals_but_those_that_are_named_and_is_small():
    from emu.checkpoints.bundled import BUNDLED

    folder = BUNDLED / "pictures"
    assert missed(json.loads((folder / "metrics.json").read_text())) == SHORT_OF
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MOST_BYTES


@bundled
def test_the_bundled_model_describes_people_draws_and_moves_them():
    emu, emoji = Emu.from_pretrained("pictures", device="cpu"), load_emoji()
    rows = [row for row in range(0, 890, 37) if row not in set(emoji.held_out)]
    read = emu.generate_text([[emoji.pictures[row]] for row in rows], max_new_tokens=16)
    assert sum(text.strip() == emoji.captions[row] for text, row in zip(read, rows, strict=True)) >= 0.8 * len(rows)
    assert emu.generate_images("farmer, dark skin tone")[0].image.size == (64, 64)
    assert len(emu.generate_videos("farmer, dark skin tone bouncing")[0].frames) == 4
