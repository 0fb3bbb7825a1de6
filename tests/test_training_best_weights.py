"""The weights that are best on held-out documents are kept, and training ends when none are better; a resumed run does the same."""

from types import SimpleNamespace

import pytest
import torch
import yaml

from emu.data import ListSource
from emu.documents import TokenDocument
from emu.training.best_weights import KeepBest
from emu.training.curves import read_curves
from tests.training_toys import ToyData, make_document, run, same, write_recipe

STEPS = ("--trainer.val_check_interval", 2, "--checkpoint.every_n_steps", 2, "--model.optimizer.lr", 0.1)


class Backwards(ToyData):
    """Validates on documents that run the other way: the more is learned, the worse they are predicted."""

    def validation_sources(self):
        document = make_document(6, 0)
        return {"captions": ListSource([TokenDocument(document.ids.flip(0), document.weights)] * 4)}


def recipe_of(folder, patience=2, data=Backwards):
    path = write_recipe(folder)
    table = yaml.safe_load(path.read_text())
    table["trainer"]["callbacks"] = [
        {"class_path": "emu.training.best_weights.KeepBest", "init_args": {"patience": patience}}
    ]
    table["data"]["class_path"] = f"{data.__module__}.{data.__name__}"
    path.write_text(yaml.safe_dump(table))
    return path


def validated(folder):
    rows = read_curves(folder / "run" / "metrics.csv")
    return {step: row["val/loss"] for step, row in rows.items() if "val/loss" in row}


def weights(module):
    return {name: value.clone() for name, value in module.model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(recipe_of(folder), *STEPS)


def test_training_ends_when_the_held_out_loss_has_not_fallen_and_the_best_weights_are_kept(whole, tmp_path):
    folder, module = whole
    losses = validated(folder)
    best = min(losses, key=losses.get)
    assert max(losses) == module.trainer.global_step == best + 4 < 12
    short = run(write_recipe(tmp_path), *STEPS[4:], "--trainer.max_steps", best)
    assert same(weights(module), weights(short))


def test_without_patience_training_goes_to_its_end(tmp_path):
    assert run(recipe_of(tmp_path, 0), *STEPS).trainer.global_step == 12


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_that_is_resumed_keeps_and_ends_as_an_undisturbed_one(whole, tmp_path, stop):
    recipe = recipe_of(tmp_path)
    run(recipe, *STEPS, "--trainer.max_steps", stop)
    module = run(recipe, *STEPS, "--ckpt_path", "last")
    assert module.trainer.global_step == whole[1].trainer.global_step
    assert same(weights(module), weights(whole[1])) and validated(tmp_path) == validated(whole[0])


@pytest.mark.parametrize(("accumulated", "steps", "owed"), [(1, 8, True), (1, 6, False), (2, 6, True), (2, 7, False)])
def test_a_last_validation_is_owed_after_as_many_batches_as_lie_between_two(accumulated, steps, owed):
    callback = KeepBest()
    trainer = SimpleNamespace(val_check_interval=4, global_step=steps, accumulate_grad_batches=accumulated)
    trainer.enable_validation, trainer.interrupted = True, False
    assert callback._is_owed(trainer) is owed


@pytest.mark.parametrize("data", [Backwards, ToyData])
def test_a_run_that_had_ended_does_not_go_on_and_keeps_the_same_weights(tmp_path, data):
    recipe = recipe_of(tmp_path, data=data)
    first = run(recipe, *STEPS)
    module = run(recipe, *STEPS, "--ckpt_path", "last")
    assert module.trainer.global_step == first.trainer.global_step
    assert all(torch.equal(value, weights(module)[name]) for name, value in weights(first).items())
