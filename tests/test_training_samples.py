"""Samples as a model trains: in the run's folder, on its page and in loggers; and the run is the same without them."""

import json
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from emu.data import ListSource
from emu.data.datamodule import MixtureDataModule
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.training.loggers import Sample, show_samples
from emu.training.run_page import PAGE_FILE
from emu.training.samples import SampleCallback, read_samples, sample_folders, write_samples
from tests.test_training_reliability import free_port, in_processes, sharded_over_two
from tests.training_toys import run, same, write_recipe

DRAW = "emu.evaluation.training_samples.DrawSamples"


class PictureDocuments(MixtureDataModule):
    """Captioned grey squares, tokenized when they are asked for."""

    def __init__(self, tokenizer: str, **options):
        super().__init__({"squares": 2}, 64, steps_per_epoch=4, **options)
        self.tokenizer = MultimodalTokenizer.from_pretrained(tokenizer)

    @property
    def vocabulary(self):
        return self.tokenizer.vocabulary

    def training_sources(self):
        pictures = [Image.new("RGB", (8, 8), (level, level, level)) for level in (0, 90, 255)]
        return {"squares": ListSource([self.tokenizer.document(["a red circle", picture]) for picture in pictures])}

    def save_pretrained(self, folder):
        self.tokenizer.save_pretrained(folder)


@pytest.fixture
def recipe(tiny_emu, tmp_path):
    tiny_emu.tokenizer.save_pretrained(tmp_path / "tokenizer")
    Image.new("RGB", (8, 8), "grey").save(tmp_path / "grey.png")
    path = write_recipe(tmp_path)
    config = yaml.safe_load(path.read_text())
    options = {"tokenizer": str(tmp_path / "tokenizer")}
    config["data"] = {"class_path": f"{__name__}.PictureDocuments", "init_args": options}
    config["model"]["config"]["max_position_embeddings"] = 256
    config["trainer"]["max_steps"] = 4
    path.write_text(yaml.safe_dump(config))
    return path


def with_samples(recipe, **options):
    config = yaml.safe_load(recipe.read_text())
    config["trainer"]["callbacks"] = [{"class_path": DRAW, "init_args": options}]
    path = recipe.with_name("sampled.yaml")
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_run_with_samples_is_the_run_without_and_shows_them_in_its_folder_and_on_its_page(recipe, tmp_path):
    drawn = {"images": ["a <red> circle"], "videos": ["a ball"], "describe": [str(tmp_path / "grey.png")]}
    sizes = {"options": {"size": [8, 8]}, "video_options": {"size": [8, 8], "frames": 4, "fps": 4}, "max_new_tokens": 4}
    plain = run(recipe, "--trainer.default_root_dir", tmp_path / "plain")
    sampled = run(with_samples(recipe, every_n_steps=2, **drawn, **sizes))
    assert same(plain.model.state_dict(), sampled.model.state_dict())
    run_folder = tmp_path / "run"
    assert [step for step, _ in sample_folders(run_folder)] == [0, 2, 4]
    folder = sample_folders(run_folder)[-1][1]
    samples = read_samples(folder)
    assert samples["image-0"] == {"prompt": "a <red> circle", "text": "", "file": "image-0.png"}
    assert Image.open(folder / "image-0.png").size == (8, 8)
    assert Image.open(folder / samples["video-0"]["file"]).n_frames == 4
    assert set(samples) == {"image-0", "video-0", "text-0"} and (folder / samples["text-0"]["file"]).is_file()
    page = (run_folder / PAGE_FILE).read_text()
    assert (
        "samples/step=00000004/image-0.png" in page
        and "a &lt;red&gt; circle" in page
        and "http" not in page.replace("http-equiv", "")
    )


@pytest.mark.slow
def test_samples_of_weights_that_are_split_are_those_of_whole_ones(recipe, tmp_path):
    sampled = with_samples(recipe, every_n_steps=2, images=["a red circle"], options={"size": [8, 8]})
    words = ("--model.average_decay", 0.5, "--model.config.residual_dropout", 0)
    run(sampled, *words, "--trainer.default_root_dir", tmp_path / "alone")
    assert in_processes(sharded_over_two, sampled, free_port(), words, count=2) == [0, 0]
    ours, theirs = (dict(sample_folders(tmp_path / name)) for name in ("run", "alone"))
    assert ours.keys() == theirs.keys() == {0, 2, 4}
    first = [(folders[0] / "image-0.png").read_bytes() for folders in (ours, theirs)]
    assert first[0] == first[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 2}, "nothing to draw"),
        ({"every_n_steps": 0, "images": ["a"]}, "every_n_steps is 0; expected 1 or more"),
        ({"images": ["a"], "options": {"size": [7, 8]}}, "7"),
        ({"describe": ["nowhere.png"]}, "nowhere.png"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_first_step(recipe, options, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(with_samples(recipe, **options))
    assert not (tmp_path / "run" / "metrics.csv").exists()


class Board(TensorBoardLogger):
    def __init__(self):
        self.shown = []

    @property
    def experiment(self):
        return self

    def add_image(self, name, array, step, dataformats):
        self.shown.append((name, array.shape, step, dataformats))

    def add_text(self, name, text, step):
        self.shown.append((name, text, step))


class Project(WandbLogger):
    def __init__(self):
        self.shown = []

    def log_image(self, key, images, step, caption):
        self.shown.append((key, images[0].size, step, caption))

    def log_video(self, key, videos, step, caption, format):
        self.shown.append((key, Image.open(videos[0]).n_frames, step, caption, format))

    def log_text(self, key, columns, data, step):
        self.shown.append((key, data, step))


def test_samples_come_into_every_logger_that_shows_pictures():
    frames = tuple(Image.new("RGB", (4, 2), shade) for shade in ("black", "white", "grey"))
    picture, text = Sample("image-0", "a box", frames[:1]), Sample("text-0", "what?", text="a ball")
    board, project = Board(), Project()
    show_samples([board], [picture, text], 7)  # clips need the package: tests/test_training_loggers.py
    show_samples([project], [picture, Sample("video-0", "a ball", frames, 8.0), text], 7)
    assert board.shown == [
        ("samples/image-0", (2, 4, 3), 7, "HWC"),
        ("samples/image-0", "a box", 7),
        ("samples/text-0", "what?\n\na ball", 7),
    ]
    assert project.shown == [
        ("samples/image-0", (4, 2), 7, ["a box"]),
        ("samples/video-0", 3, 7, ["a ball"], ["gif"]),
        ("samples/texts", [["text-0", "what?", "a ball"]], 7),
    ]


def test_a_logger_without_its_package_or_of_an_unknown_name_is_named_with_all_else_that_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("emu.training.loggers.find_spec", lambda name: None)
    loggers = '["tensorboard", "wandb", "tensorbord"]'
    with pytest.raises(ValueError) as refused:
        run(write_recipe(tmp_path), "--loggers", loggers, "--model.optimizer.lr", -1)
    message = str(refused.value)
    for part in ("run pip install tensorboard", "run pip install wandb", "'tensorbord'; expected some of", "lr is -1"):
        assert part in message
    assert not Path(tmp_path / "run").exists()


def test_samples_of_steps_after_the_one_that_a_run_goes_on_from_go(tmp_path):
    class One(SampleCallback):
        def draw(self, trainer, module):
            return [Sample("text-0", "", text=str(trainer.global_step))]

    for step in (0, 4, 8):
        write_samples(tmp_path, step, [Sample("text-0", "", text="old")])

    class Stand:
        global_step, is_global_zero, default_root_dir, loggers = 4, True, str(tmp_path), ()

    One(4).on_train_start(Stand(), LightningModule())
    texts = {
        step: json.loads((folder / "samples.json").read_text())["text-0"]["text"]
        for step, folder in sample_folders(tmp_path)
    }
    assert texts == {0: "old", 4: "4"}
