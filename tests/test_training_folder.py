"""One run a folder at a time, and disks that refuse."""

import errno
import multiprocessing
import os
import resource

import pytest
import yaml

from emu.cli.main import run as run_command
from emu.training.checkpoint_file import read_checkpoint, write_checkpoint
from emu.training.checkpoints import list_checkpoints
from emu_tokenizers.files import FolderInUse, holding, new_folder, write_file
from tests.training_toys import run, write_recipe


def hold(folder, connection):
    with holding(folder, "emu fit"):
        connection.send(os.getpid())
        connection.recv()


def test_a_second_run_in_a_folder_is_refused_with_the_first_ones_name(tmp_path):
    recipe, (ours, theirs) = write_recipe(tmp_path), multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run", theirs))
    other.start()
    with pytest.raises(FolderInUse, match=rf"in use by process {ours.recv()} on .* \(emu fit, since"):
        run(recipe, "--trainer.max_steps", 1)
    assert not (tmp_path / "run" / "config.yaml").exists() and not (tmp_path / "run" / "metrics.csv").exists()
    ours.send("go")
    other.join(60)
    run(recipe, "--trainer.max_steps", 1, "--export", "null")


@pytest.mark.slow
def test_a_folder_is_held_while_a_run_trains_and_not_after_it(tmp_path):
    recipe = write_recipe(tmp_path)
    with holding(tmp_path / "run", "emu tokenize"), pytest.raises(FolderInUse, match="emu tokenize"):
        run(recipe, "--trainer.max_steps", 1, "--overwrite", "true")
    run(recipe, "--trainer.max_steps", 1, "--export", "null")
    with holding(tmp_path / "run", "emu fit"):
        pass


def full_disk(monkeypatch, name):
    """A disk that has no room when a file of this name is to take its place."""
    replace = os.replace

    def refuse(source, target):
        if name in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)


def test_a_full_disk_is_one_line_and_costs_no_older_checkpoint(tmp_path, monkeypatch, capfd):
    recipe = write_recipe(tmp_path)
    full_disk(monkeypatch, "step=00000004")
    words = ("--trainer.max_steps", 6, "--checkpoint.every_n_steps", 2, "--checkpoint.keep", 1)
    assert run_command("emu fit", lambda: run(recipe, *words) and 0) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "emu fit" in line]
    assert line.endswith("step=00000004.safetensors: No space left on device")
    folder = tmp_path / "run"
    assert [step for step, _ in list_checkpoints(folder / "checkpoints")] == [2]
    assert read_checkpoint(folder / "checkpoints" / "step=00000002.safetensors")["global_step"] == 2
    assert not list(folder.rglob("*.partial"))


@pytest.mark.parametrize("write", [write_checkpoint, lambda path, content: write_file(path, bytes(200_000))])
def test_what_the_system_says_about_a_write_names_the_file(tmp_path, write):
    import torch

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"mine\.safetensors") as error:
            write(tmp_path / "mine.safetensors", {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno == errno.EFBIG and error.value.filename.endswith("mine.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_filled_leaves_nothing_and_keeps_the_earlier_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(OSError, match="model") as error, new_folder(tmp_path / "model") as partial:
        (partial / "half").write_text("half")
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (tmp_path / "model" / "old").exists()


def test_a_read_only_folder_is_one_line(tmp_path, capsys):
    def refused():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "curves"))

    assert run_command("emu tokenize", refused) == 1
    assert capsys.readouterr().err == f"emu tokenize: {tmp_path / 'curves'}: Read-only file system\n"


@pytest.mark.slow
def test_a_recipe_keeps_its_folder_where_another_logger_writes_too(tmp_path):
    recipe = write_recipe(tmp_path)
    table = yaml.safe_load(recipe.read_text())
    table["trainer"]["logger"] = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "other")}}
    recipe.write_text(yaml.safe_dump(table))
    run(recipe, "--trainer.max_steps", 2, "--export", "null")
    run(recipe, "--trainer.max_steps", 4, "--export", "null", "--ckpt_path", "last")
    assert (tmp_path / "run" / "metrics.csv").is_file() and list((tmp_path / "other").rglob("metrics.csv"))
