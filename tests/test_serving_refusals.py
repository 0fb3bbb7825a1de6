"""What is refused, and the words for it: keys, hosts, sizes, hooks, addresses, and options before the model loads."""

from __future__ import annotations

import base64
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from emu import Emu
from emu.cli.main import main
from emu.media import png_bytes
from emu.serving.serving_options import ServingOptions, is_own_address
from tests.serving_toys import bundled, deterministic, error_of, png, running

PATH = "/v1/images/generations"
BODY = {"prompt": "a red circle", "seed": 1}
KEYS = ("first-long-key", "second-long-key")


@pytest.fixture(scope="module")
def server(tiny_emu, tmp_path_factory):
    with running(
        deterministic(tiny_emu), tmp_path_factory.mktemp("files"), max_body=60_000, max_pixels=10_000
    ) as server:
        yield server


@pytest.fixture(scope="module")
def locked(tiny_emu, tmp_path_factory):
    with running(deterministic(tiny_emu), tmp_path_factory.mktemp("files"), api_keys=KEYS) as server:
        yield server


def refuse_words(text):
    if "raise" in text:
        raise RuntimeError("the hook broke")
    if "next" in text:
        return next(iter(()))
    return "it asks for a circle" if "circle" in text else None


def refuse_pictures(image):
    return "it is wide" if image.width > image.height else None


class RefuseAll:
    def __call__(self, value):
        return "nothing passes"


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong-long-key", f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x", "Bearer é"]
)
def test_without_a_right_key_nothing_opens(locked, header):
    given = {} if header is None else {"authorization": header.encode()}
    for path in ("/v1/models", "/metrics", "/files/x", "/v1/videos", "/v1/videos/x", "/nowhere"):
        reply = locked.get(path, headers=given)
        assert reply.status_code == 401 and error_of(reply)["code"] == "invalid_api_key"
    assert locked.get("/health", headers=given).status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_and_none_is_logged(locked, key):
    given = {"authorization": f"Bearer {key}"}
    reply = locked.post(PATH, json={**BODY, "response_format": "url"}, headers=given)
    file = reply.json()["data"][0]["url"].removeprefix(locked.url)
    assert locked.get(file, headers=given).status_code == 200 and locked.get(file).status_code == 401
    assert b"emu_requests_total" in locked.get("/metrics", headers=given).content
    assert key not in locked.written.getvalue() and "red circle" not in locked.written.getvalue()


def test_clips_are_listed_to_their_own_key_alone(locked):
    first, second = ({"authorization": f"Bearer {key}"} for key in KEYS)
    files = {name: (None, value) for name, value in {"prompt": "a red circle", "seed": "1"}.items()}
    clip = locked.post("/v1/videos", files=files, headers=first).json()["id"]
    seen = [locked.get("/v1/videos", headers=own).json()["data"] for own in (first, second)]
    assert [[job["id"] for job in jobs] for jobs in seen] == [[clip], []]
    assert locked.get(f"/v1/videos?after={clip}", headers=second).json()["data"] == []
    for query in ("limit=0", "limit=101", "limit=x", "limit=" + "9" * 5000, "order=up", "after=x"):
        reply = locked.get(f"/v1/videos?{query}", headers=first)
        assert reply.status_code == (404 if "after" in query else 400) and error_of(reply)["message"]


def test_clips_of_another_key_are_unknown(locked):
    first, second = ({"authorization": f"Bearer {key}"} for key in KEYS)
    clip = "/v1/videos/" + locked.post("/v1/videos", files={"prompt": (None, "a ball")}, headers=first).json()["id"]
    for reply in (
        locked.get(clip, headers=second),
        locked.get(f"{clip}/content", headers=second),
        locked.client.delete(clip, headers=second),
    ):
        assert reply.status_code == 404 and error_of(reply)["code"] == "video_not_found"
    assert locked.client.delete(clip, headers=first).status_code == 200


def test_pages_of_other_sites_get_nothing(server):
    assert error_of(server.get("/v1/models", headers={"host": "evil.example"}))["code"] == "wrong_host"
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        reply = server.post(PATH, json=BODY, headers={"origin": origin})
        assert reply.status_code == 403 and error_of(reply)["code"] == "wrong_origin"
        assert "access-control-allow-origin" not in reply.headers
    assert server.post(PATH, json=BODY, headers={"origin": server.url}).status_code == 200
    assert server.post(PATH, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"size": "4096x4096"}, 400, "context_length_exceeded", "positions"),
        ({"size": "10x8"}, 400, "invalid_value", "width must be a multiple"),
        ({"size": "eight"}, 400, "invalid_value", "WIDTHxHEIGHT"),
        ({"prompt": "a red circle " * 60}, 400, "context_length_exceeded", "shorten the prompt"),
        ({"prompt": None}, 400, "invalid_value", "prompt"),
        ({"model": "gpt-image-1"}, 404, "model_not_found", "gpt-image-1"),
        ({"n": 2, "stream": True}, 400, "invalid_value", "a stream holds one picture"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour"),
        ({"prompt": "x" * 70_000}, 413, "request_too_large", "60000 bytes"),
    ],
)
def test_a_request_that_cannot_be_is_told_why(server, body, status, code, words):
    reply = server.post(PATH, json={**BODY, **body})
    assert reply.status_code == status, reply.text
    assert error_of(reply)["code"] == code and words in error_of(reply)["message"]


def test_a_request_beyond_the_memory_is_too_long(tiny_emu, tmp_path):
    with running(deterministic(tiny_emu), tmp_path, memory=1) as server:
        reply = server.post(PATH, json=BODY)
        assert reply.status_code == 400 and error_of(reply)["code"] == "context_length_exceeded"


def test_pictures_and_masks_that_do_not_fit_are_refused(server):
    def edit(**files):
        return server.post("/v1/images/edits", data={"prompt": "red"}, files=files)

    picture, mask = png(Image.new("RGB", (8, 8))), png(Image.new("RGBA", (4, 8)))
    for files, words in (
        ({"image": png(Image.new("RGB", (200, 200)))}, "more than 10000 allowed"),
        ({"image": b"no picture"}, "not a picture"),
        ({"image": picture, "mask": mask}, "4x8 pixels and the image 8x8"),
        ({"picture": picture}, "expected image"),
        ({"image": picture, "mask": png(Image.new("RGBA", (8, 8)))}, "image_infill"),
    ):
        reply = edit(**files)
        assert reply.status_code == 400 and words in error_of(reply)["message"], reply.text
    assert error_of(edit(image=picture, mask=picture))["message"].startswith("mask has no transparency")


def test_pictures_of_a_conversation_are_read_up_to_what_the_model_holds(server, monkeypatch):
    read, at = [], server.service.pictures.at
    monkeypatch.setattr(server.service.pictures, "at", lambda *given: read.append(given) or at(*given))
    address = "data:image/png;base64," + base64.b64encode(png(Image.new("RGB", (8, 8)))).decode()
    part = {"type": "image_url", "image_url": {"url": address}}
    messages = [{"role": "user", "content": [part] * 64}] * 3
    reply = server.post("/v1/chat/completions", json={"messages": messages})
    assert reply.status_code == 400 and error_of(reply)["code"] == "context_length_exceeded"
    assert len(read) == 512 // 4 + 1  # codes of a picture


def test_a_clip_of_the_size_of_its_picture_is_refused_before_it_is_laid_out_where_it_is_too_long(tiny_emu, tmp_path):
    defaults = replace(tiny_emu.defaults, size=None)
    emu = Emu(tiny_emu.model, tiny_emu.tokenizer, defaults, deterministic=True)
    emu.prepare_videos = None
    with running(emu, tmp_path) as server:
        form = {"prompt": (None, "a"), "frames": (None, "9000"), "input_reference": png(Image.new("RGB", (8, 8)))}
        reply = server.post("/v1/videos", files=form)
        assert reply.status_code == 400 and error_of(reply)["code"] == "context_length_exceeded"


def test_what_a_model_was_not_trained_for_is_named(tmp_path):
    with running(bundled("digits"), tmp_path) as server:
        reply = server.post(
            "/v1/images/edits", data={"prompt": "red"}, files={"image": png(Image.new("RGB", (32, 32)))}
        )
        assert reply.status_code == 400 and "image_and_text_to_image" in error_of(reply)["message"]
        chat = {"messages": [{"role": "user", "content": "hello"}]}
        assert "text_continuation" in error_of(server.post("/v1/chat/completions", json=chat))["message"]


def test_transparent_places_of_a_mask_are_drawn_anew_as_by_the_library(filling_emu, tmp_path):
    emu = deterministic(filling_emu)
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8))
    white = draw.random((8, 8)) < 0.2
    alpha = Image.fromarray(np.dstack([np.asarray(picture), np.where(white, 0, 255).astype(np.uint8)]))
    (own,) = emu.edit_images(picture, "a ball", mask=white, seed=3)
    with running(emu, tmp_path) as server:
        files = {"image": png(picture), "mask": png(alpha)}
        reply = server.post("/v1/images/edits", data={"prompt": "a ball", "seed": "3"}, files=files)
        assert reply.status_code == 200, reply.text
        assert base64.b64decode(reply.json()["data"][0]["b64_json"]) == png_bytes(own.image, own.about)
        stream = {"prompt": "a ball", "seed": "3", "stream": "true", "emu[every_row]": "true"}
        assert "image_edit.completed" in server.post("/v1/images/edits", data=stream, files=files).text


def test_hooks_see_words_and_pictures_and_let_nothing_pass_when_they_break(tiny_emu, tmp_path):
    hooks = {"check_prompt": refuse_words, "check_image": refuse_pictures}
    with running(deterministic(tiny_emu), tmp_path, **hooks) as server:
        for body, words in (
            ({"prompt": "a circle"}, "prompt is refused: it asks for a circle"),
            ({"prompt": "x", "negative_prompt": "a circle"}, "negative_prompt is refused"),
            ({"prompt": "raise"}, "it could not be checked"),
            ({"prompt": "next"}, "it could not be checked"),
            ({"prompt": "x", "size": "16x8"}, "the picture that was drawn is refused: it is wide"),
        ):
            reply = server.post(PATH, json=body)
            assert reply.status_code == 400 and error_of(reply)["code"] == "content_policy_violation"
            assert words in error_of(reply)["message"]
        given = server.post(
            "/v1/images/edits", data={"prompt": "x", "size": "16x8"}, files={"image": png(Image.new("RGB", (16, 8)))}
        )
        assert error_of(given)["param"] == "image"
        stream = server.post(PATH, json={"prompt": "x", "size": "16x8", "stream": True, "partial_images": 1}).text
        assert "content_policy_violation" in stream and "b64_json" not in stream
        assert server.post(PATH, json={"prompt": "x"}).status_code == 200


@pytest.fixture
def elsewhere():
    """A server of pictures: /picture.png, /away, which leads to another host, /slow.png, which never ends, and /cut.png."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/cut.png":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nxxx")
                return
            self.send_response(302 if self.path == "/away" else 200)
            if self.path == "/away":
                self.send_header("Location", "http://localhost:1/picture.png")
            self.end_headers()
            self.wfile.write(png(Image.new("RGB", (8, 8), "red")))
            for _ in range(50 if self.path == "/slow.png" else 0):
                time.sleep(0.1)
                with suppress(OSError):
                    self.wfile.write(b"x")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


def test_pictures_are_fetched_from_allowed_hosts_alone(tiny_emu, tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr("emu.serving.given_pictures.SECONDS", 0.5)

    def ask(server, url):
        message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        return server.post("/v1/chat/completions", json={"messages": [message], "max_tokens": 4})

    with running(deterministic(tiny_emu), tmp_path, allow_remote=(elsewhere,)) as server:
        assert ask(server, f"http://{elsewhere}/picture.png").status_code == 200
        for url in (
            f"http://{elsewhere}/away",
            "http://localhost:1/x.png",
            "file:///etc/passwd",
            f"http://x@{elsewhere}/x",
        ):
            reply = ask(server, url)
            assert reply.status_code == 400 and error_of(reply)["code"] == "remote_not_allowed", url
        for path in ("/a picture.png", "/slow.png", "/cut.png"):
            reply = ask(server, f"http://{elsewhere}{path}")
            assert reply.status_code == 400 and "could not be fetched" in error_of(reply)["message"], path
    with running(deterministic(tiny_emu), tmp_path) as server:
        assert "this server fetches none" in error_of(ask(server, f"http://{elsewhere}/picture.png"))["message"]


def test_the_page_loads_from_its_own_server_alone(server):
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/__init__.py", "/page/nowhere.js"):
        assert server.get(path).status_code == 404
    reply = server.get("/")
    if reply.status_code == 200:
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.1.2.3", True),
        ("0.0.0.0", False),
        ("::", False),
        ("emu.example", False),
    ],
)
def test_addresses_of_this_machine_are_known(host, is_own):
    assert is_own_address(host) == is_own
    if not is_own:
        ServingOptions(host=host, api_keys=KEYS).check()
        with pytest.raises(ValueError, match="no API key"):
            ServingOptions(host=host).check()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "no API key"),
        (["--api-key", "short"], "shorter than 8"),
        (["--port", "70000"], "up to 65535"),
        (["--queue", "0"], "queue is 0"),
        (["--slots", "0"], "slots is 0"),
        (["--timeout", "0"], "timeout is 0"),
        (["--max-body", "inf"], "max_body is inf"),
        (["--max-pixels", "nan"], "max_pixels is nan"),
        (["--memory", "much"], "memory is 'much'"),
        (["--allow-remote", "https://x/"], "expected the name of a host"),
        (["--check-prompt", "nowhere.hook"], "cannot be imported"),
        (["--host", "127.0.0.1", "--port", "TAKEN"], "choose another with --host and --port"),
        (["--check-image", "emu.serving.serving_options.MIB"], "cannot be called"),
    ],
)
def test_options_are_refused_before_the_model_loads(words, message, monkeypatch, capsys):
    monkeypatch.setattr("emu.pipeline.Emu.from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [word.replace("TAKEN", str(taken.getsockname()[1])) for word in words]
        assert main(["serve", "digits", *words]) == 2
    assert message in capsys.readouterr().err


def test_without_its_packages_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "emu.serving.http_server", None)
    assert main(["serve", "digits"]) == 2
    assert "pip install 'emu-tokens[serve]'" in capsys.readouterr().err


def test_a_class_is_made_into_a_hook():
    from emu.serving.serving_options import load_check

    assert load_check("--check-image", f"{__name__}.RefuseAll")(None) == "nothing passes"
