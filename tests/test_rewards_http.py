"""Rewards of a server: in batches, in order, again where it fails, and never for ever."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from emu.documents import Video
from emu.rewards import Candidate, score
from emu.rewards.http_reward import HttpReward, described


class Scorer(BaseHTTPRequestHandler):
    """Scores pictures by their first red byte; what goes wrong first is told by `server.faults`."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["candidates"]
        self.server.sizes.append(len(asked))
        fault = self.server.faults.pop(0) if self.server.faults else None
        pictures = [Image.open(io.BytesIO(base64.b64decode(one["image"]))) for one in asked]
        scores = [float(picture.convert("RGB").getpixel((0, 0))[0]) for picture in pictures]
        body = json.dumps({"scores": scores[1:] if fault == "short" else scores}).encode()
        if fault == "error":
            self.send_error(500)
            return
        if fault == "no HTTP":
            self.wfile.write(b"busy\r\n\r\n")
            return
        if fault == "hang":
            time.sleep(0.6)
        self.send_response(200)
        self.end_headers()
        if fault == "drip":
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
            return
        self.wfile.write(b"<html>" if fault == "words" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Scorer) as found:
        found.faults, found.sizes = [], []
        found.handle_error = lambda *_: None  # of clients that no longer wait
        thread = threading.Thread(target=found.serve_forever, args=(0.02,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def reward_of(server, **options):
    return HttpReward(f"http://127.0.0.1:{server.server_port}/score", pause=0.01, **options)


def candidates(count):
    pictures = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(count)]
    return [Candidate((f"a {n}",), picture, torch.zeros(1, 1), "image") for n, picture in enumerate(pictures)]


def test_scores_come_in_order_from_batches(server):
    assert reward_of(server, batch_size=4)(candidates(10)) == list(map(float, range(10)))
    assert sorted(server.sizes) == [2, 4, 4]


def test_a_batch_that_fails_is_asked_for_again(server):
    server.faults = ["error", "short", "words"]
    reward = reward_of(server, batch_size=8, retries=3)
    assert reward(candidates(3)) == [0.0, 1.0, 2.0] and reward.num_failed == 0 and server.sizes == [3] * 4


def test_a_server_that_hangs_or_answers_wrongly_gives_no_score_and_stops_nothing(server, caplog):
    server.faults = ["hang", "drip", "short"]
    reward = reward_of(server, batch_size=2, retries=0, parallel=1, timeout=0.3)
    begun = time.monotonic()
    scores = score(reward, candidates(8))
    assert time.monotonic() - begun < 3 and reward.num_failed == 3
    assert scores.isnan().tolist() == [True] * 6 + [False] * 2
    assert "1 scores for 2 candidates" in caplog.text and "took more than 0.3 s" in caplog.text


def test_a_server_that_speaks_no_http_gives_no_score_and_stops_nothing(server):
    server.faults = ["no HTTP"]
    assert [math.isnan(value) for value in reward_of(server, batch_size=1, retries=0, parallel=1)(candidates(2))] == [
        True,
        False,
    ]


def test_nobody_at_the_address_is_told(caplog):
    assert math.isnan(HttpReward("http://127.0.0.1:9/", retries=0)(candidates(1))[0])
    assert "gave no scores for 1 candidates in 1 tries" in caplog.text
    with pytest.raises(ValueError, match="begins with http"):
        HttpReward("ftp://127.0.0.1/")
    with pytest.raises(ValueError, match=r"timeout is 0"):
        HttpReward("http://127.0.0.1/", timeout=0)


def test_clips_are_sent_frame_by_frame():
    clip = Video([Image.new("RGB", (4, 4))] * 3, fps=2)
    told = described(Candidate(("a clip",), clip, torch.zeros(1, 1, 1), "video"))
    assert (told["prompt"], len(told["frames"]), told["fps"]) == ("a clip", 3, 2)
    with pytest.raises(TypeError, match="candidates of boxes"):
        described(Candidate(("a",), [1], torch.zeros(1, 4), "boxes"))
