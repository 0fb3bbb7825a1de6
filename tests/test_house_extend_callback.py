"""A callback of one's own: one file in the working folder, named by class path in a recipe."""

from __future__ import annotations

import sys

import pytest
import yaml

from emu.training.curves import read_curves
from tests.training_toys import run, write_recipe

CALLBACK = '''
from lightning.pytorch import Callback


class LargestWeight(Callback):
    """Logs the largest entry of the head, and ends the run where it has grown by so much."""

    def __init__(self, growth: float = 2.0) -> None:
        self.growth, self.first = growth, None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        largest = float(pl_module.model.lm_head.weight.detach().abs().max())
        self.first = self.first or largest
        for logger in trainer.loggers:
            logger.log_metrics({"train/largest_weight": largest}, step=trainer.global_step)
        trainer.should_stop = largest > self.growth * self.first
'''


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_callback.py").write_text(CALLBACK)
    path = write_recipe(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["trainer"]["callbacks"] = [{"class_path": "my_callback.LargestWeight", "init_args": {"growth": 1.1}}]
    config["trainer"]["min_steps"] = 1
    path.write_text(yaml.safe_dump(config))
    yield path
    sys.modules.pop("my_callback", None)


def test_a_callback_of_ones_own_follows_a_run_and_ends_it(recipe, tmp_path):
    run(recipe)
    largest = [row["train/largest_weight"] for row in read_curves(tmp_path / "run" / "metrics.csv").values()]
    assert 1 < len(largest) < 12 and largest[-1] > 1.1 * largest[0]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="growht"):
        run(recipe, "--trainer.callbacks.growht", 3, "--overwrite", "true")
