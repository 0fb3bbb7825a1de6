"""Files of checkpoints: what is read is what was written, or an error that names the file."""

import random
import shutil

import pytest
import torch

from emu.training.checkpoint_file import BadCheckpoint, read_checkpoint, write_checkpoint
from emu.training.checkpoints import check_checkpoint, list_checkpoints, resolve_checkpoint, superseded
from tests.training_toys import run, same, write_recipe

SOME, ALL = 10, 1000


def content(step=6, seed=0):
    random_numbers = torch.Generator().manual_seed(seed)
    weight = torch.randn(40, 30, generator=random_numbers)
    moments = {number: {"step": torch.tensor(float(step)), "exp_avg": weight.T + number} for number in range(2)}
    groups = [{"lr": 1e-3 + seed, "betas": (0.9, 0.95), "eps": float("inf"), "params": [0, 1], "fused": None}]
    return {
        "global_step": step,
        "state_dict": {
            "weight": weight,
            "tied": weight,
            "half": weight.bfloat16(),
            "none": torch.zeros(0),
            "$odd": True,
        },
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "emu": {"vocabulary": '"sha256":"' + "0" * 64},
    }


def test_what_is_read_is_what_was_written(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", content())
    assert same(read_checkpoint(tmp_path / "a.safetensors"), content())
    assert not list(tmp_path.glob("*.partial"))


def test_only_what_json_and_safetensors_hold_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"callbacks\.mine is a set"):
        write_checkpoint(tmp_path / "a.safetensors", {"callbacks": {"mine": {1, 2}}})
    assert not list(tmp_path.iterdir())


def corrupted(data, other, choice):
    """Bytes of a checkpoint after an accident: bits turned, the end cut off, a block of zeros, another file in its place."""
    kind = choice.randrange(5)
    if kind == 0:
        bit = choice.randrange(8 * len(data))
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)
    if kind == 1:
        return data[: choice.randrange(len(data))]
    if kind == 2:
        start = choice.randrange(len(data))
        length = min(len(data) - start, choice.randrange(1, 4096))
        return data[:start] + bytes(length) + data[start + length :]
    if kind == 3:
        header = choice.randrange(min(len(data), 2000))  # most bytes are tensors: the header gets accidents of its own
        return data[:header] + bytes([choice.randrange(256)]) + data[header + 1 :]
    return other


@pytest.mark.parametrize("number", [SOME, pytest.param(ALL, marks=pytest.mark.slow)])
def test_no_accident_goes_unnoticed_and_each_error_names_the_file(tmp_path, number):
    path = tmp_path / "step=00000006.safetensors"
    write_checkpoint(path, content())
    good = path.read_bytes()
    write_checkpoint(tmp_path / "other.safetensors", content(step=12, seed=1))
    other = (tmp_path / "other.safetensors").read_bytes()
    choice, changed = random.Random(number), 0
    for _ in range(number):
        bad = corrupted(good, other, choice)
        if bad == good:
            continue
        path.write_bytes(bad)
        with pytest.raises(BadCheckpoint, match=r"step=00000006\.safetensors"):
            check_checkpoint(path)
        changed += 1
    assert changed > 0.8 * number
    path.write_bytes(good)
    assert check_checkpoint(path)["global_step"] == 6


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 steps with checkpoints after 6 and 12; copy it."""
    folder = tmp_path_factory.mktemp("finished")
    run(write_recipe(folder), "--export", "null")
    return folder


@pytest.fixture
def recipe(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    return write_recipe(tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_the_older_whole_checkpoint_is_taken_where_the_newest_is_damaged(recipe, tmp_path, caplog, finished):
    folder = tmp_path / "run" / "checkpoints"
    truncate(folder / "step=00000012.safetensors")
    run(recipe, "--ckpt_path", "last")
    (warning,) = [record.message for record in caplog.records if "damaged" in record.message]
    assert "step=00000012.safetensors is damaged" in warning and "going on from the older" in warning
    assert "step=00000006.safetensors" in warning
    again, before = (
        read_checkpoint(where / "checkpoints" / "step=00000012.safetensors")["state_dict"]
        for where in (tmp_path / "run", finished / "run")
    )
    assert same(again, before)
    assert (folder / "step=00000012.safetensors.old").is_file()


def test_a_damaged_file_that_was_asked_for_is_refused_with_one_that_is_whole(recipe, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "step=00000006.safetensors"
    truncate(path)
    with pytest.raises(
        BadCheckpoint, match=r"step=00000006\.safetensors is damaged.*step=00000012\.safetensors is whole"
    ):
        run(recipe, "--ckpt_path", path)
    truncate(path.with_name("step=00000012.safetensors"))
    with pytest.raises(BadCheckpoint, match=r"step=00000012\.safetensors is damaged.*no other checkpoint"):
        run(recipe, "--ckpt_path", "last")


@pytest.mark.parametrize("data", [b"", b"hidden", b"\x80\x02}q\x00.", b"i" * 20_000, bytes(8)])
def test_a_file_that_is_not_a_checkpoint_gets_one_sentence(tmp_path, data):
    (tmp_path / "mine.safetensors").write_bytes(data)
    with pytest.raises(BadCheckpoint, match=r"^[^\n]*mine\.safetensors is not a checkpoint[^\n]*$"):
        resolve_checkpoint(str(tmp_path / "mine.safetensors"), tmp_path)


def test_weights_of_others_are_not_a_checkpoint_and_pickles_are_not_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="is not a checkpoint of a training run"):
        resolve_checkpoint(str(tmp_path / "model.safetensors"), tmp_path)
    torch.save({}, tmp_path / "step=00000003.ckpt")
    with pytest.raises(BadCheckpoint, match=r"step=00000003\.ckpt is a pickled checkpoint of an earlier version"):
        resolve_checkpoint("last", tmp_path)


def test_as_many_checkpoints_stay_as_were_asked_for(tmp_path):
    for keep in range(1, 6):
        for steps in range(1, 9):
            folder = tmp_path / f"{keep}-{steps}"
            folder.mkdir()
            for step in range(1, steps + 1):
                (folder / f"step={step:08d}.safetensors").touch()
                for path in superseded(folder, step, keep):
                    path.unlink()
            assert [step for step, _ in list_checkpoints(folder)] == list(range(max(1, steps - keep + 1), steps + 1))


@pytest.mark.slow
def test_going_on_from_an_older_checkpoint_puts_the_later_ones_aside(recipe, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    words = ("--ckpt_path", folder / "step=00000006.safetensors", "--trainer.max_steps", 8, "--checkpoint.keep", 1)
    run(recipe, *words, "--export", "null")
    assert [step for step, _ in list_checkpoints(folder)] == [8]
    assert (folder / "step=00000012.safetensors.old").is_file()
