"""What a run makes of its recipe: the record it leaves, loggers of one's own, validation, hints."""

import logging
import warnings

import pytest
import yaml

from emu.data import ListSource, Mixture
from emu.data.mixture import counts_per_step
from emu.data.rows import row_length_hint, row_use
from emu.training.cli import EmuCLI, fit
from emu.training.curves import read_curves
from emu.training.module import EmuModule
from tests.training_toys import ToyData, make_document, run, write_recipe

SECRET = "hunter2"


class Guarded(ToyData):
    def __init__(self, documents_per_step: dict[str, int], row_length: int, token: str, steps_per_epoch: int = 5):
        super().__init__(documents_per_step, row_length, steps_per_epoch=steps_per_epoch)
        self.token = token


class Unvalidated(ToyData):
    def validation_sources(self):
        return {}


def change(recipe, **sections):
    config = yaml.safe_load(recipe.read_text())
    for section, values in sections.items():
        config[section] |= values
    recipe.write_text(yaml.safe_dump(config, sort_keys=False))
    return recipe


def test_the_record_keeps_interpolations_and_no_secrets(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EMU_TEST_SECRET", SECRET)
    monkeypatch.setenv("EMU_TEST_STEPS", "3")
    recipe = change(write_recipe(tmp_path), trainer={"max_steps": "${oc.env:EMU_TEST_STEPS}"})
    options = {"save_dir": str(tmp_path), "name": "${oc.env:EMU_TEST_SECRET}"}
    change(recipe, trainer={"logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": options}]})
    words = [
        "--model.config.intermediate_size",
        "${mul:${model.config.hidden_size},2}",
        "--model.optimizer.warmup_steps=1",
    ]
    with pytest.raises(SystemExit) as ended:
        run(recipe, *words, "--print_config")
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    module = run(recipe, *words)
    folder = tmp_path / "run"
    written, resolved = (
        yaml.safe_load((folder / name).read_text()) for name in ("config.yaml", "config.resolved.yaml")
    )
    assert yaml.safe_load(printed) == written and SECRET not in printed
    assert module.model.config.intermediate_size == 64 and module.trainer.global_step == 3
    assert written["model"]["config"]["intermediate_size"] == "${mul:${model.config.hidden_size},2}"
    assert resolved["model"]["config"]["intermediate_size"] == 64
    for record in (written, resolved):
        assert record["trainer"]["max_steps"] == "${oc.env:EMU_TEST_STEPS}"
        assert record["model"]["optimizer"]["warmup_steps"] == 1
        assert record["trainer"]["logger"][0]["init_args"]["name"] == "${oc.env:EMU_TEST_SECRET}"
    again = EmuCLI(EmuModule, ["--config", str(folder / "config.yaml"), "--model.config.hidden_size", "16"])
    assert again.model.config.intermediate_size == 32


def test_what_lightning_has_for_texts_is_recorded_as_text_and_no_loggers_are_none(tmp_path, capsys):
    timer = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": "00:01:00:00"}}
    recipe = change(write_recipe(tmp_path), trainer={"callbacks": [timer]})
    recipe.write_text(recipe.read_text() + "loggers: null\n")
    words = ["--config", str(recipe)]
    with pytest.raises(SystemExit):
        EmuCLI(EmuModule, [*words, "--print_config"])
    (printed,) = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert printed["init_args"] == {**timer["init_args"], "interval": "step", "verbose": True}
    assert EmuCLI(EmuModule, words).trainer.max_steps == 12


def test_no_file_of_a_run_holds_a_secret_and_resuming_still_notices_another_one(tmp_path, monkeypatch):
    monkeypatch.setenv("EMU_TEST_SECRET", SECRET)
    recipe = change(write_recipe(tmp_path), data={"class_path": f"{__name__}.Guarded"}, checkpoint={"every_n_steps": 1})
    words = ["--data.token", "${oc.env:EMU_TEST_SECRET}"]
    module = run(recipe, *words, "--trainer.max_steps", 1)
    assert module.trainer.datamodule.token == SECRET
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 5 and not [path for path in files if SECRET.encode() in path.read_bytes()]
    run(recipe, *words, "--trainer.max_steps", 2, "--ckpt_path", "last")
    monkeypatch.setenv("EMU_TEST_SECRET", "another")
    with pytest.raises(ValueError, match=r"data.*token was \$\{oc.env:EMU_TEST_SECRET\} \(sha256"):
        run(recipe, *words, "--trainer.max_steps", 3, "--ckpt_path", "last")


def test_curves_stay_beside_a_logger_of_ones_own(tmp_path):
    recipe = write_recipe(tmp_path)
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "csv")}}
    fit(["--config", str(change(recipe, trainer={"logger": csv, "max_steps": 2}))])
    assert read_curves(tmp_path / "run" / "metrics.csv")[2]["train/loss"] > 0
    assert (tmp_path / "run" / "loss.png").is_file() and list((tmp_path / "csv").rglob("metrics.csv"))


def test_validation_every_so_many_steps_needs_no_second_option(tmp_path):
    run(
        write_recipe(tmp_path), "--trainer.val_check_interval", 7, "--trainer.max_steps", 8, "--data.steps_per_epoch", 5
    )
    curves = read_curves(tmp_path / "run" / "metrics.csv")
    assert [step for step, row in curves.items() if "val/loss" in row] == [7]


def test_a_run_without_validation_says_nothing_of_it(tmp_path):
    recipe = change(write_recipe(tmp_path), data={"class_path": f"{__name__}.Unvalidated"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(recipe, "--trainer.max_steps", 1)
    assert not [warning for warning in caught if "is zero" in str(warning.message)]


def mixture(lengths, count):
    return Mixture({"a": ListSource([make_document(length - 1, 0) for length in lengths])}, {"a": count})


def test_rows_that_would_stay_empty_are_told_with_a_better_length(tmp_path, caplog):
    hint = row_length_hint(mixture([20, 20, 20], 9), 35)
    assert hint is not None and "57%" in hint
    better = int(hint.partition("row_length ")[2].split()[0])
    assert row_use([[20] * 9], better) > 0.8
    assert row_length_hint(mixture([20, 20, 20], 9), 41) is None
    recipe = write_recipe(tmp_path)
    with caplog.at_level(logging.WARNING, logger="emu"):
        run(recipe, "--trainer.max_steps", 1, "--data.documents_per_step", "{captions: 1}", "--export", "null")
    assert "row_length" in caplog.text


def test_shares_of_a_number_of_documents_are_as_near_as_whole_numbers_come():
    assert counts_per_step({"a": 3, "b": 1}) == {"a": 3, "b": 1}
    assert counts_per_step(8, {"a": 0.75, "b": 0.25}) == {"a": 6, "b": 2}
    assert counts_per_step(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    for total in range(7, 40):
        shares = {"a": 0.7, "b": 0.2, "c": 0.1}
        counts = counts_per_step(total, shares)
        assert sum(counts.values()) == total
        assert all(abs(counts[name] - total * share) < 1 for name, share in shares.items())


@pytest.mark.parametrize(
    ("documents", "shares", "message"),
    [
        (8, None, "give shares too"),
        ({"a": 1}, {"a": 1.0}, "give either"),
        (8, {"a": 1.0, "b": -1.0}, "expected positive numbers"),
        (4, {"a": 0.99, "b": 0.01}, "'b' comes to 0.04 of 4 documents.*100 or more"),
    ],
)
def test_shares_that_cannot_be_drawn_are_refused(documents, shares, message):
    with pytest.raises(ValueError, match=message):
        counts_per_step(documents, shares)


def test_shares_work_from_a_recipe(tmp_path):
    recipe = write_recipe(tmp_path)
    cli = EmuCLI(
        EmuModule,
        ["--config", str(recipe), "--data.documents_per_step", "4", "--data.shares", "{captions: 3, pictures: 1}"],
    )
    assert cli.datamodule.documents_per_step == {"captions": 3, "pictures": 1}
