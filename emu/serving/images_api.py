"""Routes that draw pictures: `images/generations` and `images/edits`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from emu.media import png_bytes
from emu.pipeline.prepared_drawings import PreparedImages
from emu.pipeline.results import ImageResult
from emu.serving.api_errors import bad_value
from emu.serving.drawn_blocks import as_text, drawn, partial_picture, row_by_row, together, tokens_of
from emu.serving.event_stream import Events, within
from emu.serving.request_bodies import read_form, read_json
from emu.serving.request_models import EditBody, ImageBody, size_of_text
from emu.serving.service import Service, chosen_seed, now


def images_api(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        """Draw pictures after a prompt."""
        most = service.options.max_body
        body = await within(request.state.deadline, read_json(request, ImageBody, most))
        return admitted(service, request, body, lambda events: _generation(service, request, body, events))

    @router.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        """Draw given pictures anew."""
        most = service.options.max_body
        body, files = await within(request.state.deadline, read_form(request, EditBody, most))
        images, masks = files.pop("image", []), files.pop("mask", [])
        if files or not images or len(masks) > 1:
            told = f"{len(images)} images, {len(masks)} masks and other files {sorted(files)[:8]}"
            raise bad_value(
                f"the form has {told}; expected image, once or several times, and one mask at most", "image"
            )
        if masks and len(images) > 1:
            raise bad_value(f"{len(images)} images beside a mask; give the one that is to be filled in", "image")
        return admitted(service, request, body, lambda events: _edit(service, request, body, images, masks, events))

    return router


async def _generation(service: Service, request: Request, body: ImageBody, events: Events) -> Response | None:
    await service.check_words({"prompt": body.prompt, "negative_prompt": body.negative_prompt})
    service.check_size(size_of_text(body.size))
    prepared = await service.in_pixels(service.emu.prepare_images, [body.prompt], **told_of(body))
    return await reply(service, request, body, prepared, events, "image_generation")


async def _edit(
    service: Service, request: Request, body: ImageBody, images: list[bytes], masks: list[bytes], events: Events
) -> Response | None:
    await service.check_words({"prompt": body.prompt, "negative_prompt": body.negative_prompt})
    size = size_of_text(body.size)
    service.check_size(size)
    mask: np.ndarray | None = None
    if masks:
        picture, mask = await service.in_pixels(service.pictures.masked, images[0], masks[0], size)
        pictures = [picture]
    else:
        pictures = [await service.in_pixels(service.pictures.read, data, "image", size) for data in images]
    await service.check_pictures(pictures, "image")
    prepared = await service.in_pixels(service.emu.prepare_edits, [pictures], body.prompt, mask=mask, **told_of(body))
    return await reply(service, request, body, prepared, events, "image_edit")


def told_of(body: ImageBody) -> Any:
    """What `Emu.prepare_images` is told."""
    size = size_of_text(body.size)
    return {"size": size, "seed": body.seed, "images_per_prompt": body.count, **body.sampling()}


def admitted(
    service: Service, request: Request, body: ImageBody, work: Callable[[Events], Awaitable[Response | None]]
) -> Response:
    """A reply that holds places while it is worked out.

    Raises:
        ApiError: there are none, or the body names another model or asks for what cannot be together.
    """
    service.check_model(body.model)
    if body.stream and body.count > 1:
        raise bad_value(f"n is {body.n} with stream; a stream holds one picture, ask for each by itself", "n")
    size, body.seed = size_of_text(body.size), chosen_seed(body.seed)
    asked = service.log.asked(body.prompt)
    service.note(request, n=body.count, size=size, seed=body.seed, stream=body.stream, **asked)
    service.admission.check(body.count)

    async def inside(events: Events) -> Response | None:
        with service.admission.taking(body.count):
            return await work(events)

    return service.attended(request, inside)


async def reply(
    service: Service, request: Request, body: ImageBody, prepared: PreparedImages, events: Events, kind: str
) -> Response | None:
    """Draw what is prepared, and reply at once or as it is drawn."""
    for block in prepared.blocks:
        service.check_tokens(block.tokens)
    height, width = prepared.blocks[0].size
    about = {
        "size": f"{width}x{height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": "png",
        "usage": tokens_of(service, prepared.blocks[0]),
    }
    if body.stream:
        await _stream(service, request, body, prepared, events, kind, about)
        return None
    results = await together([drawn(service, prepared, block) for block in prepared.blocks])
    data = [await _entry(service, request, body, result) for result in results]
    told = emu_of(prepared, results[0])
    return JSONResponse({"created": now(), "data": data, **about, "emu": told})


async def _stream(
    service: Service,
    request: Request,
    body: ImageBody,
    prepared: PreparedImages,
    events: Events,
    kind: str,
    about: Mapping[str, Any],
) -> None:
    (block,) = prepared.blocks
    rows, shown = block.grid[0], 0
    wanted = set(range(1, rows + 1)) if body.emu.every_row else partial_rows(rows, body.partial_images or 0)
    async for done, codes, result in row_by_row(service, prepared, block):
        if result is not None:
            entry = await _entry(service, request, body, result)
            told = emu_of(prepared, result)
            await events.send(
                f"{kind}.completed", {"type": f"{kind}.completed", "created_at": now(), **entry, **about, "emu": told}
            )
        elif codes is not None and any(place <= done for place in wanted):
            wanted = {place for place in wanted if place > done}
            picture = await service.in_pixels(partial_picture, service, block, codes)
            await service.check_pictures([picture], None)
            told = {"type": f"{kind}.partial_image", "created_at": now(), "partial_image_index": shown}
            shape = {name: value for name, value in about.items() if name != "usage"}
            await events.send(
                f"{kind}.partial_image",
                {**told, **shape, "b64_json": as_text(png_bytes(picture)), "emu": {"rows": done, "of": rows}},
            )
            shown += 1


async def _entry(service: Service, request: Request, body: ImageBody, result: ImageResult) -> dict[str, Any]:
    """A picture of a reply."""
    data = await service.in_pixels(png_bytes, result.image, result.about)
    if body.response_format == "url":
        name = await service.in_pixels(service.files.add, data, "image/png")
        return {"url": str(request.url_for("stored_file", name=name))}
    return {"b64_json": as_text(data)}


def emu_of(prepared: PreparedImages, result: ImageResult) -> dict[str, Any]:
    """What a reply tells of how its pictures were made."""
    settings = {name: value for name, value in result.settings.items() if name != "document"}
    told = {"seed": result.seed, "model": result.model, "settings": settings}
    return told | ({"warning": prepared.beyond} if prepared.beyond else {})


def partial_rows(rows: int, count: int) -> set[int]:
    """After which of the rows of a picture N partial ones are shown, evenly."""
    return {rows * number // (count + 1) for number in range(1, count + 1)} - {0}
