"""The application: all routes around one service, behind the gate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from emu.serving.api_errors import ApiError
from emu.serving.chat_api import chat_api
from emu.serving.gate import Gate
from emu.serving.house_api import house_api
from emu.serving.images_api import images_api
from emu.serving.service import Service
from emu.serving.videos_api import videos_api


def create_app(service: Service) -> FastAPI:
    """The application of a service, whose threads run while it does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Run the threads of the service."""
        service.worker.start()
        try:
            yield
        finally:
            service.close()

    # Pages that describe the interface would load scripts of other hosts.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for routes in (house_api, images_api, chat_api, videos_api):
        app.include_router(routes(service))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        """Say that there is no such route."""
        told = f"there is no {request.method} {request.url.path[:120]!r} here"
        refused = ApiError(error.status_code, told if error.status_code in (404, 405) else str(error.detail))
        return JSONResponse(refused.body, error.status_code, headers=error.headers)

    app.add_middleware(Gate, options=service.options, log=service.log, metrics=service.metrics)
    return app
