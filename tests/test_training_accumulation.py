"""Accumulated batches train as one batch that holds all of them, wherever epochs end."""

import itertools

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

import emu_kernels
from emu.data.loader import StepLoader
from emu.model.norm import RMSNorm
from emu.packing import Packed
from emu.training.curves import read_curves
from tests.test_training_reliability import free_port, in_processes, one_of_two, sharded_over_two
from tests.training_toys import ToyData, run, write_recipe

STEPS = 20
ACCUMULATIONS, EPOCHS = (1, 2, 3, 8), (5, 17, 1000)
KINDS = ("--model.weighting.mean", "kinds", "--model.weighting.kinds", "{vision: 0.5}")
FEW = {(3, 5, KINDS)}
"""What every test run tries; the rest is slow."""


@pytest.fixture
def _exact_norms(monkeypatch):
    """Norms in float64: the model's own have float32 statistics, whose last bits depend on how rows are grouped."""

    def forward(norm, x, residual=None):
        total = x if residual is None else x + residual
        normed = torch.nn.functional.rms_norm(total, total.shape[-1:], norm.weight, norm.eps)
        return normed if residual is None else (normed, total)

    monkeypatch.setattr(RMSNorm, "forward", forward)
    # Queries and keys are normed on the way to their rotation.
    turned = lambda x, rotary, norm: emu_kernels.rotary(norm(x), *rotary)  # noqa: E731
    monkeypatch.setattr("emu.model.attention.rotate", turned)


class Late(ToyData):
    """Starts at a step of the epoch; in one piece it joins the batches of a step into one."""

    def __init__(self, *args, start=0, joined=1, **options):
        super().__init__(*args, **options)
        self.start, self.joined = start, joined

    def train_dataloader(self):
        loader = super().train_dataloader()
        if self.joined > 1:
            loader = StepLoader(Joined(loader.batches(), self.joined), steps_per_epoch=self.steps_per_epoch)
        loader.step = self.start * loader.accumulation
        return loader


class Joined:
    def __init__(self, batches, count):
        self.batches, self.count = batches, count

    def __getitem__(self, step):
        parts = [self.batches[step * self.count + part] for part in range(self.count)]
        return Packed(*map(torch.cat, zip(*parts, strict=True)))


class Gradients(Callback):
    """Keeps the gradient of every optimizer step, before it is clipped."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append({name: parameter.grad.clone() for name, parameter in pl_module.named_parameters()})


def trained(folder, accumulated, steps_per_epoch, joined, *words):
    folder.mkdir()
    start = max(0, steps_per_epoch - 7) if steps_per_epoch > STEPS else 0
    module = run(
        write_recipe(folder),
        "--data", f"{__name__}.Late", "--data.start", start, "--data.joined", accumulated if joined else 1,
        "--data.steps_per_epoch", steps_per_epoch, "--data.row_length", 32,
        "--data.documents_per_step", "{captions: 3, pictures: 4}",
        "--trainer.accumulate_grad_batches", 1 if joined else accumulated,
        "--trainer.max_steps", STEPS, "--model.optimizer.total_steps", STEPS, "--trainer.precision", "64-true",
        "--trainer.limit_val_batches", 0, "--model.config.residual_dropout", 0, "--export", "null",
        "--trainer.callbacks+", f"{__name__}.Gradients", *words,
    )  # fmt: skip
    gradients = next(callback.steps for callback in module.trainer.callbacks if isinstance(callback, Gradients))
    return module, gradients, read_curves(folder / "run" / "metrics.csv")


@pytest.mark.usefixtures("_exact_norms")
@pytest.mark.parametrize(
    ("accumulated", "steps_per_epoch", "words"),
    [
        pytest.param(*case, marks=[] if case in FEW else pytest.mark.slow)
        for case in itertools.product(ACCUMULATIONS, EPOCHS, ((), KINDS))
    ],
)
def test_accumulated_batches_train_as_one(tmp_path, accumulated, steps_per_epoch, words):
    ours, gradients, curves = trained(tmp_path / "parts", accumulated, steps_per_epoch, False, *words)
    theirs, expected, wanted = trained(tmp_path / "whole", accumulated, steps_per_epoch, True, *words)
    assert len(gradients) == len(expected) == STEPS
    for step in range(1, STEPS + 1):
        for name in (
            "train/loss",
            "train/gradient_norm",
            "train/loss/text",
            "train/loss/vision",
            "train/source_loss/captions",
        ):
            assert curves[step][name] == pytest.approx(wanted[step][name], rel=1e-6), (step, name)
    for found, whole in zip(gradients, expected, strict=True):
        for name, gradient in whole.items():
            assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name
    for name, weight in theirs.state_dict().items():
        assert (ours.state_dict()[name] - weight).abs().max() <= 1e-6 * weight.abs().max(), name


def test_a_loader_that_knows_no_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"accumulate_grad_batches is 2, but DataLoader .*StepLoader"):
        run(write_recipe(tmp_path), "--data", f"{__name__}.Plain", "--trainer.accumulate_grad_batches", 2)


class Plain(Late):
    def train_dataloader(self):
        return DataLoader(super().train_dataloader().batches(), batch_size=None, sampler=range(20))


def test_an_epoch_that_would_end_inside_a_step_is_refused(tmp_path):
    words = ("--trainer.accumulate_grad_batches", 3, "--trainer.limit_train_batches", 7)
    with pytest.raises(ValueError, match="epoch of 7 batches.*accumulate_grad_batches 3"):
        run(write_recipe(tmp_path), *words)


def test_an_accumulation_that_changes_is_refused(tmp_path):
    words = ("--trainer.callbacks", "GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{0: 1, 2: 4}")
    with pytest.raises(ValueError, match="changes the accumulation from epoch to epoch"):
        run(write_recipe(tmp_path), *words)


@pytest.mark.slow
@pytest.mark.parametrize("two", [one_of_two, sharded_over_two])
def test_two_processes_accumulate_as_one(tmp_path, two):
    recipe, words = write_recipe(tmp_path), ("--trainer.accumulate_grad_batches", 3, "--trainer.max_steps", 6, *KINDS)
    run(recipe, *words, "--model.config.residual_dropout", 0, "--trainer.default_root_dir", tmp_path / "alone")
    assert in_processes(two, recipe, free_port(), words, count=2) == [0, 0]
    ours, theirs = (read_curves(path / "metrics.csv") for path in (tmp_path / "run", tmp_path / "alone"))
    for step in range(1, 7):
        for name in ("train/loss", "train/gradient_norm", "train/loss/text"):
            assert ours[step][name] == pytest.approx(theirs[step][name], rel=2e-4), (step, name)
