"""Windows encoded in this process or in several, in order, the same bytes whatever their number."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from emu.configuration import load_extensions
from emu.data.tokenizing.document_reader import DocumentReader
from emu.data.tokenizing.encoder_start import starting_context
from emu.data.tokenizing.picture_sizes import parse_sizing
from emu.data.tokenizing.records import Record, RecordSource
from emu.data.tokenizing.windows import EncodedWindow, encode_window
from emu.modalities import MODALITIES
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.tokenizer_folder import VISION
from emu_tokenizers.vision.coder import VisionCoder

POLL = 0.5
"""Seconds between two looks at how far the processes are."""


class LostProcess(RuntimeError):
    """A process that encodes ended on its own."""


@dataclass(frozen=True)
class Encoding:
    """What decides on the tokens of records, small enough to be sent to a process.

    Attributes:
        source: of the records.
        tokenizer: folder or name of the tokenizers.
        size: of pictures, as `parse_sizing` reads it.
        loss_on: as of `DocumentReader`.
        device: that pictures are encoded on.
    """

    source: RecordSource
    tokenizer: str
    size: str | None = None
    loss_on: str = "assistant"
    device: str = "cpu"

    def reader(self) -> DocumentReader:
        """Load the tokenizers.

        Raises:
            FileNotFoundError, ValueError: they cannot be read, or the size does not fit them.
        """
        # The class that only encodes and decodes loads in half the time; codes and fingerprint are those of the other one.
        own = any(modality.codec == VISION and modality.codec_class for modality in MODALITIES.values())
        tokenizer = MultimodalTokenizer.from_pretrained(self.tokenizer, codecs={} if own else {VISION: VisionCoder})
        vision = tokenizer.vision
        if vision is not None:
            vision.eval().to(self.device)
            # A seventh less time on a processor; the weights and their fingerprint stay what they are.
            for part in vision.modules():
                if isinstance(part, torch.nn.Conv2d):
                    part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
        sizing = parse_sizing(self.size, 1 if vision is None else vision.spatial_factor, tokenizer.resize)
        return DocumentReader(tokenizer, self.source.folder, sizing, self.loss_on)


@dataclass(frozen=True)
class WindowTask:
    """A window of a shard, or, without records, a shard that is finished already.

    Attributes:
        shard: number of the shard.
        records: of the window.
        last: whether it is the last window of its shard.
        num_samples: pictures that are kept for the report.
        about: what the shard says of itself: `input`, and everything where it is finished.
    """

    shard: int
    records: list[Record]
    last: bool
    num_samples: int
    about: dict[str, Any]


Results = Iterator[tuple[WindowTask, EncodedWindow]]
_EMPTY = EncodedWindow([], [])


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums of floating point numbers depend on how they are divided up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def encode_here(
    tasks: Iterable[WindowTask], source: RecordSource, reader: DocumentReader, tick: Callable[[int], object]
) -> Results:
    """Encode tasks in this process; `tick` is called with the number of records that were read."""
    for task in tasks:
        with one_thread():
            window = encode_window(task.records, source, reader, task.num_samples, lambda: tick(1))
        yield task, window


def encode_in_processes(
    tasks: Iterable[WindowTask], encoding: Encoding, processes: int, tick: Callable[[int], object]
) -> Results:
    """Encode tasks in processes of their own, a few ahead of what is taken; arguments as of `encode_here`.

    Raises:
        LostProcess: a process ended, e.g. killed for its memory; what was finished is kept.
    """
    context = starting_context()
    counter = context.Value("Q", 0)
    pool = ProcessPoolExecutor(processes, context, _start, (encoding, counter))
    waiting: deque[tuple[WindowTask, Future[EncodedWindow] | None]] = deque()
    shown = 0

    def tell() -> None:
        nonlocal shown
        read = counter.value
        tick(read - shown)
        shown = read

    def first() -> tuple[WindowTask, EncodedWindow]:
        task, future = waiting.popleft()
        while future is not None and not future.done():
            wait([future], POLL)
            tell()
        return task, _EMPTY if future is None else future.result()

    try:
        for task in tasks:
            waiting.append((task, pool.submit(_encode, task) if task.records else None))
            while len(waiting) > 2 * processes:
                yield first()
        while waiting:
            yield first()
        tell()
    except BrokenProcessPool as error:
        raise LostProcess(
            "a process that encodes ended on its own (killed for its memory?); what was finished is kept, the same command goes on, "
            "--processes 1 takes less memory"
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


_WORKER: dict[str, Any] = {}


def _start(encoding: Encoding, counter: Any) -> None:
    """Prepare a process: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)
    load_extensions()
    _WORKER.update(encoding=encoding, reader=encoding.reader(), counter=counter)


def _encode(task: WindowTask) -> EncodedWindow:
    counter = _WORKER["counter"]

    def tick() -> None:
        with counter.get_lock():
            counter.value += 1

    encoding = _WORKER["encoding"]
    return encode_window(task.records, encoding.source, _WORKER["reader"], task.num_samples, tick)
