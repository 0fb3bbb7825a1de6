"""Clients that leave, wait, send slowly or do not read, and a server that is full, broken or closing: others are undisturbed."""

from __future__ import annotations

import asyncio
import errno
import gc
import io
import json
import math
import signal
import socket
import time

import pytest
import torch

from emu.serving import chat_api, images_api
from emu.serving.api_errors import ApiError, ClientGone
from emu.serving.event_stream import AttendedReply
from emu.serving.request_log import RequestLog
from emu.serving.request_models import ChatBody, ImageBody
from emu.serving.result_files import ResultFiles
from emu.serving.service import Service
from emu.serving.serving_options import ServingOptions
from emu.serving.video_jobs import VideoJob, VideoJobs
from tests.serving_toys import SECONDS, bundled, deterministic, error_of, held, in_thread, running, until

begin = VideoJobs.begin
PATH = "/v1/images/generations"
BODY = {"prompt": "a red circle", "seed": 1}


@pytest.fixture(scope="module")
def server(tiny_emu, tmp_path_factory):
    with running(deterministic(tiny_emu), tmp_path_factory.mktemp("files"), slots=1, queue=2) as server:
        yield server


def connected(server, body, *, whole=True):
    """A socket that has sent a request."""
    data = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=SECONDS)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection.sendall(head.encode() + (data if whole else data[:5]))
    return connection


def idle(server):
    batcher = server.service.worker.batcher
    return not server.service.admission.taken and not batcher.running and not batcher.waiting


def test_the_slot_of_a_client_that_left_is_free_at_once(server):
    with held(server):
        clients = [connected(server, {**BODY, "stream": stream}) for stream in (False, True)]
        until(lambda: server.service.admission.taken == 2)
        for client in clients:
            client.close()
        until(lambda: not server.service.admission.taken)
    until(lambda: idle(server))
    assert [line["status"] for line in server.lines[-2:]] == [499, 499]
    assert server.post(PATH, json=BODY).status_code == 200


def test_a_full_server_says_when_to_come_again_and_loses_nobody(server):
    with held(server):
        inside = [in_thread(server.post, PATH, json={**BODY, "seed": seed}) for seed in range(3)]
        until(lambda: server.service.admission.taken == 3)
        refused = server.post(PATH, json=BODY)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["code"] == "queue_full"
        assert server.get("/health").status_code == 200
    assert [one.result(SECONDS).json()["emu"]["seed"] for one in inside] == [0, 1, 2]
    assert server.post(PATH, json={**BODY, "n": 4}).status_code == 400


def test_a_request_has_its_time_and_no_more(tiny_emu, tmp_path):
    with running(deterministic(tiny_emu), tmp_path, timeout=0.4) as server:
        with held(server):
            waited = server.post(PATH, json=BODY)
            assert waited.status_code == 504 and error_of(waited)["code"] == "timeout"
        until(lambda: idle(server))
        slow = connected(server, BODY, whole=False)
        assert b" 504 " in slow.recv(200).partition(b"\r\n")[0]
        slow.close()


def test_a_clip_whose_time_is_over_stays_failed_whatever_the_model_tells_later(tiny_emu, tmp_path, monkeypatch):
    heard = []

    async def result(request, on_row):
        heard.append(on_row)
        await asyncio.sleep(SECONDS)

    with running(deterministic(tiny_emu), tmp_path, timeout=0.3) as server:
        monkeypatch.setattr(server.service.worker, "result", result)
        clip = "/v1/videos/" + server.post("/v1/videos", files={"prompt": (None, "a ball")}).json()["id"]
        until(lambda: server.get(clip).json()["status"] == "failed")
        heard[0](0, None)
        assert server.get(clip).json()["status"] == "failed"


def test_a_client_that_does_not_read_is_given_up():
    sent = []

    async def receive():
        await asyncio.sleep(SECONDS)

    async def send(message):
        sent.append(message)
        if len(sent) > 2:
            await asyncio.sleep(SECONDS)

    async def work(events):
        while True:
            await events.send("row", {})

    async def reply():
        loop = asyncio.get_running_loop()
        await AttendedReply(work, loop.time() + 0.1, lambda error: error)({"type": "http"}, receive, send)

    begun = time.monotonic()
    asyncio.run(reply())
    assert time.monotonic() - begun < 5 and len(sent) == 4


def drawn_text(service, events):
    messages = [{"role": "user", "content": "a red circle"}]
    return chat_api._answered(service, ChatBody(messages=messages, stream=True, max_tokens=99, seed=1), events)


def drawn_picture(service, events):
    body = ImageBody(prompt="a red circle", size="32x32", stream=True, emu={"every_row": True}, seed=1)
    return images_api._generation(service, None, body, events)


@pytest.mark.parametrize("answer", [drawn_text, drawn_picture])
def test_a_client_that_leaves_within_a_stream_frees_its_slot_before_anything_is_collected(tiny_emu, tmp_path, answer):
    service = Service(deterministic(tiny_emu), ServingOptions(), tmp_path, RequestLog(io.StringIO()))
    batcher, tickets = service.worker.batcher, []
    submit = batcher.submit
    batcher.submit = lambda *given, **named: tickets.append(submit(*given, **named)) or tickets[-1]

    async def main():
        sending = asyncio.Event()

        async def receive():
            await sending.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message.get("body"):
                sending.set()
                await asyncio.sleep(SECONDS)

        deadline = asyncio.get_running_loop().time() + SECONDS
        stream = AttendedReply(lambda events: answer(service, events), deadline, lambda error: error)
        reply = asyncio.ensure_future(stream({"type": "http"}, receive, send))
        while not sending.is_set() and not reply.done():
            # A loop without a pause would take the interpreter from the other threads.
            await asyncio.sleep(0 if batcher.step() else 0.01)
        with pytest.raises(ClientGone):
            await reply
        assert [ticket.is_cancelled for ticket in tickets] == [True]

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
        service._pixels.shutdown()


def test_a_request_with_broken_logits_fails_alone(tmp_path):
    emu = bundled("digits")
    with torch.no_grad():
        ids = set(emu.tokenizer.layout.encode_text("a handwritten nine"))
        ids -= set(emu.tokenizer.layout.encode_text("a handwritten seven"))
        emu.model.get_input_embeddings().weight[sorted(ids)[0]] = torch.nan
    seven, nine = ({"prompt": f"a handwritten {word}", "seed": 1} for word in ("seven", "nine"))
    (own,) = emu.generate_images(seven["prompt"], seed=1)
    with running(emu, tmp_path, slots=4) as server:
        calls = [in_thread(server.post, PATH, json=body) for body in (seven, nine, seven, nine)]
        replies = [call.result(SECONDS) for call in calls]
        assert [reply.status_code for reply in replies] == [200, 500, 200, 500]
        assert len({reply.json()["data"][0]["b64_json"] for reply in replies[::2]}) == 1
        assert replies[0].json()["emu"]["settings"] == own.settings
        failure = error_of(replies[1])
        assert failure["code"] == "nan_logits" and replies[1].headers["x-request-id"] in failure["message"]
        stream = server.post(PATH, json={**nine, "stream": True}).text
        assert "nan_logits" in stream
        assert "nine" not in server.written.getvalue()


def test_a_full_disk_is_told_and_what_needs_none_goes_on(server, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("emu.serving.result_files.write_file", full)
    refused = server.post(PATH, json={**BODY, "response_format": "url"})
    assert refused.status_code == 507 and error_of(refused)["code"] == "disk_full"
    assert server.post(PATH, json=BODY).status_code == 200


def test_files_go_after_an_hour(server, monkeypatch):
    url = server.post(PATH, json={**BODY, "response_format": "url"}).json()["data"][0]["url"]
    assert server.get(url.removeprefix(server.url)).headers["content-type"] == "image/png"
    later = time.time() + 3601
    monkeypatch.setattr("emu.serving.result_files.time.time", lambda: later)
    assert server.get(url.removeprefix(server.url)).status_code == 404
    server.service.files.forget()
    assert not list(server.service.files._folder.iterdir())


def test_files_that_go_while_others_are_looked_at_disturb_nothing(tmp_path):
    files = ResultFiles(tmp_path)
    kept, gone = files.add(b"kept", "image/png"), files.add(b"gone", "image/png")

    class Slow:
        path, media_type = tmp_path / kept, "image/png"

        @property
        def until(self):
            files.remove(gone)  # as the event loop does in the middle of it
            return math.inf

    files._files[kept] = Slow()
    assert files.find(files.add(b"new", "image/png")) is not None and files.find(gone) is None


def test_clips_go_after_an_hour(server, monkeypatch):
    clip = "/v1/videos/" + server.post("/v1/videos", files={"prompt": (None, "a ball")}).json()["id"]
    until(lambda: server.get(clip).json()["status"] == "completed")
    later = time.time() + 3600.5
    monkeypatch.setattr("emu.serving.result_files.time.time", lambda: later)
    reply = server.get(f"{clip}/content")
    assert reply.status_code == 404 and error_of(reply)["code"] == "video_not_found"
    monkeypatch.setattr("emu.serving.video_jobs.now", lambda: int(later) + 2)
    assert server.get(clip).status_code == 404


def test_the_error_of_a_clip_does_not_grow_with_every_question(server, monkeypatch):
    def broken(*_):
        raise ApiError(500, "the disk broke")

    monkeypatch.setattr(server.service.files, "add", broken)
    jobs: list[VideoJob] = []
    monkeypatch.setattr(VideoJobs, "find", lambda self, *_: jobs[0])
    monkeypatch.setattr(VideoJobs, "begin", lambda *given: jobs.append(begin(*given)) or jobs[0])
    assert server.post("/v1/videos", files={"prompt": (None, "a ball")}).status_code == 200
    until(lambda: jobs[0].status == "failed")
    for _ in range(3):
        assert error_of(server.get("/v1/videos/x/content"))["message"] == "the disk broke"
    assert jobs[0].failure is not None and jobs[0].failure.__traceback__ is None


def test_a_server_that_closes_finishes_what_it_took_and_takes_nothing_new(tiny_emu, tmp_path):
    with running(deterministic(tiny_emu), tmp_path) as server:
        with held(server):
            inside = in_thread(server.post, PATH, json=BODY)
            until(lambda: server.service.admission.taken == 1)
            server.server.handle_exit(signal.SIGTERM, None)
            refused = server.post(PATH, json=BODY)
            assert refused.status_code == 503 and error_of(refused)["code"] == "shutting_down"
            assert server.get("/health").status_code == 503
        assert inside.result(SECONDS).status_code == 200
        until(lambda: server.server.should_exit)
        assert server.server.stopped_by == signal.SIGTERM


def test_a_server_that_closes_leaves_time_to_fetch_the_clip_that_it_finished(tiny_emu, tmp_path, monkeypatch):
    with running(deterministic(tiny_emu), tmp_path) as server:
        with held(server):
            clips = [server.post("/v1/videos", files={"prompt": (None, "a ball")}).json()["id"] for _ in range(2)]
            server.server.handle_exit(signal.SIGTERM, None)
        until(lambda: not server.service.admission.taken)
        time.sleep(0.3)
        assert not server.server.should_exit
        assert server.get(f"/v1/videos/{clips[0]}/content").headers["content-type"] == "video/mp4"
        monkeypatch.setattr("emu.serving.http_server.FETCHING", 0.1)  # nobody asks for the other one
        until(lambda: server.server.should_exit)


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("out of order"), 500), (torch.OutOfMemoryError(), 503)])
def test_a_batch_that_breaks_is_begun_anew(server, monkeypatch, error, status):
    def broken():
        raise error

    monkeypatch.setattr(server.service.worker.batcher, "step", broken)
    assert server.post(PATH, json=BODY).status_code == status
    assert server.post(PATH, json=BODY).status_code == 200


def test_without_a_new_batch_each_request_fails_at_once_until_there_is_one(server, monkeypatch):
    def broken():
        raise RuntimeError("out of order")

    worker = server.service.worker
    with monkeypatch.context() as patch:
        patch.setattr(worker.batcher, "step", broken)
        patch.setattr(worker, "_make_batcher", broken)
        assert [server.post(PATH, json=BODY).status_code for _ in range(2)] == [500, 500]
    assert server.post(PATH, json=BODY).status_code == 200
    until(lambda: idle(server))


def test_errors_that_nobody_foresaw_have_an_identity_and_keep_what_was_asked_to_themselves(server, monkeypatch):
    def failing(*_, **__):
        raise KeyError("a red circle")

    monkeypatch.setattr(server.service.emu, "prepare_images", failing, raising=False)
    reply = server.post(PATH, json=BODY)
    failed = next(line for line in server.lines if line["event"] == "failed" and line["error"] == "KeyError")
    assert reply.status_code == 500 and failed["id"] in error_of(reply)["message"]
    assert "red circle" not in server.written.getvalue() and failed["places"]


def test_an_error_keeps_its_form_and_length():
    assert ApiError(429, "x" * 5_000).body["error"]["type"] == "rate_limit_error"
    assert len(ApiError(400, "x" * 5_000).message) == 1_000
