"""The mean of checkpoints as a model's folder."""

from __future__ import annotations

import pytest
import torch

from emu import Emu, EmuConfig, EmuForCausalLM
from emu.cli.main import main
from emu.training.checkpoint_file import read_checkpoint
from tests.training_toys import run, write_recipe


@pytest.fixture(scope="module")
def folder(tiny_emu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaging")
    tiny_emu.save_pretrained(folder / "a")
    torch.manual_seed(5)
    other = EmuForCausalLM(EmuConfig.from_dict(tiny_emu.model.config.to_dict()))
    Emu(other.eval(), tiny_emu.tokenizer, tiny_emu.defaults).save_pretrained(folder / "b")
    return folder


def average(target, source, *others):
    return main(["convert", str(source), str(target), "--to", "emu", "--average", *map(str, others)])


def test_weights_are_the_mean_and_all_else_is_the_sources(folder, tmp_path, tiny_emu):
    assert average(tmp_path / "mean", folder / "a", folder / "a", folder / "b") == 0
    ours, first, second = (Emu.from_pretrained(path) for path in (tmp_path / "mean", folder / "a", folder / "b"))
    for name, weight in ours.model.state_dict().items():
        wanted = (first.model.state_dict()[name].double() + second.model.state_dict()[name].double()) / 2
        assert torch.equal(weight, wanted.float()), name
    assert ours.defaults == tiny_emu.defaults and ours.tokenizer.fingerprints == tiny_emu.tokenizer.fingerprints


def test_the_mean_of_one_model_is_that_model(folder, tmp_path):
    assert average(tmp_path / "same", folder / "a", folder / "b", folder / "b", folder / "b") == 0
    ours, wanted = (EmuForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path / "same", folder / "b"))
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_checkpoints_of_a_run_are_averaged(tmp_path):
    recipe = write_recipe(tmp_path)
    run(recipe, "--trainer.max_steps", 2, "--checkpoint.every_n_steps", 1)
    steps = sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    assert len(steps) == 2 and average(tmp_path / "mean", tmp_path / "run" / "model", *steps) == 0
    states = [read_checkpoint(step)["state_dict"] for step in steps]
    for name, weight in EmuForCausalLM.from_pretrained(tmp_path / "mean").state_dict().items():
        wanted = (states[0][f"model.{name}"].double() + states[1][f"model.{name}"].double()) / 2
        assert torch.equal(weight, wanted.float()), name


def test_what_has_no_mean_is_refused(folder, tmp_path, tiny_emu, capsys):
    table = tiny_emu.model.config.to_dict()
    EmuForCausalLM(EmuConfig.from_dict(table | {"hidden_size": 64, "head_dim": 16})).save_pretrained(tmp_path / "wide")
    broken = EmuForCausalLM(EmuConfig.from_dict(table))
    with torch.no_grad():
        broken.lm_head.weight[3, 2] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    for other, told in (
        (tmp_path / "wide", "name checkpoints of one run"),
        (tmp_path / "nowhere", "no folder"),
        (tmp_path / "step=1.safetensors", "no checkpoint"),
        (tmp_path / "broken", "'lm_head.weight' holds NaN or infinity; leave it out of --average"),
    ):
        assert average(tmp_path / "mean", folder / "a", folder / "a", other) == 2
        assert told in capsys.readouterr().err and not (tmp_path / "mean").exists()
