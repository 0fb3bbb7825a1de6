"""Documents small enough to train on in a second, shared by the tests of training."""

from unittest.mock import patch

import torch
import yaml
from lightning.pytorch import Callback

from emu.data import FunctionSource, ListSource
from emu.data.datamodule import MixtureDataModule
from emu.documents import TokenDocument
from emu.training.cli import fit
from emu.vocabulary import Vocabulary

TIMED = ("train/tokens_per_second", "train/waiting", "train/mfu")
"""Columns of the curves that differ from run to run."""
VOCABULARY = Vocabulary.build(16, {"vision": 32})


def make_document(length, first, key=0):
    ids = torch.cat([torch.tensor([VOCABULARY.control("bos")]), first + (torch.arange(length) + key) % 16])
    return TokenDocument(ids, torch.ones(length + 1))


class ToyData(MixtureDataModule):
    @property
    def vocabulary(self):
        return VOCABULARY

    def training_sources(self):
        captions = ListSource([make_document(5 + i % 5, 0) for i in range(30)])
        return {"captions": captions, "pictures": FunctionSource(self.draw, 40, max_length=13)}

    def draw(self, index, key):
        return make_document(12, 24, key % 7)

    def validation_sources(self):
        return {"captions": ListSource([make_document(6, 0) for _ in range(4)])}


def write_recipe(folder):
    config = {
        "seed_everything": 3,
        "trainer": {
            "max_steps": 12,
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "default_root_dir": str(folder / "run"),
        },
        "model": {
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 32,
                "residual_dropout": 0.1,
                "qk_norm": True,
                "z_loss": 1e-5,
            },
            "optimizer": {"lr": 1e-2, "warmup_steps": 2, "total_steps": 12},
        },
        "data": {
            "class_path": f"{__name__}.ToyData",
            "init_args": {"documents_per_step": {"captions": 3, "pictures": 4}, "row_length": 32, "steps_per_epoch": 5},
        },
        "checkpoint": {"every_n_steps": 6, "keep": 3},
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(recipe, *words):
    """Fit a recipe, without pictures of its curves, which take a quarter of the time; tests/test_training_fit.py has them."""
    with patch("emu.training.curves.plot_panels"):
        return fit(["--config", str(recipe), *map(str, words)])


def same(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


class ScoreBetweenSteps(Callback):
    """Runs the model on something else after every step, as a callback that measures it does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            pl_module.model(torch.zeros(1, 7, dtype=torch.long))
