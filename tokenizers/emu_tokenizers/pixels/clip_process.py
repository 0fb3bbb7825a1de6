"""Decoding of clips in a process of its own, so that a file that crashes a decoder, never ends or fills the memory costs itself alone.

The process is started for the first clip, imports Pillow, numpy and PyAV alone, and is used for all that follow. It ends with the
process that started it, however that ends: its standard input closes then.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np

from emu_tokenizers.pixels.clip_worker import MEMORY_EXIT
from emu_tokenizers.pixels.images import BadPicture

CLIP_SECONDS = 60.0
"""Longest time of a processor that one request about a clip may take: what it takes by the clock depends on who else is at work."""
_OVERTIME = -signal.SIGPROF if hasattr(signal, "setitimer") else None
"""Exit code of a process that computed longer than it may; None where the system does not count that."""
_PATIENCE = 1 if _OVERTIME is None else 5
"""So many times as long a request may take by the clock."""
CLIP_MEMORY = 1 << 30
"""Bytes that the process may take above what it has at its start."""
_PIPE_BYTES = 1 << 20
"""Of the pipes, where the system lets us choose: a frame that fits costs one change between the processes."""
_START = "import sys; sys.path[:] = sys.argv[2:]; from emu_tokenizers.pixels.clip_worker import serve; serve()"


class ClipProcess:
    """The process that decodes, started when it is first asked and again after each loss.

    Args:
        seconds: longest time of a processor for one request.
        memory: bytes that it may take above its start.
    """

    def __init__(self, seconds: float = CLIP_SECONDS, memory: int = CLIP_MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, content: Path | bytes, name: str, **request: Any) -> tuple[dict[str, Any], np.ndarray | None]:
        """One request about a clip.

        Args:
            content: the file, or its bytes.
            name: what messages call it.
            request: see `emu_tokenizers.pixels.clip_worker`.

        Returns:
            The last message of the answer, and the frames (T, H, W, 3) uint8 where there are any.

        Raises:
            BadPicture: the file cannot be read, or the process ended, ran out of time or out of memory over it.
            FileNotFoundError: the file is gone.
            ModuleNotFoundError: PyAV is missing.
        """
        with self._lock:
            process = self._started()
            expired = threading.Event()

            def expire() -> None:
                expired.set()
                process.kill()

            timer = threading.Timer(_PATIENCE * self.seconds, expire)
            timer.daemon = True
            timer.start()
            try:
                answer = _exchange(process, content, {"name": name, "seconds": self.seconds, **request})
            except (OSError, EOFError) as error:
                self._stop()
                if expired.is_set() or process.returncode == _OVERTIME:
                    raise BadPicture(
                        "timeout", f"{name} took more than {self.seconds:g} seconds; read less of it"
                    ) from error
                if process.returncode == MEMORY_EXIT:
                    raise BadPicture("too large", f"{name} needs more than {self.memory} bytes of memory") from error
                raise BadPicture("crashed", f"{name} ended the process that decodes it ({_how(process)})") from error
            except BaseException:  # whatever stops us in the middle of an answer leaves the rest of it in the pipe
                self._stop()
                raise
            finally:
                timer.cancel()
            if answer[0].get("leaving"):
                self._stop()
        last, frames = answer
        if "bad" in last:
            raise BadPicture(*last["bad"])
        if "gone" in last:
            raise FileNotFoundError(f"there is no file {name}")
        if "missing" in last:
            raise ModuleNotFoundError(last["missing"])
        return last, frames

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:  # something else ended it meanwhile
            self._stop()
        if self._process is None:
            paths = [os.path.abspath(path) for path in sys.path]
            # One arena: with one for each thread, the limit of address space would count memory that nobody uses.
            environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(self.memory), *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pipesize=_PIPE_BYTES,
                env=environment,
            )
        return self._process

    def _stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            _close(process)
            process.wait()

    def close(self) -> None:
        """End the process; the next request starts another."""
        with self._lock:
            self._stop()

    def forget(self) -> None:
        """After a fork: the process is the parent's, and the child starts its own."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None:
            _close(process)
            process.returncode = 0  # not ours to wait for


def _exchange(
    process: subprocess.Popen[bytes], content: Path | bytes, request: dict[str, Any]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Send a request and read its answer.

    Raises:
        EOFError, OSError: the process ended before the answer did.
    """
    assert process.stdin is not None and process.stdout is not None
    if isinstance(content, bytes):
        message, payload = {**request, "follows": len(content)}, content
    else:
        message, payload = {**request, "path": os.path.abspath(content)}, b""
    text = json.dumps(message).encode()
    _write(process.stdin, struct.pack(">I", len(text)) + text)
    _write(process.stdin, payload)
    frames, shape = bytearray(), (0, 0)
    while True:
        (length,) = struct.unpack(">I", _read(process.stdout, 4))
        answer = json.loads(_read(process.stdout, length))
        if "frame" not in answer:
            break
        shape = answer["frame"]
        frame = _read(process.stdout, shape[0] * shape[1] * 3)
        for _ in range(answer["times"]):
            frames += frame
    if not frames:
        return answer, None
    return answer, np.frombuffer(frames, np.uint8).reshape(-1, *shape, 3)


def _write(file: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _read(file: IO[bytes], length: int) -> bytearray:
    data = bytearray(length)
    left = memoryview(data)
    while left:
        count = file.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the process that decodes clips ended")
        left = left[count:]
    return data


def _close(process: subprocess.Popen[bytes]) -> None:
    for file in (process.stdin, process.stdout):
        if file is not None:
            file.close()


def _how(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


clip_process = ClipProcess()
"""The one that readers share."""
atexit.register(clip_process.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=clip_process.forget)
