"""The process that decodes clips: answers requests on its standard input until that ends.

A message is a length of four bytes, that much JSON, and as many bytes as the JSON says. A request names a file (or its bytes follow) and
asks for "count", "seconds", "numbers" or "times"; the answer is any number of {"frame"} messages and one that ends it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from PIL import Image

from emu_tokenizers.pixels.clips import Reel, opened_reel
from emu_tokenizers.pixels.images import BadPicture, fit_image

MAX_CLIP_FRAMES = 1 << 16
"""Most frames of a clip that are read."""
MAX_CLIP_PIXELS = 1 << 27
"""Most pixels of all frames of a clip together: 64 frames of 1920x1080, 2,048 of 256x256."""
UNTIMED_RATE = 8
"""Frames a second of pictures without times."""
MEMORY_EXIT = 77
"""Exit code of a process that outgrew its limit where the system does not keep it."""


def serve() -> None:
    """Answer requests; the first argument of the process is the memory that it may take above its start, in bytes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks, which ends this one
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    memory = int(sys.argv[1])
    limit_memory(memory)
    while header := requests.read(4):
        request = json.loads(requests.read(struct.unpack(">I", header)[0]))
        limit_time(request["seconds"])
        content = requests.read(request["follows"]) if request.get("follows") is not None else request["path"]
        try:
            for message, payload in answer(content, request):
                send(answers, message, payload)
        except BadPicture as error:
            # What was allocated may be in pieces: the next clip gets a fresh process.
            send(answers, {"bad": [error.reason, str(error)], "leaving": error.reason == "too large"})
        except FileNotFoundError as error:
            send(answers, {"gone": str(error)})
        except ModuleNotFoundError as error:
            send(answers, {"missing": str(error)})
        del content, request


def send(file: IO[bytes], message: dict[str, Any], payload: bytes = b"") -> None:
    """Write one message."""
    text = json.dumps(message).encode()
    file.write(struct.pack(">I", len(text)) + text)
    file.write(payload)
    file.flush()


def answer(content: str | bytes, request: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Messages that answer a request."""
    name, size = request["name"], request.get("size")
    with opened_reel(content, name) as reel:
        if request["ask"] == "count":
            yield {"count": reel.count()}, b""
            return
        if request["ask"] == "seconds":
            yield {"seconds": shown_seconds(reel)}, b""
            return
        rate = None
        if request["ask"] == "numbers":
            images = _some(reel.from_number(request["start"]), request["frames"])
            found: Iterator[tuple[Image.Image, int]] = ((image, 1) for image in images)
        else:
            rate = float(request["fps"] or reel.rate or UNTIMED_RATE)
            found = at_times(reel, rate, request["start"], request["frames"])
        total = 0
        shape: tuple[int, int] | None = tuple(size) if size else None
        for image, times in found:
            shape = shape or (image.height, image.width)
            total += times
            if total > MAX_CLIP_FRAMES or total * shape[0] * shape[1] > MAX_CLIP_PIXELS:
                raise BadPicture(
                    "too large",
                    f"{name}: {total} frames and more of {shape[1]}x{shape[0]} pixels are above the limit of {MAX_CLIP_FRAMES} frames "
                    f"and {MAX_CLIP_PIXELS} pixels in all; read fewer frames, or smaller ones",
                )
            image = fit_image(image, shape) if size else _resized(image, shape)
            yield {"frame": shape, "times": times}, image.tobytes()
        yield {"done": total, "fps": rate}, b""


def shown_seconds(reel: Reel) -> float:
    """How long a clip is shown: its frames at their rate where rounding of their times explains the difference to these."""
    rate = reel.rate or UNTIMED_RATE
    even, timed = float(reel.count() / rate), reel.seconds()
    return even if timed is None or abs(timed - even) <= 1 / rate else timed


def at_times(reel: Reel, rate: float, start: float, frames: int | None) -> Iterator[tuple[Image.Image, int]]:
    """(picture, times that it is shown) of a clip at `rate` frames a second from a time on.

    Each time shows the frame that a player would show, where time stamps may be early or late by up to half a frame: containers round them.
    """
    if reel.rate is None:
        yield from ((image, 1) for image in _some(reel.from_number(round(start * rate)), frames))
        return
    shown = 0
    for begin, end, frame in reel.from_time(start):
        tolerance = 0.5 * min(1 / rate, max(end - begin, 0.0))
        times = max(0, math.ceil((end - tolerance - start) * rate - 1e-6) - shown)
        if frames is not None:
            times = min(times, frames - shown)
        if times:
            yield reel.picture(frame), times
        shown += times
        if shown == frames:
            return


def _some(images: Iterator[Image.Image], count: int | None) -> Iterator[Image.Image]:
    """The first `count` pictures, all where it is None; no more is decoded than these."""
    for number, image in enumerate(images):
        if count == number:
            return
        yield image
        if count == number + 1:
            return


def _resized(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """A picture in the size (height, width) of the clip's first one."""
    return image if image.size == (shape[1], shape[0]) else image.resize((shape[1], shape[0]))


def limit_time(seconds: float) -> None:
    """Let this process end by a signal after it has computed for so many seconds from now, where the system counts them."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_memory(extra: int) -> None:
    """Let this process take `extra` bytes more than now: by address space where the system counts it, else by watching what is resident.

    Windows has neither; the time limit remains.
    """
    try:
        import resource
    except ModuleNotFoundError:
        return
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        threading.Thread(target=_watch, args=(extra,), daemon=True).start()
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = now + extra
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _watch(extra: int) -> None:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * unit < extra:
        time.sleep(0.05)
    os._exit(MEMORY_EXIT)
