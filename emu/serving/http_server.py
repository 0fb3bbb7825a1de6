"""The process that listens: it closes by finishing what it has begun."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import tempfile
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from emu.pipeline import Emu
from emu.serving.app import create_app
from emu.serving.request_log import LineHandler, RequestLog
from emu.serving.service import Service
from emu.serving.serving_options import ServingOptions
from emu.stopping import Stopped

FETCHING = 10.0
"""Seconds that a server which closes waits for a clip to be fetched."""
LOGGERS = ("uvicorn", "uvicorn.error", "emu")


class DrainingServer(uvicorn.Server):
    """Listens until a signal; then takes nothing new, finishes what it took, and ends. A second signal ends it at once.

    Args:
        app: of the service.
        service: whose requests are waited for.

    Attributes:
        stopped_by: the signal, 0 while there was none.
    """

    def __init__(self, app: FastAPI, service: Service) -> None:
        options = service.options
        super().__init__(
            uvicorn.Config(
                app,
                host=options.host,
                port=options.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=10,
            )
        )
        self._service = service
        self.stopped_by = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.stopped_by:
            self.should_exit = self.force_exit = True
            return
        self.stopped_by = sig
        self._service.admission.is_closing = True
        self._service.log.write("closing", running=self._service.admission.taken)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now; called ten times a second."""
        latest = max(self._service.unfetched.values(), default=-math.inf)
        # A clip that was just made goes with the server: whoever asks after it is given the time to fetch it.
        is_fetched = asyncio.get_running_loop().time() - latest > FETCHING
        if self.stopped_by and not self._service.admission.taken and is_fetched:
            self.should_exit = True
        return await super().on_tick(counter)

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def startup(self, sockets: list | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(sockets)
        if self.started:
            self._service.log.write("listening", address=self.address, model=self._service.name)


def bound(options: ServingOptions) -> socket.socket:
    """A socket of the address, before anything else is made ready.

    Raises:
        ValueError: the address is in use, or not of this machine.
    """
    host, port = options.host.strip("[]"), options.port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"host {host}, port {port}: {error.strerror}; choose another with --host and --port"
        ) from error
    return listener


def serve(emu: Emu, options: ServingOptions, listener: socket.socket) -> None:
    """Serve a model until a signal.

    Raises:
        Stopped: the signal, once what had begun is finished.
    """
    log = RequestLog(prompts=options.log_prompts)
    handler = LineHandler(log)
    # What it says of strangers' forms is in the replies.
    logging.getLogger("python_multipart").disabled = True
    for name in LOGGERS:
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).propagate = False
    with tempfile.TemporaryDirectory(prefix="emu-serve-") as folder:
        service = Service(emu, options, Path(folder), log)
        server = DrainingServer(create_app(service), service)
        asyncio.run(server.serve([listener]))
    if server.stopped_by:
        raise Stopped(server.stopped_by, "what was begun is finished")
