"""`emu fit --config own-images`: from a folder of captioned pictures to a model and a report, in seconds where steps are few."""

import json

import pytest

from emu import Emu
from emu.cli.fit import fit
from emu.own_data import PicturePlan
from tests.own_toys import content, killed_over, started, write_pictures, write_scenes

FEW = (
    "--vision.trainer.max_steps",
    4,
    "--vision.model.quantizer_warmup_steps",
    1,
    "--vision.trainer.val_check_interval",
    2,
)
FEW += ("--vision.checkpoint.every_n_steps", 2, "--vision.model.config.base_channels", 4)
FEW += ("--transformer.trainer.max_steps", 4, "--transformer.trainer.val_check_interval", 2)
FEW += ("--transformer.checkpoint.every_n_steps", 2, "--transformer.model.config.num_hidden_layers", 1)
FEW += ("--report.count", 2, "--pictures.views", 2)


def words(run, *more):
    folder = run.parent / "pictures"
    return [
        *("--config", "own-images", "--data.source", str(folder), "--budget", "1s"),
        *("--trainer.default_root_dir", str(run), *map(str, (*FEW, *more))),
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_pictures(folder / "pictures", 12, 16)
    assert fit(words(folder / "run")) == 0
    return folder


def test_twelve_pictures_become_a_model_and_a_report(done):
    run = done / "run"
    assert [path.parent.name for path in run.rglob("emu.json")] == ["model"]
    plan = json.loads((run / "plan.json").read_text())
    assert plan["values"]["size"] == 16 and len(plan["reasons"]) >= 8
    metrics = json.loads((run / "10-report" / "metrics.json").read_text())
    assert metrics["held_out"] >= 1 and metrics["held_out_bits_per_pixel"] > 0
    page = (run / "10-report" / "report.html").read_text()
    for title in ("Text to image", "Image to text", "Reconstructions", "Learning: vision", "Learning: transformer"):
        assert title in page
    emu = Emu.from_pretrained(run / "model")
    picture = emu.generate_images("a red disc", seed=1)[0].image
    assert picture.size == (16, 16) and isinstance(emu.generate_text([[picture]], max_new_tokens=4)[0], str)


def test_another_budget_is_another_job(done):
    with pytest.raises(ValueError, match="init_args.budget is 2h and was 1s"):
        fit(words(done / "run", "--budget", "2h"))


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(ValueError, match="--data.source"):
        fit(["--config", "own-images", "--trainer.default_root_dir", str(tmp_path / "run")])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PicturePlan("nowhere").make()


@pytest.mark.slow
@pytest.mark.parametrize("job", ["own-images", "own-videos"])
def test_everything_wrong_is_told_at_once_before_anything_is_read(tmp_path, monkeypatch, job):
    monkeypatch.setattr(PicturePlan, "make", lambda plan: pytest.fail("the pictures were read"))
    wrong = ["--data.source", str(tmp_path / "nowhere"), "--budget", "soon", "--data.size", "30"]
    wrong += ["--transformer.trainer.max_stepz", "3", "--vision.model.config.base_channelz", "4"]
    with pytest.raises(ValueError) as error:
        fit(["--config", job, "--trainer.default_root_dir", str(tmp_path / "run"), *wrong])
    for part in ("nowhere", "budget is 'soon'", "size is 30", "stage transformer", "max_stepz", "base_channelz"):
        assert part in str(error.value)


def test_what_is_chosen_for_the_examples_fits_the_stages():
    few, many = PicturePlan.examples()
    assert few["size"] < many["size"] and few["vision"]["spatial_factor"] < many["vision"]["spatial_factor"]
    assert few.keys() == many.keys() >= {"views", "vision_steps", "text_size", "source"}


@pytest.mark.slow
def test_a_thousand_pictures_go_through_the_same_stages(tmp_path):
    write_scenes(tmp_path / "pictures", 1000)
    run = tmp_path / "run"
    assert fit(words(run, "--pictures.views", 1)) == 0
    values, split = (json.loads((run / name).read_text()) for name in ("plan.json", "1-pictures/split.json"))
    assert len(split["train"]) + len(split["held_out"]) == 1000 and split["groups"] > 900
    assert values["values"]["codebook_size"] > 128 and (run / "10-report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_twelve_kills_spread_over_the_job_change_no_byte(done, tmp_path, seed):
    run = started(done, tmp_path, "pictures")
    assert killed_over(words(run), run, seed) >= 10
    assert fit(words(run)) == 0
    assert content(run) == content(done / "run")
