"""Batches over several processes: shares, kills, restarts and the one manifest of all."""

import errno
import fcntl
import json
import os
import random
import signal

import pytest
import torch

from emu import Emu
from emu.cli.batch_options import own_device
from emu.cli.line_problems import Problems
from emu.cli.main import main
from emu.data.tokenizing.ranks import Rank
from emu.lines import LineProblem, Place
from emu_tokenizers.files import holding
from tests.batch_toys import SRUN, begun_rank, ended, rank_run, use, words, write_lines
from tests.tokenizing_toys import files_of

RANKS = 2


@pytest.fixture
def place(tiny_emu, tmp_path, monkeypatch):
    """A folder with lines, of which two are bad, where no model is read again."""
    use(monkeypatch, tiny_emu)
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path)
    return tmp_path


@pytest.fixture
def run(place, monkeypatch):
    """Runs a rank in this process and returns its exit code."""

    def run_rank(output, *more, rank=0, size=1, command="generate-images"):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        return main(words(command, place / "prompts.jsonl", place / output, *more))

    return run_rank


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_ranks_make_what_one_process_makes_and_the_last_one_writes_the_manifest(run, place, capsys):
    assert run("one") == 1
    for rank in (2, 0):
        assert (
            run("many", rank=rank, size=3) == 0
        )  # what is bad is an error of the last one: launchers end all ranks with one
        assert not (place / "many" / "manifest.jsonl").exists()
    assert run("many", rank=1, size=3) == 1
    told, wrong = capsys.readouterr()
    assert told.count("the last of the 3 ranks writes") == 2
    for line in (2, 5):  # once by the process alone, and once by one of the ranks
        assert wrong.count(f"prompts.jsonl line {line}: ") == 2
    assert files_of(place / "many") == files_of(place / "one")
    assert [record["line"] for record in manifest(place / "one")] == [1, 3, 4, 6, 7]
    assert {"problems.jsonl", "overview.png"} < set(files_of(place / "many"))


def test_a_rank_that_runs_again_draws_nothing_and_changes_no_byte(run, place, monkeypatch):
    for rank in range(RANKS):
        run("out", rank=rank, size=RANKS)
    before = files_of(place / "out")
    monkeypatch.setattr(Emu, "iter_images", lambda self, prompts, **options: pytest.fail(f"{prompts} drawn again"))
    for rank in range(RANKS):
        assert run("out", rank=rank, size=RANKS) == rank
    assert run("out") == 1
    assert files_of(place / "out") == before


def test_what_ranks_left_unmerged_is_taken_by_any_number_of_processes(run, place, monkeypatch):
    run("one")
    drawn, draw = [], Emu.iter_images

    def counting(self, prompts, **options):
        drawn.extend(prompts)
        return draw(self, prompts, **options)

    monkeypatch.setattr(Emu, "iter_images", counting)
    assert run("alone", rank=1, size=4) == 0 and run("fewer", rank=3, size=4) == 0
    assert run("alone") == 1
    assert run("fewer", rank=1, size=2) == 0 and run("fewer", rank=0, size=2) == 1
    assert len(drawn) == 2 * 5
    assert files_of(place / "alone") == files_of(place / "fewer") == files_of(place / "one")


@pytest.mark.parametrize(
    "format, kills",
    [
        ("webdataset", (14,)),
        pytest.param("webdataset", range(1, 61, 5), marks=pytest.mark.slow),
        pytest.param("files", range(1, 61, 5), marks=pytest.mark.slow),
    ],
)
def test_ranks_that_are_killed_go_on_and_end_as_an_undisturbed_process(place, format, kills):
    def arguments(output):
        return words("generate-images", place / "prompts.jsonl", place / output, "--format", format, "--tar-size", 2)

    assert rank_run(arguments("calm")) == 1
    for kill in kills:
        for rank in range(RANKS):
            assert rank_run(arguments("out"), rank, RANKS, kill + rank) in (-signal.SIGKILL, 0, 1)
    assert {rank_run(arguments("out"), rank, RANKS) for rank in range(RANKS)} <= {0, 1}
    assert files_of(place / "out") == files_of(place / "calm")


@pytest.mark.parametrize("kills", [(9,), pytest.param(range(3, 51, 4), marks=pytest.mark.slow)])
def test_two_processes_at_a_time_that_are_killed_and_started_again_end_as_one(place, kills):
    def run_both(kill=None):
        children = [begun_rank(arguments("out"), rank, RANKS, kill and kill + 2 * rank) for rank in range(RANKS)]
        return [ended(child) for child in children]

    def arguments(output):
        return words("generate-images", place / "prompts.jsonl", place / output)

    assert rank_run(arguments("calm")) == 1
    for kill in kills:
        assert set(run_both(kill)) <= {-signal.SIGKILL, 0, 1}
    assert sorted(run_both()) == [0, 1]  # one of them closes the folder
    assert files_of(place / "out") == files_of(place / "calm")


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "no locks"])
def test_two_processes_of_srun_end_as_one_also_where_a_folder_has_no_locks(place, monkeypatch, has_locks):
    """As on the shared folder of a cluster, whose machines see each other's files and nothing else."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    assert rank_run(words("generate-images", place / "prompts.jsonl", place / "calm")) == 1
    if not has_locks:
        monkeypatch.setattr(fcntl, "lockf", refuse)
    arguments = words("generate-images", place / "prompts.jsonl", place / "out")
    children = [begun_rank(arguments, rank, RANKS, launcher=SRUN) for rank in range(RANKS)]
    codes = sorted(map(ended, children))
    assert codes == [0, 1] or (not has_locks and codes == [1, 1])  # without locks both may find that they are the last
    assert files_of(place / "out") == files_of(place / "calm")


@pytest.mark.parametrize("swept", ["problems.jsonl", "manifest.jsonl", "overview.png"])
def test_a_rank_whose_unfinished_file_another_one_swept_away_leaves_the_folder_to_it(run, place, monkeypatch, swept):
    """Two ranks may close a folder without locks, and each takes away what looks like the rest of a killed process."""
    replace = os.replace

    def sweeping(source, target):
        if os.path.basename(target) == swept and os.path.dirname(target) == str(place / "out"):
            os.unlink(source)
        replace(source, target)

    assert run("calm") == 1
    assert run("out", rank=0, size=2) == 0
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", sweeping)
        assert run("out", rank=1, size=2) == 0
    assert run("out", rank=1, size=2) in (0, 1)
    assert run("out", rank=0, size=2) in (0, 1)
    assert files_of(place / "out") == files_of(place / "calm")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["files", "webdataset"])
def test_a_kill_at_every_write_of_a_last_rank_changes_no_byte(place, format):
    def arguments(output):
        return words("generate-images", place / "prompts.jsonl", place / output, "--format", format, "--tar-size", 2)

    assert rank_run(arguments("calm")) == 1
    calm, kill, ended = files_of(place / "calm"), 0, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        kill += 1
        output = f"out{kill}"
        assert rank_run(arguments(output), 0, RANKS) == 0
        ended = rank_run(arguments(output), 1, RANKS, kill)
        assert {rank_run(arguments(output), rank, RANKS) for rank in (1, 0)} <= {0, 1}
        assert files_of(place / output) == calm, kill
    assert kill > 20


def test_clips_of_ranks_are_those_of_one_process(run, place):
    (place / "prompts.jsonl").write_text('{"prompt": "a ball"}\n{"prompt": "a ball rolling left", "frames": 4}\n')
    assert run("one", command="generate-videos") == 0
    for rank in (1, 0):
        assert run("two", rank=rank, size=2, command="generate-videos") == 0
    assert files_of(place / "two") == files_of(place / "one") and len(manifest(place / "two")) == 2


def test_a_rank_that_has_no_line_is_done_at_once(run, place):
    (place / "prompts.jsonl").write_text('{"prompt": "a ball"}\n')
    assert run("out", rank=1, size=2) == run("out", rank=0, size=2) == 0
    assert len(manifest(place / "out")) == 1


@pytest.mark.parametrize("rank, size", [(2, 2), ("-1", 2), ("one", 2)])
def test_a_rank_out_of_range_is_one_message(run, place, capsys, rank, size):
    assert run("out", rank=rank, size=size) == 2
    assert f"RANK is {rank} and WORLD_SIZE is 2; expected a rank below" in capsys.readouterr().err
    assert not (place / "out").exists()


def test_ranks_of_other_settings_or_of_another_size_are_refused_while_one_works(run, place, capsys):
    assert run("out", rank=1, size=2) == 0
    with holding(place / "out" / ".ranks" / "1", "rank 1"):
        assert run("out", "--top-k", 3, rank=0, size=2) == 2
        assert run("out", rank=0, size=3) == 2
        assert run("out", "--top-k", 3) == 2
        assert run("out", rank=1, size=2) == 2  # the same rank twice
    told = capsys.readouterr().err
    assert told.count("rank 1 works in") == 3 and "start all ranks with one command" in told and "is in use by" in told
    assert run("out", rank=0, size=2) == 1
    assert len(manifest(place / "out")) == 5


def test_other_work_that_was_given_up_is_kept_and_does_not_count(run, place):
    assert run("out", "--top-k", 3, rank=0, size=2) == 0
    assert run("out", rank=1, size=2) == 0
    assert not (place / "out" / "manifest.jsonl").exists()
    assert run("out", rank=0, size=2) == 1
    assert [record["top_k"] for record in manifest(place / "out")].count(3) == 3


def test_lines_that_one_process_alone_can_read_are_refused(run, place, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["generate-images", "-", "--output", str(place / "out")]) == 2
    assert "write the lines to a file" in capsys.readouterr().err and not (place / "out").exists()


def test_a_record_cut_by_a_kill_is_made_again(run, place):
    assert run("one") == 1
    assert run("out", rank=0, size=2) == 0
    part = place / "out" / ".ranks" / "0" / "manifest.jsonl"
    os.truncate(part, part.stat().st_size - 9)
    (part.parent / "done.json").unlink()
    assert run("out", rank=1, size=2) == 0 and run("out", rank=0, size=2) == 1
    assert files_of(place / "out") == files_of(place / "one")


def test_ranks_of_a_machine_take_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    torchrun = Rank.from_environment({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"})
    task = {"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "3", "SLURM_JOB_ID": "77"}
    slurm = Rank.from_environment({**task, "SLURM_STEP_ID": "0"})
    # The script of a job is told how many tasks it may start, and is none of them.
    assert Rank.from_environment({**task, "SLURM_PROCID": "0"}) == Rank()
    assert own_device(None, torchrun) == "cuda:1" and own_device("cuda", slurm) == "cuda:3"
    assert own_device("cpu", torchrun) == "cpu" and own_device(None, Rank()) is None


def test_what_an_earlier_run_of_another_rank_worked_on_is_no_reason_to_refuse(run, place):
    assert run("out", "--top-k", 3, rank=1, size=2) == 0
    with Rank(1, 2).holding(place / "out", "rank 1 as it begins"):
        assert run("out", rank=0, size=2) == 0


def test_problems_of_parts_in_any_order_are_those_of_the_whole(tmp_path):
    numbers = random.Random(0)
    found = [
        LineProblem(
            Place(f"{numbers.choice('ab')}.jsonl", number), numbers.choice(["not JSON", "wrong value"]), f"{number}"
        )
        for number in range(100)
    ]
    whole, merged, parts = Problems(1.0, quiet=True), Problems(1.0, quiet=True), []
    for number in range(3):
        parts.append(Problems(1.0, quiet=True))
        for problem in numbers.sample(found[number::3], len(found[number::3])):
            parts[-1].add(problem)
    for problem in found:
        whole.add(problem)
    for part in reversed(parts):
        merged.take(json.loads(json.dumps(part.table())))
    for name, problems in {"whole": whole, "merged": merged}.items():
        (tmp_path / name).mkdir()
        problems.write(tmp_path / name)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "merged")
    reports = map(json.loads, (tmp_path / "whole" / "problems.jsonl").read_text().splitlines())
    assert sum(report["count"] for report in reports) == 100


def test_what_lines_of_a_file_made_is_found_again_whatever_the_file_is_called(place, capsys):
    name = os.fsdecode(b"p\xff.jsonl")
    (place / name).write_text('{"prompt": "a ball"}\n')
    again = words("generate-images", place / name, place / "out", "--size", 8, 8)
    assert main(again) == main(again) == 0
    assert "0 images made, 1 were finished before" in capsys.readouterr().out
    assert len(manifest(place / "out")) == 1
