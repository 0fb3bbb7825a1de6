"""The process that decodes clips: what it costs a file to crash, hang or fill the memory, and that it goes when we go."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu_tokenizers.pixels.clip_process import ClipProcess
from emu_tokenizers.pixels.clip_worker import MEMORY_EXIT
from emu_tokenizers.pixels.images import BadPicture
from emu_tokenizers.pixels.videos import VideoFile
from tests.media_files import whole

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="needs signals")


@pytest.fixture
def process():
    found = ClipProcess()
    yield found
    found.close()


def frames(process: ClipProcess, name: str = "moving.gif", start: int = 0, count: int = 3) -> np.ndarray:
    found = process.ask(whole(name), name, ask="numbers", start=start, frames=count)[1]
    assert found is not None
    return found


def test_one_process_serves_all_clips(process):
    frames(process)
    first = process._process.pid
    assert frames(process, "moving.webp", 2, 9).shape == (4, 32, 32, 3) and process._process.pid == first


@posix
def test_a_clip_that_takes_too_long_costs_no_more_than_itself(process):
    frames(process)
    process.seconds = 0.2
    os.kill(process._process.pid, signal.SIGSTOP)  # as if it never ended
    with pytest.raises(BadPicture, match=r"moving\.gif took more than 0\.2 seconds") as caught:
        frames(process)
    assert caught.value.reason == "timeout"
    process.seconds = 60
    assert len(frames(process)) == 3


@posix
def test_the_time_of_a_clip_is_what_it_computes_and_not_what_others_take(process):
    frames(process)
    process.seconds = 0.2
    other = process._process
    os.kill(other.pid, signal.SIGSTOP)  # a machine on which others are at work
    threading.Timer(0.4, os.kill, (other.pid, signal.SIGCONT)).start()
    assert len(frames(process)) == 3 and process._process is other
    written, process.seconds = io.BytesIO(), 0.02
    Image.effect_noise((3000, 3000), 50).save(written, format="PNG", compress_level=1)
    with pytest.raises(BadPicture, match=r"took more than 0\.02 seconds") as caught:
        process.ask(written.getvalue(), "large.png", ask="numbers", start=0, frames=1)
    assert caught.value.reason == "timeout"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere memory is watched, not limited")
def test_a_clip_that_fills_the_memory_costs_no_more_than_itself():
    process, written = ClipProcess(memory=64 << 20), io.BytesIO()
    Image.new("1", (7000, 7000)).save(written, format="PNG")
    try:
        with pytest.raises(BadPicture, match=r"large\.png is too large") as caught:
            process.ask(written.getvalue(), "large.png", ask="numbers", start=0, frames=1)
        assert caught.value.reason == "too large"
        assert len(frames(process)) == 3
    finally:
        process.close()


@posix
def test_where_memory_is_watched_a_process_that_outgrows_its_limit_ends_itself():
    code = (
        "import threading, time\n"
        "from emu_tokenizers.pixels.clip_worker import _watch\n"
        "threading.Thread(target=_watch, args=(64 << 20,), daemon=True).start()\n"
        "time.sleep(0.1); filled = bytes(range(256)) * (1 << 19); time.sleep(10)\n"
    )
    # Through a shell: Linux counts what the process that starts another had in memory as the other's.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, env=_environment()).returncode == MEMORY_EXIT


@posix
def test_a_crash_is_the_files_problem_and_names_it(process):
    frames(process)
    pid = process._process.pid
    os.kill(pid, signal.SIGSTOP)  # so that it is surely in the middle of the request
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(BadPicture, match=r"moving\.gif ended the process that decodes it \(signal 9\)") as caught:
        frames(process)
    assert caught.value.reason == "crashed"
    assert len(frames(process)) == 3


@posix
def test_a_process_that_was_ended_between_two_clips_is_started_again(process):
    frames(process)
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    assert len(frames(process)) == 3


@posix
def test_a_stop_in_the_middle_leaves_no_half_answer(process, monkeypatch):
    frames(process)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("emu_tokenizers.pixels.clip_process._read", stop)
        with pytest.raises(KeyboardInterrupt):
            frames(process)
    assert np.array_equal(frames(process, "moving.webp"), frames(process, "moving.webp"))


def test_threads_wait_for_each_other(process):
    expected = frames(process)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: frames(process), range(8)))
    assert all(np.array_equal(one, expected) for one in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_its_own():
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from emu_tokenizers.pixels.clip_process import clip_process\n"
        "from emu_tokenizers.pixels.videos import VideoFile\n"
        "clip = VideoFile(Path(sys.argv[1]), 'a')\n"
        "print(clip.num_frames, clip_process._process.pid, flush=True)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    print(clip.num_frames, clip_process._process.pid, flush=True); clip_process.close(); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(clip.num_frames, clip_process._process.pid, flush=True)\n"
    )
    told = _run(code)
    (first, of_parent), (second, of_child), (third, again) = (line.split() for line in told)
    assert first == second == third == "6" and of_parent == again != of_child


@posix
def test_it_ends_with_the_one_that_asks_however_that_ends(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from emu_tokenizers.pixels.clip_process import clip_process\n"
        "from emu_tokenizers.pixels.videos import VideoFile\n"
        "VideoFile(Path(sys.argv[1]), 'a').num_frames\n"
        "print(clip_process._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (pid,) = _run(code, expected=-9)
    for _ in range(100):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text():
            return  # ended; nobody here waits for it
        time.sleep(0.05)
    pytest.fail("the process that decodes clips outlives the one that asks")


def test_a_script_without_a_main_guard_reads_clips_and_its_folder_shadows_nothing(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    file = tmp_path / "a.gif"
    file.write_bytes(whole("moving.gif"))
    (tmp_path / "sub").mkdir()
    script = tmp_path / "sub" / "script.py"
    script.write_text(
        "from emu_tokenizers.pixels.videos import VideoFile\nfrom pathlib import Path\nprint(VideoFile(Path('../a.gif'), 'a').num_frames)\n"
    )
    told = subprocess.run(
        [sys.executable, str(script)], cwd=script.parent, capture_output=True, text=True, env=_environment()
    )
    assert told.stdout.split() == ["6"], told.stderr


def test_a_file_that_is_gone_is_missing_and_not_bad(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        _ = VideoFile(tmp_path / "a.gif", "a").num_frames


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ":".join(str(ROOT / part) for part in ("", "tokenizers", "kernels"))}


def _run(code: str, expected: int = 0) -> list[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.gif")
        file.write_bytes(whole("moving.gif"))
        told = subprocess.run(
            [sys.executable, "-c", code, str(file)], capture_output=True, text=True, env=_environment()
        )
    assert told.returncode == expected, told.stderr
    return told.stdout.splitlines()
