"""The one thread that runs the model: it advances the batch as long as there is work, and sleeps when there is none."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from emu.generation import Batcher, Ticket
from emu.generation.batch_requests import BatchRequest

LOGGER = logging.getLogger("emu.serving")


class ModelWorker:
    """Runs requests in a continuous batch.

    Args:
        make_batcher: makes the batch; called again where it broke.
    """

    def __init__(self, make_batcher: Callable[[], Batcher]) -> None:
        self._make_batcher = make_batcher
        self.batcher = make_batcher()
        self._woken = threading.Event()
        self._stopping = False
        self._running: set[Ticket] = set()
        self._thread = threading.Thread(target=self._run, name="emu-model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread once the step that it takes is done; what still runs is left."""
        self._stopping = True
        self._woken.set()
        self._thread.join()

    async def result(self, request: BatchRequest, **listeners: Callable[..., None]) -> Tensor:
        """Codes or ids of a request; whoever stops waiting for them cancels it.

        Args:
            request: of `emu.generation`.
            listeners: `on_row` or `on_text` of `Batcher.submit`, called in the event loop.

        Raises:
            ValueError: the request can never be run, see `Batcher.submit`.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Tensor] = loop.create_future()

        def tell(function: Callable[..., None], *values: Any) -> None:
            try:
                loop.call_soon_threadsafe(function, *values)
            except RuntimeError:  # the loop ended before the model did
                LOGGER.debug("nobody waits for a result any more")

        def settle(error: BaseException | None, value: Tensor | None) -> None:
            if not future.done():
                if error is None and value is not None:
                    future.set_result(value)
                else:
                    future.set_exception(error or RuntimeError("no result"))

        def done(ticket: Ticket) -> None:
            self._running.discard(ticket)
            try:
                tell(settle, None, ticket.result())
            except Exception as error:
                tell(settle, error, None)

        heard = {name: _relayed(tell, listener) for name, listener in listeners.items()}
        ticket = self.batcher.submit(request, **heard)
        self._running.add(ticket)
        ticket.add_done_callback(done)
        self._woken.set()
        try:
            return await future
        finally:
            if not ticket.done:
                ticket.cancel()
                self._woken.set()

    def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            if not self._step():
                self._woken.wait()

    def _step(self) -> bool:
        try:
            return self.batcher.step()
        except Exception as error:  # the batch itself broke: nothing in it can go on
            LOGGER.exception("the batch broke and is begun anew")
            running, self._running = self._running, set()
            for ticket in running:
                ticket.cancel()
                ticket.fail(error)
            return self._begin_anew()

    def _begin_anew(self) -> bool:
        """Make another batch; whether there is one. As long as there is none, each request fails and is the next try."""
        try:
            self.batcher = self._make_batcher()
        except Exception:
            LOGGER.exception("there is no new batch")
            return False
        return True


def _relayed(tell: Callable[..., None], listener: Callable[..., None]) -> Callable[..., None]:
    return lambda *values: tell(listener, *values)
