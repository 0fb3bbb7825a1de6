"""Files that appear whole, names in the order people count, folders that one process holds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu_tokenizers.files import (
    PARTIAL,
    FolderInUse,
    holding,
    natural_key,
    new_folder,
    read_json,
    replacing,
    write_file,
)

HOLDER = """
import os, sys, time
from pathlib import Path
from emu_tokenizers.files import holding
with holding(Path(sys.argv[1]), "emu fit"):
    if os.fork() == 0:
        time.sleep(60)  # a worker that outlives its parent
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_numbers_in_names_count_as_numbers():
    names = ["frame_10.png", "frame_2.png", "frame_0.png", "Frame_1.png", "b/1.png", "a10/1.png", "a9/2.png"]
    assert sorted(names, key=natural_key) == [
        "a9/2.png",
        "a10/1.png",
        "b/1.png",
        "frame_0.png",
        "Frame_1.png",
        "frame_2.png",
        "frame_10.png",
    ]


def test_names_that_tie_have_one_order():
    assert sorted(["a01.png", "a1.png", "A1.png"], key=natural_key) == ["A1.png", "a01.png", "a1.png"]


def test_an_error_leaves_neither_file_nor_partial(tmp_path):
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_the_earlier_file(tmp_path):
    write_file(tmp_path / "a.bin", b"whole")
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")
    assert (tmp_path / "a.bin").read_bytes() == b"whole"
    assert not list(tmp_path.glob(f"*{PARTIAL}"))


def test_two_writers_of_one_process_number_never_share_a_temporary_file(tmp_path):
    # as the first processes of two containers that share a folder
    with replacing(tmp_path / "a.bin") as first, replacing(tmp_path / "a.bin") as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert (tmp_path / "a.bin").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_is_written_where_a_link_of_its_name_leads(tmp_path, is_there):
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "place")
    if is_there:
        (tmp_path / "disk" / "place").mkdir(parents=True)
        (tmp_path / "disk" / "place" / "mine").touch()
    with new_folder(tmp_path / "out", ("model*",)) as partial:
        (partial / "model.bin").touch()
    assert (tmp_path / "out").is_symlink()
    assert {file.name for file in (tmp_path / "disk" / "place").iterdir()} == {"model.bin"} | (
        {"mine"} if is_there else set()
    )
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["place"]


@pytest.fixture
def holder(tmp_path):
    paths = ":".join(str(Path(__file__).parents[1] / part) for part in ("", "tokenizers", "kernels"))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_process_is_refused_by_name(holder, tmp_path):
    with (
        pytest.raises(FolderInUse, match=rf"process {holder.pid} on .* \(emu fit, since"),
        holding(tmp_path, "emu fit"),
    ):
        pass


def test_a_killed_process_leaves_no_lock_though_its_workers_live(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    time.sleep(0.05)
    with holding(tmp_path, "emu fit"):
        pass


def test_one_process_holds_a_folder_once(tmp_path):
    with (
        holding(tmp_path, "emu fit"),
        pytest.raises(FolderInUse, match="this process"),
        holding(tmp_path, "emu tokenize"),
    ):
        pass
    with holding(tmp_path, "emu fit"):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe{\x00}\x00", b"\x00" * 64, b"[" * 100_000, b'{"a": "\xff"}']
)
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json"):
        read_json(tmp_path / "config.json")


def test_a_byte_order_mark_hides_nothing(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}
