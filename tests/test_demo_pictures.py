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


@bundled
def test_the_bundled_model_reaches_its_goals_and_is_small():
    from emu.checkpoints.bundled import BUNDLED

    folder = BUNDLED / "pictures"
    assert missed(json.loads((folder / "metrics.json").read_text())) == []
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MOST_BYTES


@bundled
def test_the_bundled_model_draws_what_it_can_describe_and_moves_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    emu = Emu.from_pretrained("pictures", device="cpu")
    captions = load_emoji(people=0).captions[:12]
    drawn = emu.generate_images(captions)
    read = emu.generate_text([[one.image] for one in drawn], max_new_tokens=16)
    assert sum(text.strip() == caption for text, caption in zip(read, captions, strict=True)) >= 6
    assert len(emu.generate_videos("cat bouncing")[0].frames) == 4
