"""Routes around the model: what it is, files of replies, health, counters, and the page."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, JSONResponse, Response

from emu.serving.api_errors import ApiError
from emu.serving.model_card import model_card
from emu.serving.service import Service

PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may load: its own files and what it draws, nothing of other hosts."""
PAGE_HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Of files of the page, whatever the machine believes of them."""


def house_api(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()
    card = model_card(service.emu, service.name, service.revision, service.options)

    @router.get("/v1/models")
    async def models() -> Response:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [card]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """Tell of the model."""
        service.check_model(name)
        return JSONResponse(card)

    @router.get("/files/{name}", name="stored_file")
    async def stored_file(name: str) -> Response:
        """Send a file that a reply named."""
        found = service.files.find(name)
        if found is None:
            raise ApiError(404, "there is no such file; files stay for an hour", "file_not_found")
        return FileResponse(found.path, media_type=found.media_type, headers={"Cache-Control": "private, no-store"})

    @router.get("/health")
    async def health() -> Response:
        """Say whether requests are taken."""
        closing = service.admission.is_closing
        return JSONResponse({"status": "closing" if closing else "ok", "model": service.name}, 503 if closing else 200)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Tell the counters."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/")
    async def index() -> Response:
        """Send the page."""
        return page_file("index.html")

    @router.get("/page/{name:path}")
    async def page(name: str) -> Response:
        """Send a file of the page."""
        return page_file(name)

    return router


def page_file(name: str) -> Response:
    """A file of the page.

    Raises:
        ApiError: there is none of this name.
    """
    known = {
        file.relative_to(PAGE).as_posix(): file for file in PAGE.rglob("*") if file.suffix != ".py" and file.is_file()
    }
    if name not in known:
        raise ApiError(404, f"the page has no file {name[:80]!r}", "file_not_found")
    media_type = TYPES.get(known[name].suffix) or mimetypes.guess_type(name)[0]
    return FileResponse(known[name], media_type=media_type, headers=PAGE_HEADERS)
