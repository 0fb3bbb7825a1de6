"""What every request passes: an identity, the host and origin that it names, its key, a deadline, its line in the log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emu.serving.api_errors import ApiError, ClientGone, error_of
from emu.serving.request_log import RequestLog
from emu.serving.serving_metrics import ServingMetrics
from emu.serving.serving_options import ServingOptions, is_own_address

OPEN = ("/", "/health", "/favicon.ico")
"""Addresses that need no key, beside the files of the page."""
LEFT = 499
"""What the log calls a request whose client left."""


class Gate:
    """ASGI around the routes."""

    def __init__(self, app: ASGIApp, options: ServingOptions, log: RequestLog, metrics: ServingMetrics) -> None:
        self._app, self._options, self._log, self._metrics = app, options, log, metrics
        self._keys = [_digest(key.encode()) for key in options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, errors in OpenAI's form."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity, begun, status = f"req_{secrets.token_hex(12)}", time.monotonic(), 0
        state = scope.setdefault("state", {})
        state |= {"id": identity, "log": {}, "owner": b""}
        state["deadline"] = asyncio.get_running_loop().time() + self._options.timeout

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", identity.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, told)
        except ClientGone:
            status = LEFT
        except Exception as error:
            refused = error_of(error, identity)
            if refused is None or refused.code == "nan_logits":
                self._log.failed(error, id=identity)
            if status:
                raise  # the reply was begun: the connection is all that is left to end
            refused = refused or ApiError(500, f"the server failed at this request, {identity}", "internal_error")
            await JSONResponse(refused.body, refused.status, refused.headers)(scope, receive, told)
        finally:
            self._note(scope, status, time.monotonic() - begun)

    def _check(self, scope: Scope) -> None:
        """Raise ApiError where a request comes from another site's page or without a key."""
        headers = dict(scope["headers"])
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin", b"").decode("latin-1")
        if not self._options.api_keys and not is_own_address(urlsplit(f"//{host}").hostname or ""):
            # A page of a stranger whose name was made to mean this machine.
            told = f"the request names the host {host[:80]!r}, and without a key the server answers to localhost alone"
            raise ApiError(403, told, "wrong_host")
        if origin and urlsplit(origin).netloc != host:
            raise ApiError(403, "a page of another site sent the request; open the server's own page", "wrong_origin")
        if self._keys and scope["path"] not in OPEN and not scope["path"].startswith("/page/"):
            scope["state"]["owner"] = self._check_key(headers.get(b"authorization", b""))

    def _check_key(self, given: bytes) -> bytes:
        """What stands for the key of a request, by which clients are told apart."""
        kind, _, key = given.partition(b" ")
        # All keys are compared, in the same time whatever they are.
        found = [hmac.compare_digest(_digest(key.strip()), known) for known in self._keys]
        if kind.lower() != b"bearer" or not any(found):
            told = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            raise ApiError(401, told, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return _digest(key.strip())

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status or LEFT)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if status in (LEFT, 504):
            self._metrics.cancelled.inc()
        state = scope["state"]
        about = {"method": scope["method"], "route": route, "status": status or LEFT, "seconds": round(seconds, 4)}
        self._log.write("request", id=state["id"], **about, **state["log"])


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
