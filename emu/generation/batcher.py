"""Continuous batching: requests of any kind wait for a slot, run beside each other, and make room for the next."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from emu.generation.batch_requests import BatchRequest
from emu.generation.cohort import Cohort
from emu.generation.lane import Lane, OnRow, OnText, lane_of
from emu.generation.limits import BrokenLogits, as_out_of_memory, check_whole
from emu.generation.model_runner import ModelRunner
from emu.generation.sequence_memory import drawing_memory
from emu.generation.slots import Slots
from emu.generation.ticket import RequestCancelled, RequestTooLarge, Ticket

MOST_SLOTS = 32
"""Requests that run at a time where nobody says how many: on more rows a pass of a CPU takes as much longer."""


class Batcher:
    """Runs requests side by side; whoever waited longest takes the next slot.

    It is no thread: whoever owns it calls `step` or `run`. Requests may be submitted and taken back from any thread.

    Args:
        engine: whose model and layout; with `deterministic` the tokens of a request are those that it has alone, to the last bit of every
            number that they are drawn from.
        slots: requests that run at a time; by default as many as `memory` holds, at most `MOST_SLOTS`.
        memory: bytes that requests may take together beside the weights and their copies; None for no limit.

    Attributes:
        passes: forward passes so far from which something was drawn; the chunks of a long prompt count as one.
        tokens: tokens drawn so far, of requests that have ended.

    Raises:
        TypeError, ValueError: a number is out of range.
    """

    def __init__(self, engine: ModelRunner, slots: int | None = None, memory: int | None = None) -> None:
        self.engine = engine
        self.slots = MOST_SLOTS if slots is None else check_whole("slots", slots, least=1)
        self.memory = None if memory is None else check_whole("memory", memory, least=1)
        self.passes = self.tokens = 0
        self._waiting: deque[Lane] = deque()
        self._lock = threading.Lock()
        self._empty()

    def __repr__(self) -> str:
        return f"Batcher({self.engine!r}, slots={self.slots}, running={self.running}, waiting={self.waiting})"

    def _empty(self) -> None:
        self._running = Slots(self.engine)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return len(self._running.lanes)

    def submit(self, request: BatchRequest, on_row: OnRow | None = None, on_text: OnText | None = None) -> Ticket:
        """Put a request at the end of the queue.

        Args:
            request: what is asked for.
            on_row: of a block, called with (row number, codes of that row) as soon as a line along the grid's fastest axis is done.
            on_text: of a `TextRequest`, called with the ids (n,) so far after each token. Both are called from the thread that steps; what
                they raise ends the request.

        Raises:
            TypeError, ValueError: the request does not fit; before any work.
            RequestTooLarge: it can never fit the memory.
        """
        engine = self.engine
        lane = lane_of(request, engine.layout, engine.model.config.max_position_embeddings, on_row, on_text)
        if lane.is_complete:
            lane.ticket.succeed(lane.finish(lane.ids))
            return lane.ticket
        lane.bytes = self._bytes_of(lane)
        if self.memory is not None and lane.bytes > self.memory:
            raise RequestTooLarge(
                f"the request takes {lane.bytes} bytes and {self.memory} may be used; ask for less, or allow more with memory"
            )
        with self._lock:
            self._waiting.append(lane)
        return lane.ticket

    def _bytes_of(self, lane: Lane) -> int:
        return drawing_memory(
            self.engine.model.config,
            self.engine.model.dtype,
            self.engine.model.device,
            prompt=lane.longest,
            block=len(lane.ids) - lane.given,
            candidates=max(sum(count for _, count in step.ranges) for step in (lane.steps[0], lane.steps[-1])),
            guided=len(lane.prompts) > 1,
            window=lane.window,
            refilled=True,
        )

    def run(self) -> None:
        """Step until nothing is left to do."""
        with self._open():
            while self._step():
                pass

    def step(self) -> bool:
        """Let those that wait take what is free, run one pass of all, and end what is done; a pass takes a chunk of a prompt.

        Returns:
            Whether anything is left to do.
        """
        with self._open():
            return self._step()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with torch.no_grad(), self.engine.evaluating():
            yield

    def _step(self) -> bool:
        try:
            self._drop_cancelled()
            self._admit()
            if self._running.lanes:
                self.passes += self._running.advance()
                self._end_some()
        except Exception as error:
            self._lose(as_out_of_memory(error))
        except BaseException:
            # Such as KeyboardInterrupt: nobody knows how far the pass came.
            self._lose(RequestCancelled("the batch was interrupted while it ran the request"))
            raise
        return bool(self._running.lanes or self._waiting)

    def _lose(self, error: Exception) -> None:
        """End all that run with the error of a pass, as when memory runs out: it was for all of them, and others begin anew."""
        lost = list(self._running.lanes)
        # Frames hold tensors of the pass and the cache itself, for as long as somebody keeps the error: those who wait need the memory.
        traceback.clear_frames(error.__traceback__)
        self._empty()
        for lane in lost:
            lane.ticket.fail(error)

    def _drop_cancelled(self) -> None:
        running = [lane for lane in self._running.lanes if lane.ticket.is_cancelled]
        if running:
            self.tokens += sum(lane.draws for lane in running)
            self._running.release(running)
        with self._lock:
            waiting = [lane for lane in self._waiting if lane.ticket.is_cancelled]
            if waiting:
                self._waiting = deque(lane for lane in self._waiting if not lane.ticket.is_cancelled)
        for lane in [*running, *waiting]:
            lane.ticket.fail(RequestCancelled("the request was cancelled before it was done"))

    def _admit(self) -> None:
        """Let those that waited longest take what is free."""
        lanes, admitted = self._running.lanes, list[Lane]()
        number, largest = len(lanes), max((lane.bytes for lane in lanes), default=0)
        with self._lock:
            # In their order alone: nobody overtakes a large request, which would wait for ever.
            while self._waiting and self._fits(number + 1, max(largest, self._waiting[0].bytes)):
                admitted.append(self._waiting.popleft())
                number, largest = number + 1, max(largest, admitted[-1].bytes)
        if admitted:
            self._running.admit(admitted)

    def _fits(self, number: int, largest: int) -> bool:
        # Rows of a cache are as long as the longest.
        return number <= self.slots and (self.memory is None or number * largest <= self.memory)

    def _end_some(self) -> None:
        """Tell what is new of each lane, and take those out that are done."""
        ended: list[tuple[Lane, Callable[[], None]]] = []
        for lane, cohort, number in self._running.states():
            outcome = self._outcome(lane, cohort, number)
            if outcome is not None:
                ended.append((lane, outcome))
        if ended:
            self.tokens += sum(lane.draws for lane, _ in ended)
            self._running.release([lane for lane, _ in ended])
            for _, outcome in ended:
                outcome()

    def _outcome(self, lane: Lane, cohort: Cohort, number: int) -> Callable[[], None] | None:
        """How a lane ends, None while it runs."""
        ticket = lane.ticket
        tells = lane.report is not None and lane.done > lane.reported
        if not (tells or lane.is_complete or cohort.is_suspect):
            return None
        # Looking waits for a GPU, so it is done only before something that was drawn is given away.
        if not cohort.look(number):
            assert lane.broken_at is not None
            broken = BrokenLogits(lane.broken_at, self.engine.model.dtype)
            return lambda: ticket.fail(broken)
        if (failed := lane.error) is not None:
            return lambda: ticket.fail(failed)
        try:
            if tells and lane.report is not None:
                lane.report(cohort.ids[number], lane.reported, lane.done)
                lane.reported = lane.done
            if not lane.is_complete:
                return None
            found = lane.finish(cohort.ids[number, : lane.length].cpu())
            return lambda: ticket.succeed(found)
        except Exception as error:
            raised = error
            return lambda: ticket.fail(raised)
