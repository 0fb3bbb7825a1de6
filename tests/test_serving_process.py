"""`emu serve` as a process: it says where it listens, and a signal ends it once what it took is finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serving_toys import SECONDS, in_thread, until

ROOT = Path(__file__).parents[1]
KEY = "a-key-of-the-environment"
pytestmark = pytest.mark.slow


@contextmanager
def process(*words):
    """The command, its address and what it writes to stderr."""
    command = [sys.executable, "-m", "emu", "serve", "digits", "--port", "0", *words]
    environment = {**os.environ, "EMU_API_KEY": KEY, "PYTHONPATH": f"{ROOT}:{ROOT}/tokenizers:{ROOT}/kernels"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as running:
        try:
            line = json.loads(running.stderr.readline())
            assert line["event"] == "listening", line
            client = httpx.Client(base_url=line["address"], headers={"authorization": f"Bearer {KEY}"}, timeout=SECONDS)
            yield running, client
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_when_what_it_took_is_finished(number):
    with process() as (server, client):
        clips = [client.post("/v1/videos", json={"prompt": "a handwritten seven"}).json()["id"] for _ in range(8)]
        drawing = in_thread(client.post, "/v1/images/generations", json={"prompt": "a handwritten seven"})
        until(lambda: client.get(f"/v1/videos/{clips[0]}").json()["status"] != "queued")
        server.send_signal(number)
        assert drawing.result(SECONDS).status_code in (200, 503)
        assert server.wait(SECONDS) == 128 + number
        lines = server.stderr.read()
        assert lines.count('"status": "completed"') == 8 and KEY not in lines and "seven" not in lines


def test_two_signals_end_the_server_at_once():
    with process("--slots", "1") as (server, client):
        for _ in range(30):
            assert client.post("/v1/videos", json={"prompt": "a handwritten seven"}).status_code == 200
        server.send_signal(signal.SIGTERM)
        until(lambda: client.get("/health").status_code == 503)
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 128 + signal.SIGTERM


def test_a_log_holds_prompts_where_that_is_wanted():
    with process("--log-prompts", "--example", "a handwritten zero") as (server, client):
        assert client.get("/v1/models").json()["data"][0]["emu"]["prompts"] == ["a handwritten zero"]
        assert client.post("/v1/images/generations", json={"prompt": "a handwritten nine"}).status_code == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 143 and '"prompt": "a handwritten nine"' in server.stderr.read()
