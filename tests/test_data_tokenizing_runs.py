"""Shards are a pure function of the input and the options: whatever the processes, the ranks, the restarts and the kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from emu.cli.main import main
from emu.data.shards import TokenShards
from emu.data.tokenizing import encoding_processes, windows
from emu.data.tokenizing.pixel_batches import Piece, PixelBatches, batch_size
from emu_tokenizers.files import holding, write_json
from tests.tokenizing_toys import environment, files_of, png, scene

SIZES = ((8, 8), (8, 16), (12, 8))


@pytest.fixture
def place(shelf, tmp_path, monkeypatch):
    """Forty lines of text and pictures of several sizes, three of them bad, in windows of 4 and shards of 10."""
    monkeypatch.setattr(windows, "WINDOW_RECORDS", 4)
    monkeypatch.setattr("emu.data.tokenizing.shard_run.WINDOW_RECORDS", 4)
    lines = []
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png(number, *SIZES[number % 3]))
        lines.append({"items": [{"caption": f"a ball {number}"}, {"image": f"{number}.png"}]})
    lines[7], lines[20], lines[39] = {"items": [{"image": "none.png"}]}, {"items": ["a ball"]}, {"items": [""]}
    (tmp_path / "3.png").write_bytes(b"not a picture")
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tokenizer").symlink_to(shelf / "tokenizer")
    return tmp_path


def words(place, output, *more):
    base = ["tokenize", place / "documents.jsonl", "--tokenizer", place / "tokenizer", "--output", place / output]
    return [*map(str, base), "--shard-size", "10", *map(str, more)]


def test_batches_give_the_codes_of_single_pictures(tiny_emu):
    vision = tiny_emu.tokenizer.vision
    pieces = [Piece(str(i), pixels=_array(i, *SIZES[i % 3]), modality="image") for i in range(70)]
    batches = PixelBatches(vision)
    for piece in pieces:
        batches.add(piece)
    batches.flush()
    same = 0
    for number, piece in enumerate(pieces):
        (single,) = tiny_emu.tokenizer.segments(scene(number, *SIZES[number % 3]))
        same += torch.equal(piece.finished().codes, single.codes)
    assert same >= 69  # a tie may fall either way
    assert batch_size((64, 64, 3)) == 32 and batch_size((512, 512, 3)) == 1 and batch_size((8, 512, 512, 3)) == 1


def _array(*numbers):
    import numpy as np

    return np.asarray(scene(*numbers))


def test_what_waits_for_its_batch_is_bounded(tiny_emu, monkeypatch):
    monkeypatch.setattr("emu.data.tokenizing.pixel_batches.MAX_WAITING", 200)
    batches = PixelBatches(tiny_emu.tokenizer.vision)
    for number in range(10):
        batches.add(Piece("", pixels=_array(number, 4, 4 * (number + 1)), modality="image"))
        assert batches._pixels <= 200


def test_ranks_make_the_shards_of_one_process_and_the_last_one_closes(place, capsys, monkeypatch):
    assert main(words(place, "one")) == 1
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert main(words(place, "many")) in (0, 1)
        assert not (place / "many" / "manifest.json").exists()
    monkeypatch.setenv("RANK", "1")
    assert main(words(place, "many")) in (0, 1)
    assert files_of(place / "many") == files_of(place / "one")
    assert len(TokenShards(place / "many")) == 37
    monkeypatch.setenv("RANK", "3")
    assert main(words(place, "many")) == 2 and "RANK is 3" in capsys.readouterr().err


def test_a_rank_leaves_a_folder_to_those_that_have_not_looked_at_it_again(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def run(rank):
        monkeypatch.setenv("RANK", rank)
        return main(words(place, "out"))

    assert {run("0"), run("1")} <= {0, 1}
    closed = files_of(place / "out")
    (place / "out" / "shard-00001.ids.npy").unlink()  # of rank 1, which noted once that it was done
    (place / "out" / "manifest.json").unlink()
    assert run("0") in (0, 1) and not (place / "out" / "manifest.json").exists()
    assert run("1") in (0, 1) and files_of(place / "out") == closed


def test_a_rank_of_other_words_is_refused_while_one_works(place, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    other = place / "out" / ".ranks" / "1"
    with holding(other, "emu tokenize, rank 1"):
        write_json(other / "work.json", {"work": "of other settings", "ranks": 2})
        assert main(words(place, "out")) == 2
        monkeypatch.delenv("WORLD_SIZE")
        assert main(words(place, "out")) == 2
    assert capsys.readouterr().err.count("expected the same lines, settings, model and number of ranks") == 2
    assert not list((place / "out").glob("shard-*"))


def killed(arguments, writes):
    """Run a command in a child that is killed at its file number `writes` (five a shard), before or after that is there."""
    _, status = os.waitpid(begun(arguments, writes), 0)
    return os.WIFSIGNALED(status)


def begun(arguments, writes, **variables):
    """The child that `killed` waits for."""
    child = os.fork()
    if not child:
        os.environ.update(variables)
        replace, count = os.replace, [0]

        def replace_or_die(*names):
            count[0] += Path(names[1]).name != "work.json"
            if count[0] == writes and writes % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*names)
            if count[0] == writes:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace_or_die
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        main(arguments)
        os._exit(0)
    return child


@pytest.mark.parametrize(
    "kills", [(1, 4, 7), pytest.param((1, 2, 3, 4, 5, 6, 1, 6, 4, 6, 5, 3), marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_goes_on_and_ends_as_an_undisturbed_one(place, kills):
    assert main(words(place, "calm")) == 1
    for number in kills:
        assert killed(words(place, "killed"), number)
        with pytest.raises(FileNotFoundError):
            TokenShards(place / "killed")
    assert main(words(place, "killed")) == 1
    assert files_of(place / "killed") == files_of(place / "calm")


@pytest.mark.slow
def test_kills_of_a_run_of_several_processes_change_no_byte(place, monkeypatch):
    monkeypatch.undo()  # processes of their own have windows of the usual size
    assert main(words(place, "calm")) == 1
    for number in (1, 2, 3, 4, 5, 6, 1, 6, 4, 6, 5, 3):
        killed(words(place, "killed", "--processes", "2"), number)
    assert main(words(place, "killed", "--processes", "2")) == 1
    assert files_of(place / "killed") == files_of(place / "calm")


# The second rank has finished its first shard after the fourth pair of kills, and has noted that it is done at the last one.
@pytest.mark.parametrize("kills", [(4,), pytest.param((1, 2, 3, 5, 4, 5), marks=pytest.mark.slow)])
def test_kills_of_two_ranks_at_a_time_change_no_byte(place, monkeypatch, kills):
    assert main(words(place, "calm")) == 1
    for number in kills:
        ranks = [begun(words(place, "many"), number + rank, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
        assert all(os.WIFSIGNALED(os.waitpid(rank, 0)[1]) for rank in ranks)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        assert main(words(place, "many")) in (0, 1)
    assert files_of(place / "many") == files_of(place / "calm")


def test_a_smaller_input_leaves_no_shards_of_the_larger_one(place):
    assert main(words(place, "out")) == 1
    lines = (place / "documents.jsonl").read_text().splitlines(keepends=True)
    (place / "documents.jsonl").write_text("".join(lines[10:20]))
    assert main(words(place, "out")) == 0
    assert main(words(place, "new")) == 0
    assert files_of(place / "out") == files_of(place / "new")


def test_the_report_tells_what_was_left_out_and_shows_reconstructions(place):
    assert main(words(place, "out")) == 1
    page = (place / "out" / "report.html").read_text()
    assert "37 documents of 40 records" in page and "missing file" in page and "not a picture" in page
    assert page.count("<figure>") >= 8 and " dB</figcaption>" in page


def test_a_full_disk_is_one_line_and_nothing_is_half_written(place, monkeypatch, capsys):
    written = []

    def write(path, data):
        written.append(path)
        if len(written) == 6:
            raise OSError(28, "No space left on device")
        return original(path, data)

    original = type(place).write_bytes
    monkeypatch.setattr(type(place), "write_bytes", write)
    assert main(words(place, "out")) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in told and "shard-00001" in told
    monkeypatch.setattr(type(place), "write_bytes", original)
    assert main(words(place, "out")) == 1 and main(words(place, "new")) == 1
    assert files_of(place / "out") == files_of(place / "new")


def test_a_rank_that_runs_twice_is_refused(place, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    with holding(place / "out" / ".ranks" / "1", "another"):
        assert main(words(place, "out")) == 2
    assert "is in use" in capsys.readouterr().err


def test_processes_change_no_byte(place, monkeypatch):
    monkeypatch.undo()  # processes of their own have windows of the usual size
    assert main(words(place, "one")) == main(words(place, "two", "--processes", "2")) == 1
    assert files_of(place / "one") == files_of(place / "two")


@pytest.mark.slow
def test_processes_die_with_their_parent(place):
    lines = (place / "documents.jsonl").read_text() * 500
    (place / "documents.jsonl").write_text(lines)
    command = [sys.executable, "-m", "emu", *words(place, "out", "--processes", "2", "--max-bad", "1")]
    parent = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 200
    while not (place / "out" / "shard-00000.json").exists():
        assert time.monotonic() < end and parent.poll() is None
        time.sleep(0.2)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.kill()
    parent.wait()
    assert len(children) >= 2
    while any(Path("/proc", child).exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_process_that_ends_on_its_own_is_one_line(place, monkeypatch, capsys):
    def lost(*arguments):
        raise encoding_processes.LostProcess("a process that encodes ended on its own")

    monkeypatch.setattr("emu.data.tokenizing.shard_run.encode_in_processes", lost)
    assert main(words(place, "out", "--processes", "2")) == 1
    assert "emu tokenize: a process that encodes ended" in capsys.readouterr().err
    assert not (place / "out" / "manifest.json").exists()
