"""`emu fit-tokenizer` speaks as `emu fit` does: the guard, rates by patterns, speed, samples and the page of a run."""

import json
import os

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from emu.stopping import Stopped
from emu.training.curves import read_curves
from emu.training.run_page import PAGE_FILE
from emu.training.samples import read_samples, sample_folders
from emu_tokenizers.training.gradient_guard import SKIPPED_FILE
from tests.test_tokenizers_streams import SHADES, png, write_tar
from tests.test_training_reliability import free_port, in_processes
from tests.test_training_resume import fit_shapes, shapes_recipe
from tests.training_toys import same

LOGGED = (
    "train/loss",
    "train/lr",
    "train/gradient_norm",
    "train/skipped_steps",
    "train/samples_per_second",
    "train/waiting",
)


class Poison(Callback):
    """Makes the gradient of a step not finite, or its pictures noise."""

    def __init__(self, step: int, noise: bool = False):
        self.step, self.noise = step, noise
        self.weights = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights[trainer.global_step] = pl_module.model.encoder.conv_in.weight.detach().clone()
        if self.noise and trainer.global_step == self.step:
            for pixels in batch.values():
                pixels.mul_(100)

    def on_after_backward(self, trainer, pl_module):
        if not self.noise and trainer.global_step == self.step:
            pl_module.model.encoder.conv_in.weight.grad.fill_(float("nan"))


def poisoned(step, noise=False):
    return (
        "--trainer.callbacks",
        f"{__name__}.Poison",
        "--trainer.callbacks.step",
        step,
        "--trainer.callbacks.noise",
        noise,
    )


@pytest.mark.filterwarnings("ignore:step")
def test_a_step_that_is_not_finite_changes_nothing_and_is_written_down(tmp_path):
    module = fit_shapes(shapes_recipe(tmp_path), *poisoned(2))
    weights = next(callback for callback in module.trainer.callbacks if isinstance(callback, Poison)).weights
    assert [torch.equal(weights[step], weights[step + 1]) for step in range(3)] == [False, False, True]
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / SKIPPED_FILE).read_text().splitlines()] == [2]
    row = read_curves(tmp_path / "run" / "metrics.csv")[3]
    assert row["train/skipped_steps"] == 1 and set(LOGGED) <= row.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:step")
def test_a_spike_is_skipped_and_a_resumed_run_looks_back_on_the_same_steps(tmp_path):
    words = (
        "--model.spikes",
        '{"window": 6}',
        "--model.optimizer.total_steps",
        12,
        "--checkpoint.every_n_steps",
        9,
        "--trainer.max_steps",
    )
    spiky, straight = poisoned(10, noise=True), tmp_path / "straight"
    whole = fit_shapes(shapes_recipe(tmp_path), *spiky, *words, 12, "--trainer.default_root_dir", straight)
    fit_shapes(shapes_recipe(tmp_path), *spiky, *words, 9)
    resumed = fit_shapes(shapes_recipe(tmp_path), *spiky, *words, 12, "--ckpt_path", "last")
    assert whole.gradients.num_skipped == resumed.gradients.num_skipped == 1
    assert whole.gradients.state_dict() == resumed.gradients.state_dict()
    assert same(whole.state_dict(), resumed.state_dict())
    assert (straight / SKIPPED_FILE).read_text() == (tmp_path / "run" / SKIPPED_FILE).read_text()


@pytest.mark.slow
def test_patterns_give_parts_of_a_tokenizer_their_own_rate(tmp_path):
    words = ("--model.optimizer.schedule", "constant", "--model.optimizer.warmup_steps", 0, "--model.optimizer.groups")
    module = fit_shapes(shapes_recipe(tmp_path), *words, '{"decoder.*": {"lr": 0.5, "weight_decay": 0}}')
    rest, decoder = module.trainer.optimizers[0].param_groups
    assert (rest["lr"], decoder["lr"], decoder["weight_decay"]) == (2e-3, 1e-3, 0)
    assert {id(parameter) for parameter in decoder["params"]} == {id(p) for p in module.model.decoder.parameters()}
    with pytest.raises(ValueError, match=r"no parameter is matched by 'head\.\*'"):
        fit_shapes(shapes_recipe(tmp_path), "--overwrite", "true", *words, '{"head.*": {}}')
    with pytest.raises(ValueError, match="optimizer.groups is set and optimizer.name is muon"):
        fit_shapes(
            shapes_recipe(tmp_path), "--overwrite", "true", "--model.optimizer.name", "muon", *words, '{"*": {}}'
        )


@pytest.mark.slow
def test_reconstructions_are_shown_and_change_nothing(tmp_path):
    recipe = shapes_recipe(tmp_path)
    plain = fit_shapes(recipe, "--trainer.default_root_dir", tmp_path / "plain")
    config = yaml.safe_load(recipe.read_text())
    shown = {"every_n_steps": 2, "count": 3}
    config["trainer"]["callbacks"] = [
        {"class_path": "emu.training.reconstructions.Reconstructions", "init_args": shown}
    ]
    recipe.write_text(yaml.safe_dump(config))
    module = fit_shapes(recipe)
    assert same(plain.state_dict(), module.state_dict())
    folders = sample_folders(tmp_path / "run")
    assert [step for step, _ in folders] == [0, 2, 4]
    samples = read_samples(folders[-1][1])
    assert set(samples) == {"image-0"}  # as many as are held out
    width, height = Image.open(folders[-1][1] / "image-0.png").size
    assert height == 2 * width
    assert "samples/step=00000004/image-0.png" in (tmp_path / "run" / PAGE_FILE).read_text()


@pytest.fixture
def streaming(tmp_path):
    """The recipe of shapes, on pictures that come from tar files as a stream."""
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", {f"{shade}.png": png(shade) for shade in range(number, SHADES, 3)})
    recipe = shapes_recipe(tmp_path)
    table = yaml.safe_load(recipe.read_text())
    options = {"images": f"webdataset:{tmp_path}/*.tar", "size": 32, "images_per_step": 2, "steps_per_epoch": 5}
    options |= {"streaming": True, "shuffle": 6, "validation_steps": 1}
    table["data"] = {"class_path": "emu_tokenizers.training.PictureData", "init_args": options}
    recipe.write_text(yaml.safe_dump(table))
    return recipe


@pytest.mark.slow
def test_a_run_on_streams_that_was_stopped_goes_on_with_the_stream(streaming, tmp_path):
    whole = fit_shapes(streaming, "--trainer.default_root_dir", tmp_path / "whole").state_dict()
    with pytest.raises(Stopped, match="saved at step 2"):
        fit_shapes(streaming, "--trainer.callbacks", "tests.test_training_resume.NoMoreThan")
    with pytest.raises(ValueError, match="shuffle was 6"):
        fit_shapes(streaming, "--ckpt_path", "last", "--data.init_args.shuffle", 8)
    assert same(fit_shapes(streaming, "--ckpt_path", "last").state_dict(), whole)


class SavePictures(Callback):
    """Saves the pictures that a rank has seen."""

    def on_train_start(self, trainer, pl_module):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch["image"].clone())

    def on_train_end(self, trainer, pl_module):
        torch.save(torch.stack(self.seen), f"{trainer.default_root_dir}/seen-{trainer.global_rank}.pt")


def streaming_over_two(rank, recipe, port, words):
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in settings.items()})
    fit_shapes(recipe, "--trainer.devices", 2, "--trainer.strategy", "ddp", *words)


@pytest.mark.slow
def test_two_processes_share_the_samples_that_one_has_of_a_stream(streaming, tmp_path):
    seeing = ("--trainer.callbacks", f"{__name__}.SavePictures")
    fit_shapes(streaming, *seeing, "--trainer.default_root_dir", tmp_path / "alone")
    assert in_processes(streaming_over_two, streaming, free_port(), seeing, count=2) == [0, 0]
    alone = torch.load(tmp_path / "alone" / "seen-0.pt")
    shares = [torch.load(tmp_path / "run" / f"seen-{rank}.pt") for rank in range(2)]
    assert torch.equal(torch.stack(shares, dim=2).flatten(1, 2), alone)
    assert not torch.equal(*shares)
