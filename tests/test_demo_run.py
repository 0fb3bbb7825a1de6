"""The whole demo, tiny."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from emu import Emu
from emu.cli.main import main
from emu.demo.judge import check_extra
from emu.demo.measure import SampleCounts
from emu.demo.run import GOALS, TIMES, DemoPlan, run_demo
from emu.media import read_provenance
from emu.stopping import Stopped

PLAN = DemoPlan(
    tokenizer_steps=3,
    transformer_steps=2,
    counts=SampleCounts(images_per_prompt=1, clips_per_prompt=1, continued=4, described=8),
    num_digits=40,
    tokenizer_options=(
        *("--model.quantizer_warmup_steps", "1", "--trainer.limit_val_batches", "1"),
        *("--model.config.base_channels", "4", "--trainer.log_every_n_steps", "1"),
    ),
    transformer_options=("--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches", "1"),
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, PLAN)


def test_the_demo_leaves_everything_that_it_promises(demo):
    folder, metrics = demo
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert set(GOALS) | set(TIMES) <= set(metrics)
    with np.load(folder / "train_images.npz") as file:
        assert file["images"].dtype == np.uint8 and file["images"].shape == (9 * 40, 32, 32)
        assert file["labels"].shape == (9 * 40,)
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert all(set(line) == {"prompt", "label", "size"} for line in lines) and len(lines) == 30
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") == 8 and 'src="http' not in page
    for name in ("samples.png", "captions.png", "reconstructions.png", "loss.png", "codebook.png", "clips.gif"):
        Image.open(folder / name).verify()
    assert len(list((folder / "clips").glob("*.gif"))) == 10
    for name in ("samples.png", "clips.gif", "image_to_video.gif", "continuations.gif", "clips/five_right.gif"):
        assert read_provenance(folder / name)["transformer_steps"] == PLAN.transformer_steps, name
    assert not read_provenance(folder / "loss.png")


def test_the_model_of_the_demo_draws_what_its_prompts_say(demo):
    folder, _ = demo
    emu = Emu.from_pretrained(folder / "model")
    line = json.loads((folder / "prompts.jsonl").read_text().splitlines()[0])
    assert emu.generate_images(line["prompt"])[0].image.size == tuple(line["size"])[::-1]
    assert len(emu.generate_videos("a handwritten one moving up")[0].frames) == 8


@pytest.mark.slow
def test_two_demos_of_one_seed_find_the_same(demo, tmp_path):
    _, first = demo
    second = run_demo(tmp_path, PLAN)
    assert {name: value for name, value in first.items() if name not in TIMES} == {
        name: value for name, value in second.items() if name not in TIMES
    }


def test_a_long_demo_is_the_same_recipe_with_three_times_the_steps():
    long = DemoPlan().three_times_as_long()
    assert replace(
        long, tokenizer_steps=DemoPlan().tokenizer_steps, transformer_steps=DemoPlan().transformer_steps
    ) == replace(DemoPlan(), goals=long.goals, beyond=())
    assert long.transformer_steps == 3 * DemoPlan().transformer_steps
    assert all(long.goals[name] >= goal for name, goal in GOALS.items())


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("emu.demo.judge.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"scikit-learn and matplotlib: pip install 'emu-tokens\[demo\]'"):
        check_extra()


def test_a_demo_that_is_stopped_says_that_it_starts_again(tmp_path, monkeypatch, capsys):
    def stopped(*given, **options):
        raise Stopped(15, "saved at step 4; go on with --ckpt_path last")

    monkeypatch.setattr("emu.demo.run.run_demo", stopped)
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 143
    assert "from the beginning" in capsys.readouterr().err
