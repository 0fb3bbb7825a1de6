"""The curves of excess bits: what a run reports as it trains, and that reporting changes nothing of the training."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from emu.evaluation.excess_curves import ExcessCurves
from emu.model import EmuConfig, EmuForCausalLM
from emu.training.weight_average import WeightAverage
from emu.worlds.training_data import WorldsData


class Module(LightningModule):
    """One that trains a model, and keeps an average of its weights."""

    def __init__(self, model, weight_average=None):
        super().__init__()
        self.model, self.weight_average = model, weight_average


class Logger:
    """Keeps what it is given."""

    def __init__(self):
        self.rows = []

    def log_metrics(self, row, step):
        self.rows.append((step, row))


@pytest.fixture(scope="module")
def data():
    return WorldsData({"one/text-to-image": 2, "moving/continuation": 1})


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    vocabulary = data.vocabulary
    config = EmuConfig(
        vocab_size=vocabulary.size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=vocabulary.controls["pad"],
        vocabulary=vocabulary.to_dict(),
    )
    return EmuForCausalLM(config).train()


def test_scores_and_samples_come_every_so_often_and_leave_the_training_as_it_was(data, model, tmp_path):
    logger = Logger()
    trainer = SimpleNamespace(
        datamodule=data,
        is_global_zero=True,
        loggers=[logger],
        progress_bar_callback=None,
        default_root_dir=str(tmp_path),
    )
    callback = ExcessCurves(every_n_steps=2, documents=30, samples=2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for trainer.global_step in (1, 2, 2, 3):  # a step of two micro-batches ends two batches
        callback.on_train_batch_end(trainer, Module(model), None, None, 0)
    ((step, row),) = logger.rows
    assert step == 2 and set(row) == {"excess/one/text-to-image", "excess/moving/continuation"}
    assert all(value > 10 for value in row.values())  # an untrained model is far above the floor
    # A row of pictures for each of the two worlds of shapes, and one for each of the four frames of clips.
    assert Image.open(tmp_path / "samples.png").size == (2 * 34 * 3, 6 * 34 * 3)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_average_is_scored_and_every_process_takes_part(data, model, tmp_path, monkeypatch):
    came = []

    @contextmanager
    def whole(module, trainer):
        came.append((trainer.is_global_zero, module.model.lm_head.weight.max().item(), module.training))
        yield

    monkeypatch.setattr("emu.evaluation.excess_curves.with_whole_model", whole)
    monkeypatch.setattr(ExcessCurves, "_report", lambda *_: came.append("scored"))
    average = WeightAverage(model, 0.5)
    with torch.no_grad():
        model.lm_head.weight.fill_(7)
    for zero in (True, False):
        trainer = SimpleNamespace(is_global_zero=zero, global_step=2)
        ExcessCurves(every_n_steps=2).on_train_batch_end(trainer, Module(model, average), None, None, 0)
    assert [one if one == "scored" else (one[0], one[1] < 7, one[2]) for one in came] == [
        (True, True, False), "scored", (False, True, False)
    ]  # fmt: skip
    assert model.training and model.lm_head.weight.min() == 7
