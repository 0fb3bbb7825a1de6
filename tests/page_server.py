"""A small server with the interface of `emu serve` that draws stripes: tests of the page see exact colours, and every error at will."""

from __future__ import annotations

import base64
import colorsys
import io
import json
import re
import threading
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PAGE = Path(__file__).parents[1] / "emu" / "serving" / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; media-src blob:"
ROWS = 8


def stripes(seed: int, rows: int, size: tuple[int, int], of: int = ROWS) -> np.ndarray:
    """(height, width, 3) uint8: the first `rows` of `of` stripes, in colours that the seed decides; the others grey."""
    height, width = size
    shown = np.full((of, 3), 128)
    for row in range(rows):
        hue = (seed % 97) / 97 + row / of / 3
        shown[row] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, 0.55, 0.55 + 0.4 * row / of)]
    return shown.repeat(-(-height // of), axis=0)[:height, None].repeat(width, axis=1).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """The pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def settings_of(body: dict[str, Any], size: list[int]) -> dict[str, Any]:
    """What a reply tells that it was drawn with: the body's, else the model's own."""
    own = {"guidance_scale": 3.0, "temperature": 1.0, "top_p": 0.9, "negative_prompt": ""}
    return {"size": size} | {name: type(value)(body.get(name, value)) for name, value in own.items()}


@dataclass
class StripedModel:
    """What the server says of its model, and how it behaves.

    Attributes:
        tasks, sizes, prompts: as `/v1/models` tells them.
        hold_after: rows, words or steps of a clip after which the server waits until `released` is set.
        key: demanded where it is not None.
        refusals: what is answered to the next requests for work, in order: (status, error, headers).
        drop_after: rows after which the connection ends.
        asked: bodies of the requests for work so far.
        gone: requests whose client went away before the end, and clips that were cancelled.
    """

    tasks: dict[str, str | None] = field(
        default_factory=lambda: dict.fromkeys(("draw", "describe", "edit", "fill", "animate"))
    )
    sizes: list[list[int]] = field(default_factory=lambda: [[32, 32], [32, 48]])
    prompts: list[str] = field(
        default_factory=lambda: ["a handwritten seven", "the digit two", "a three drawn by hand"]
    )
    hold_after: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    key: str | None = None
    refusals: list[tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    drop_after: int | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    clips: dict[str, dict[str, Any]] = field(default_factory=dict)


class StripedServer:
    """The server on a free port while the `with` block lasts; `model` may be changed between requests."""

    def __init__(self, model: StripedModel | None = None) -> None:
        self.model = model or StripedModel()
        handler = type("Handler", (StripedHandler,), {"served": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> StripedServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.model.released.set()
        self._server.shutdown()
        self._server.server_close()


class StripedHandler(BaseHTTPRequestHandler):
    """One request."""

    served: StripedServer

    def log_message(self, *words: object) -> None:
        """Nothing."""

    @property
    def model(self) -> StripedModel:
        return self.served.model

    def do_GET(self) -> None:
        name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
        if (self.path == "/" or self.path.startswith("/page/")) and (PAGE / name).is_file():
            self._answer(200, (PAGE / name).read_bytes(), TYPES[Path(name).suffix], {"Content-Security-Policy": POLICY})
        elif not self._is_allowed():
            return
        elif self.path == "/v1/models":
            about = {
                "tasks": self.model.tasks,
                "sizes": self.model.sizes,
                "frames": 8,
                "fps": 4,
                "guidance_scale": 3.0,
                "question": "Describe it.",
                "prompts": self.model.prompts,
                "revision": "0123456789abcdef",
            }
            self._json({"object": "list", "data": [{"id": "stripes", "object": "model", "emu": about}]})
        elif found := re.fullmatch(r"/v1/videos/(\w+)(/content)?", self.path):
            self._clip(*found.groups())
        else:
            self._error(404, {"message": f"{self.path} is not here"})

    def do_DELETE(self) -> None:
        self.model.gone.append(self.path.rpartition("/")[2])
        self._json({"deleted": True})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_allowed():
            return
        body = self._form(raw) if "multipart" in self.headers["Content-Type"] else json.loads(raw)
        self.model.asked.append(body)
        if self.model.refusals:
            self._error(*self.model.refusals.pop(0))
        elif self.path == "/v1/images/generations":
            self._rows("image_generation", body)
        elif self.path == "/v1/images/edits":
            self._rows("image_edit", body)
        elif self.path == "/v1/chat/completions":
            self._words()
        elif self.path == "/v1/videos":
            name = f"video_{len(self.model.clips)}"
            about = {"seed": body["seed"], "settings": settings_of(body, [32, 32])}
            self.model.clips[name] = {"id": name, "object": "video", "status": "queued", "progress": 0, "emu": about}
            self._json(self.model.clips[name])

    def _is_allowed(self) -> bool:
        allowed = self.model.key in (None, self.headers.get("Authorization", "").removeprefix("Bearer "))
        if not allowed:
            self._error(401, {"message": "Give a key.", "code": "invalid_api_key"})
        return allowed

    def _form(self, raw: bytes) -> dict[str, Any]:
        message = BytesParser().parsebytes(
            b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + raw
        )
        found: dict[str, Any] = {}
        for part in message.get_payload():
            name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
            found[name] = content if part.get_filename() else content.decode()
        return found

    def _rows(self, kind: str, body: dict[str, Any]) -> None:
        seed = int(body["seed"])
        if body.get("size"):
            width, height = map(int, body["size"].split("x"))
        else:
            width, height = Image.open(io.BytesIO(body["image"])).size
        self._begin_stream()
        about = {"seed": seed, "model": "stripes", "settings": settings_of(body, [height, width])}
        for row in range(1, ROWS + 1 if "mask" not in body else 1):
            self._hold(row - 1)
            if self.model.drop_after == row - 1:
                return
            picture = base64.b64encode(png(stripes(seed, row, (height, width)))).decode()
            event = {"type": f"{kind}.partial_image", "b64_json": picture, "partial_image_index": row - 1}
            if not self._event({**event, "emu": {"rows": row, "of": ROWS}}):
                return
        picture = base64.b64encode(png(stripes(seed, ROWS, (height, width)))).decode()
        self._event({"type": f"{kind}.completed", "b64_json": picture, "emu": about})

    def _words(self) -> None:
        self._begin_stream()
        for number, word in enumerate(("stripes", " of", " many", " colours")):
            self._hold(number)
            if not self._event({"choices": [{"delta": {"content": word}}]}):
                return
        self._event(
            {"choices": [{"delta": {}, "finish_reason": "stop"}], "emu": {"seed": 0, "settings": {"temperature": 0.0}}}
        )
        self.wfile.write(b"data: [DONE]\n\n")

    def _clip(self, name: str, content: str | None) -> None:
        clip = self.model.clips[name]
        if content:
            from emu.media import mp4_bytes

            frames = [Image.fromarray(stripes(clip["emu"]["seed"] + 9 * frame, ROWS, (32, 32))) for frame in range(8)]
            self._answer(200, mp4_bytes(frames, 4), "video/mp4")
            return
        if (
            self.model.hold_after is None
            or self.model.released.is_set()
            or clip["progress"] < 50 * self.model.hold_after
        ):
            clip["progress"] = min(100, clip["progress"] + 50)
        clip["status"] = "completed" if clip["progress"] == 100 else "in_progress"
        self._json(clip)

    def _hold(self, done: int) -> None:
        if done == self.model.hold_after:
            self.model.released.wait(60)

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def _event(self, data: dict[str, Any]) -> bool:
        kind = f"event: {data['type']}\n" if "type" in data else ""
        try:
            self.wfile.write(f"{kind}data: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()
        except OSError:
            self.model.gone.append(self.path)
            return False
        return True

    def _error(self, status: int, error: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._json({"error": error}, status, headers)

    def _json(self, told: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(told).encode(), "application/json", headers)

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
