"""Replies: what a request asks for is worked out while its client waits, and no longer; as one reply, or as events as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from emu.serving.api_errors import ApiError, ClientGone

Value = TypeVar("Value")


class Events:
    """Server-sent events of one reply; the first one begins it.

    Attributes:
        begun: whether there was one, after which a failure is an event too.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def send(self, name: str | None, data: Any) -> None:
        """Send an event, and wait until the connection takes it: a slow client slows its own reply alone.

        Args:
            name: of the event; None for streams whose events have none.
            data: of JSON's types, or text as it is.
        """
        await self._begin()
        text = data if isinstance(data, str) else json.dumps(data)
        event = "" if name is None else f"event: {name}\n"
        await self._send({"type": "http.response.body", "body": f"{event}data: {text}\n\n".encode(), "more_body": True})

    async def fail(self, error: ApiError) -> None:
        """End the reply with an error."""
        await self.send("error", error.body)
        await self.close()

    async def close(self) -> None:
        """End the reply."""
        await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        if self.begun:
            return
        self.begun = True
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})


class AttendedReply(Response):
    """A reply that is worked out while it is waited for.

    Args:
        work: makes the response, or sends events and returns None.
        deadline: time of the event loop at which it is given up.
        failure: what a client is told of an error, once events were sent.
    """

    def __init__(
        self,
        work: Callable[[Events], Awaitable[Response | None]],
        deadline: float,
        failure: Callable[[Exception], ApiError],
    ) -> None:
        super().__init__()
        self._work, self._deadline, self._failure = work, deadline, failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            ClientGone: nobody waits any more.
            Exception: of the work, where nothing was sent yet.
        """
        events = Events(send)
        try:
            response = await attended(receive, self._work(events), self._deadline)
        except ClientGone:
            raise
        except Exception as error:
            if not events.begun:
                raise
            told = self._failure(error)
            # A client that does not read gets nothing more: the error would wait for it like everything else.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(events.fail(told), 1)
            return
        if response is None:
            await events.close()
        else:
            await response(scope, receive, send)


async def within(deadline: float, work: Awaitable[Value]) -> Value:
    """What comes of work before a time of the event loop.

    Raises:
        ApiError: 504, it is not there in time.
    """
    try:
        return await asyncio.wait_for(work, max(0.0, deadline - asyncio.get_running_loop().time()))
    except asyncio.TimeoutError:
        raise timed_out() from None


async def attended(receive: Receive, work: Awaitable[Value], deadline: float) -> Value:
    """What comes of work, which is cancelled when the client leaves or the time is over.

    Args:
        receive: of a request whose body was read.
        work: to await.
        deadline: time of the event loop.

    Raises:
        ClientGone: the client left.
        ApiError: 504, the time is over.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        left = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait({task, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone if gone.done() else timed_out()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def timed_out() -> ApiError:
    """A request that took longer than it may."""
    message = "the request took longer than the server allows; ask for less, or try again when fewer wait"
    return ApiError(504, message, "timeout")


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
