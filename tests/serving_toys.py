"""A server in a thread of the test's process, on a free port, and clients for it."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
from PIL import Image

from emu import Emu
from emu.serving.app import create_app
from emu.serving.http_server import DrainingServer
from emu.serving.request_log import RequestLog
from emu.serving.service import Service
from emu.serving.serving_options import ServingOptions

SECONDS = 60


@dataclass
class Running:
    """A server that runs.

    Attributes:
        url: where it listens.
        service, server: of it.
        written: its log.
    """

    url: str
    service: Service
    server: DrainingServer
    written: io.StringIO

    @cached_property
    def official(self) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=SECONDS)

    @cached_property
    def client(self) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.url, timeout=SECONDS, trust_env=False, verify=False)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.client.post(path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.written.getvalue().splitlines()]


@contextmanager
def running(emu: Emu, folder: Path, **options: Any) -> Iterator[Running]:
    """Serve a model while the block runs."""
    written = io.StringIO()
    log = RequestLog(written, prompts=options.get("log_prompts", False))
    service = Service(emu, ServingOptions(**{"port": 0, **options}), folder, log)
    server = DrainingServer(create_app(service), service)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(server.address, service, server, written)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive(), "the server did not end"


def until(condition: Any, seconds: float = SECONDS) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it does not come true in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def bundled(name: str) -> Emu:
    return Emu.from_pretrained(name, device="cpu", deterministic=True)


def broken(name: str) -> Emu:
    """A bundled model whose logits are NaN."""
    emu = bundled(name)
    with torch.no_grad():
        emu.model.model.norm.weight.fill_(torch.nan)
    return emu


def png(image: Image.Image) -> bytes:
    written = io.BytesIO()
    image.save(written, format="png")
    return written.getvalue()


def error_of(reply: httpx.Response) -> dict[str, Any]:
    """The error of a reply, which has the form of OpenAI's."""
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return error


def deterministic(emu: Emu) -> Emu:
    """The same model, whose results do not depend on what runs beside it."""
    return Emu(emu.model, emu.tokenizer, emu.defaults, deterministic=True, trained=emu.trained)


@contextmanager
def held(server: Running) -> Iterator[None]:
    """Let the model stand still while the block runs."""
    worker, going = server.service.worker, threading.Event()
    step = worker.batcher.step

    def waiting() -> bool:
        going.wait(SECONDS)
        return step()

    worker.batcher.step = waiting
    try:
        yield
    finally:
        going.set()
        worker.batcher.step = step


def in_thread(function: Any, *given: Any, **named: Any) -> Any:
    """A future of a call in a thread of its own."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*given, **named))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
