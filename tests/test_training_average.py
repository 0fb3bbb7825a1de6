"""A moving average of the weights is validated, exported and kept in checkpoints; training goes on as without it."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from emu.model import EmuForCausalLM
from emu.training.checkpoint_file import read_checkpoint
from emu.training.curves import read_curves
from emu.training.module import EmuModule
from emu.training.weight_average import WeightAverage
from tests.test_training_best_weights import recipe_of
from tests.training_toys import run, same, write_recipe

AVERAGED = ("--model.average_decay", 0.8)
LAST = "checkpoints/step=00000012.safetensors"


def exported(folder):
    return EmuForCausalLM.from_pretrained(folder / "model").state_dict()


def test_the_average_is_that_of_the_weights_after_each_step_and_leaves_them_alone():
    layer = nn.Linear(2, 1, bias=False)
    average, expected = WeightAverage(layer, 0.9), None
    for number in (1.0, 2.0, 5.0):
        nn.init.constant_(layer.weight, number)
        average.update()
        expected = number if expected is None else 0.9 * expected + 0.1 * number
    average.use()
    average.use()
    assert layer.weight.tolist() == [pytest.approx([expected, expected])]
    assert average.put_back() and not average.put_back() and layer.weight.tolist() == [[5.0, 5.0]]


def test_weights_in_half_precision_have_an_average_in_float32():
    layer = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    average = WeightAverage(layer, 0.999)
    nn.init.constant_(layer.weight, 1.0)
    average.update()
    nn.init.constant_(layer.weight, 1.5)
    average.update()
    assert average.state_dict()["weights"]["weight"].tolist() == [pytest.approx([1.0005, 1.0005])]


@pytest.mark.parametrize("skipped", ["", "gradient norm nan"])
def test_a_step_that_is_skipped_leaves_the_average_alone(monkeypatch, skipped):
    monkeypatch.setattr(LightningModule, "optimizer_step", lambda self: None)
    module, updates = EmuModule(pretrained="anywhere"), []
    module.weight_average = SimpleNamespace(update=lambda: updates.append(1))
    module.gradients.skipped = skipped
    module.optimizer_step()
    assert len(updates) == (not skipped)


@pytest.mark.slow
def test_the_run_is_the_same_with_an_average_and_only_what_is_validated_and_exported_differs(tmp_path):
    recipe, plain, averaged = write_recipe(tmp_path), tmp_path / "plain", tmp_path / "averaged"
    words = ("--trainer.val_check_interval", 5, "--trainer.default_root_dir")
    run(recipe, *words, plain)
    run(recipe, *AVERAGED, *words, averaged)
    theirs, ours = (read_checkpoint(folder / LAST) for folder in (plain, averaged))
    assert same(theirs["state_dict"], ours["state_dict"]) and same(theirs["optimizer_states"], ours["optimizer_states"])
    average = ours["emu"]["average"]["weights"]
    assert same({name: exported(averaged)[name] for name in average}, average)
    assert not same(exported(plain), exported(averaged))
    rows = [read_curves(folder / "metrics.csv")[10]["val/loss"] for folder in (plain, averaged)]
    assert rows[0] != rows[1]


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_average_and_a_finished_one_exports_it_again(tmp_path):
    recipe, straight = write_recipe(tmp_path), tmp_path / "straight"
    run(recipe, *AVERAGED, "--trainer.default_root_dir", straight)
    run(recipe, *AVERAGED, "--trainer.max_steps", 6)
    run(recipe, *AVERAGED, "--ckpt_path", "last")
    assert same(exported(tmp_path / "run"), exported(straight))
    run(recipe, *AVERAGED, "--ckpt_path", "last")
    assert same(exported(tmp_path / "run"), exported(straight))
    with pytest.raises(ValueError, match="model.average_decay was 0.8"):
        run(recipe, "--ckpt_path", "last")


@pytest.mark.slow
def test_the_best_weights_are_averages_where_there_is_one(tmp_path):
    words = ("--trainer.val_check_interval", 2, "--checkpoint.every_n_steps", 2, "--model.optimizer.lr", 0.1, *AVERAGED)
    run(recipe_of(tmp_path), *words)
    best = min(
        (row["val/loss"], step)
        for step, row in read_curves(tmp_path / "run" / "metrics.csv").items()
        if "val/loss" in row
    )
    other = tmp_path / "other"
    run(recipe_of(tmp_path), *words, "--trainer.max_steps", best[1], "--trainer.default_root_dir", other)
    average = read_checkpoint(other / f"checkpoints/step={best[1]:08d}.safetensors")["emu"]["average"]["weights"]
    assert same({name: exported(tmp_path / "run")[name] for name in average}, average)
