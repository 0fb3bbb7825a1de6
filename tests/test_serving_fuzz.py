"""Requests of strangers: whatever they send, they get a 4xx in the form of OpenAI's errors, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import random
import string
import struct
import zlib
from collections import Counter
from urllib.parse import quote

import pytest
from PIL import Image

from tests.serving_toys import bundled, deterministic, error_of, png, running

KEY = "a-key-that-no-log-holds"
SECRET = "what nobody else may read"
GOOD = {
    "/v1/images/generations": {"prompt": "a seven", "n": 1, "size": "32x32", "seed": 1},
    "/v1/chat/completions": {"model": "digits", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/videos": {"prompt": "a seven", "size": "32x32", "seed": 1},
}
FIELDS = (
    "prompt", "model", "n", "size", "seed", "stream", "partial_images", "response_format", "temperature", "top_k",
    "top_p", "guidance_scale", "negative_prompt", "messages", "modalities", "max_tokens", "seconds", "frames", "fps",
    "emu", "output_format", "background", "user", "quality",
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 11, 1 << 63, -(1 << 63), 10**400, 1e308, -1e308, 0.5, "", "x", "1", "32x32", "-32x32", "0x0", "1e3x32",
    "99999x99999", "32x32x32", "३२x३२", [], [[]], {}, {"a": {}}, [None], "\x00", "\u202e", "😀" * 50, "NaN", "Infinity", "x" * 40_000,
)  # fmt: skip
TEXTS = (
    "<|extra_0|><|image start|>8*8<|image token|>", "</s><s>[BOS]", "\x00\x01\x02", "\ud7ff\ue000\ufffe\uffff", "مرحبا بالعالم", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "a" * 3_000, "\r\n\r\nevent: error\ndata: {}", "{{7*7}} ${jndi:ldap://x}", "'; DROP TABLE", "%s%n%x", "../../etc/passwd",
)  # fmt: skip
ADDRESSES = (
    "file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "http://localhost:1/x.png", "https://example.org/a.png", "ftp://x/y",
    "data:image/png;base64,", "data:image/png;base64,!!!", "data:text/html;base64,PGI+", "data:,x", "", "javascript:alert(1)", "http://[::1",
    "http://user@example.org/", "data:image/png;base64," + "A" * 1000, "//x/y", "gopher://x",
)  # fmt: skip


def bomb() -> bytes:
    """A PNG that says it has 60,000 x 60,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


FILES = [
    b"", b"\x00" * 64, bomb(), png(Image.new("RGB", (32, 32)))[:60], b"<svg/>", b"%PDF-1.4", b"\xff\xd8\xff\xe0", b"RIFF0000WEBP",
    png(Image.new("RGBA", (31, 1))), png(Image.new("1", (1, 1))), png(Image.new("I;16", (9, 9))),
]  # fmt: skip


class Fuzz:
    """Requests by chance.

    Args:
        seed: of the chance.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def request(self) -> dict:
        """What `httpx.Client.request` takes."""
        kinds = (
            self.changed,
            self.changed,
            self.garbage,
            self.form,
            self.form,
            self.picture,
            self.message,
            self.elsewhere,
            self.odd,
        )
        return self.random.choice(kinds)()

    def bytes(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def json(self, path: str, data: object) -> dict:
        return self.raw(path, json.dumps(data).encode("utf-8", "surrogatepass"))

    def raw(self, path: str, data: bytes) -> dict:
        return {"method": "POST", "url": path, "content": data, "headers": {"content-type": "application/json"}}

    def changed(self) -> dict:
        path = self.random.choice(list(GOOD))
        body = {**GOOD[path], "prompt": SECRET} if "prompt" in GOOD[path] else dict(GOOD[path])
        body["unknown"] = self.random.choice(VALUES)
        for _ in range(self.random.randint(1, 3)):
            body[self.random.choice(FIELDS)] = self.random.choice(VALUES)
        if self.random.random() < 0.7:
            del body["unknown"]
            body["n"] = self.random.choice((0, -1, "2", 2.5, [], 10**30))
        return self.json(path, body)

    def garbage(self) -> dict:
        path = self.random.choice(list(GOOD))
        good = json.dumps(GOOD[path]).encode()
        place = self.random.randrange(len(good))
        deep = self.random.choice((b"[", b'{"a":')) * self.random.choice((10, 1_000, 100_000))
        hidden = b'{"prompt": "\\ud800", "n": 1e999, "seed": NaN}'
        texts = (
            self.bytes(200),
            good[:place],
            good[:place] + self.bytes(4) + good[place:] + b"}",
            deep,
            hidden,
            b"null",
            b"[]",
            b'"x"',
            b"",
        )
        return self.raw(path, self.random.choice(texts))

    def form(self) -> dict:
        path = self.random.choice(("/v1/images/edits", "/v1/videos"))
        name = self.random.choice(("image", "image[]", "mask", "input_reference", "x" * 300, "", "\x00"))
        fields = {self.random.choice(FIELDS): str(self.random.choice(VALUES))[:2_000] for _ in range(3)}
        files = [(name, ("a.png", self.random.choice(FILES), "image/png"))]
        fields |= {"prompt": SECRET, "n": "0"} if self.random.random() < 0.5 else {"emu": "{"}
        return {"method": "POST", "url": path, "data": fields, "files": files}

    def picture(self) -> dict:
        if self.random.random() < 0.3:
            boundary = self.random.choice(
                (
                    "multipart/form-data",
                    "multipart/form-data; boundary=",
                    "multipart/form-data; boundary=x",
                    "text/plain",
                    "multipart/form-data; boundary=é",
                )
            )
            data = self.random.choice(
                (b"--x\r\n", b"--x--", self.bytes(400), b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n')
            )
            return {
                "method": "POST",
                "url": "/v1/images/edits",
                "content": data,
                "headers": {"content-type": boundary.encode()},
            }
        files = [("image", ("a.png", self.random.choice(FILES), "image/png")) for _ in range(self.random.randint(0, 3))]
        files += [("mask", ("m.png", self.random.choice(FILES), "image/png")) for _ in range(self.random.randint(0, 2))]
        data = {"prompt": self.random.choice(TEXTS).encode("utf-8", "replace").decode()}
        return {"method": "POST", "url": "/v1/images/edits", "data": data, "files": files or {"x": b""}}

    def message(self) -> dict:
        encoded = base64.b64encode(self.random.choice(FILES)).decode()
        address = self.random.choice((*ADDRESSES, f"data:image/png;base64,{encoded}"))
        part = {"type": "image_url", "image_url": {"url": address}}
        wrong = (
            {"type": "text"},
            {"type": "audio"},
            {"type": "image_url", "image_url": address},
            {"type": "text", "text": 3},
            [],
            None,
            part,
        )
        content = [self.random.choice(wrong) for _ in range(self.random.randint(0, 4))] or [part]
        return self.json(
            "/v1/chat/completions", {"model": "digits", "messages": [{"role": "user", "content": content}]}
        )

    def elsewhere(self) -> dict:
        word = "".join(self.random.choices(string.printable.strip() + "é😀", k=self.random.randint(0, 30)))
        head = self.random.choice(
            ("/v1/models/", "/files/", "/v1/videos/", "/v1/", "/page/", "/page/../../", "/v1/videos/%00/content?")
        )
        method = self.random.choice(("GET", "POST", "PUT", "DELETE", "PATCH"))
        return {"method": method, "url": head + quote(word)}

    def odd(self) -> dict:
        """Text that nothing is wrong with, and a number that something is."""
        body = {
            "prompt": self.random.choice(TEXTS),
            "negative_prompt": self.random.choice(TEXTS),
            "top_p": self.random.choice((0, 1.1, 1e999)),
        }
        return self.json("/v1/images/generations", body)


def attack(folder, count: int, seed: int) -> Counter:
    """Send N requests; returns how often each status came."""
    found = Counter()
    with running(bundled("digits"), folder, api_keys=(KEY,), timeout=20.0) as server:
        with server.client as client:
            client.headers["authorization"] = f"Bearer {KEY}"
            fuzz = Fuzz(seed)
            for number in range(count):
                asked = fuzz.request()
                reply = client.request(**asked)
                told = f"request {number} of seed {seed}: {str(asked)[:500]} -> {reply.status_code} {reply.text[:300]}"
                # By chance nothing may be wrong with a tiny picture, and dots of an address may lead to the page.
                is_right = "image_url" in str(asked) or reply.request.url.path == "/"
                assert 400 <= reply.status_code < 500 or (reply.status_code == 200 and is_right), told
                if reply.status_code != 200:
                    error_of(reply)
                found[reply.status_code] += 1
            after = client.post("/v1/images/generations", json={"prompt": "a handwritten seven"})
            assert after.status_code == 200 and not server.service.admission.taken
        assert all(line["event"] == "request" for line in server.lines[1:])
        for secret in (KEY, SECRET):
            assert secret not in server.written.getvalue()
    assert found[200] < max(3, count / 50)
    return found


def test_a_hundred_requests_of_strangers(tmp_path):
    assert attack(tmp_path, 100, seed=0)[400] > 50


@pytest.mark.slow
def test_ten_thousand_requests_of_strangers(tmp_path):
    found = attack(tmp_path, 10_000, seed=1)
    assert found[400] > 5_000 and {404, 405, 415} <= set(found)


def test_text_of_any_kind_is_text(tiny_emu, tmp_path):
    with running(deterministic(tiny_emu), tmp_path) as server, server.client as client:
        for text in TEXTS:
            body = {"prompt": text.encode("utf-8", "replace").decode()[:200], "seed": 1}
            reply = client.post("/v1/images/generations", json=body)
            assert reply.status_code == 200, reply.text
            Image.open(io.BytesIO(base64.b64decode(reply.json()["data"][0]["b64_json"]))).load()
