"""Routes of clips: begin one, list them, ask after one, fetch it as MP4, take it back."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import FileResponse, JSONResponse, Response

from emu.media import can_write_mp4
from emu.pipeline.prepared_drawings import PreparedVideos
from emu.serving.api_errors import bad_value
from emu.serving.event_stream import Events, within
from emu.serving.request_bodies import read_form
from emu.serving.request_models import VideoBody, size_of_text
from emu.serving.service import Service, chosen_seed
from emu.serving.video_jobs import VideoJobs, no_such_video

LISTED, MOST_LISTED = 20, 100
"""Clips of a page where a request does not say, and the most it may ask for."""


def videos_api(service: Service) -> APIRouter:
    """The routes."""
    router, jobs = APIRouter(), VideoJobs(service)

    @router.post("/v1/videos")
    async def create(request: Request) -> Response:
        """Begin a clip."""
        most = service.options.max_body
        body, files = await within(request.state.deadline, read_form(request, VideoBody, most))
        service.check_model(body.model)
        body.seed = chosen_seed(body.seed)
        first = files.pop("input_reference", [])
        if files or len(first) > 1:
            raise bad_value(
                f"the files are {sorted(files)[:8]}; expected one input_reference at most", "input_reference"
            )
        if not can_write_mp4():
            raise bad_value("this server cannot write MP4: it lacks PyAV, pip install 'emu-tokens[video]'")
        service.note(request, size=size_of_text(body.size), seed=body.seed, **service.log.asked(body.prompt))

        async def work(events: Events) -> Response | None:
            with ExitStack() as places:
                places.enter_context(service.admission.taking())
                job = await _begun(service, jobs, body, first, request.state.owner, places)
            return JSONResponse(job)

        return service.attended(request, work)

    @router.get("/v1/videos")
    async def listed(request: Request) -> Response:
        """List the clips of whoever asks."""
        given = request.query_params
        order, limit = given.get("order", "desc"), given.get("limit", str(LISTED))
        if order not in ("asc", "desc"):
            raise bad_value(f"order is {order[:40]!r}; expected asc or desc", "order")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 0 < int(limit) <= MOST_LISTED):
            raise bad_value(f"limit is {limit[:40]!r}; expected a number from 1 to {MOST_LISTED}", "limit")
        newest_first = order == "desc"
        page = jobs.page(request.state.owner, given.get("after"), int(limit), newest_first=newest_first)
        return JSONResponse(page)

    @router.get("/v1/videos/{identity}")
    async def retrieve(identity: str, request: Request) -> Response:
        """Tell how far a clip is."""
        return JSONResponse(jobs.find(identity, request.state.owner).told())

    @router.delete("/v1/videos/{identity}")
    async def delete(identity: str, request: Request) -> Response:
        """Take a clip back."""
        jobs.remove(jobs.find(identity, request.state.owner))
        return JSONResponse({"id": identity, "object": "video.deleted", "deleted": True})

    @router.get("/v1/videos/{identity}/content")
    async def content(identity: str, request: Request) -> Response:
        """Send a clip as MP4."""
        variant = request.query_params.get("variant", "video")
        if variant != "video":
            raise bad_value(f"variant is {variant[:40]!r}; expected video", "variant")
        job = jobs.find(identity, request.state.owner)
        if job.failure is not None:
            raise job.failure.alone()
        found = None if job.file is None else service.files.find(job.file)
        if found is None and job.file is not None:  # its hour ended within this second
            raise no_such_video()
        if found is None:
            raise bad_value(f"the video is {job.status}; ask again when it is completed", "video_id", "video_not_ready")
        service.unfetched.pop(identity, None)
        return FileResponse(found.path, media_type=found.media_type, filename=f"{identity}.mp4")

    return router


async def _begun(
    service: Service, jobs: VideoJobs, body: VideoBody, first: list[bytes], owner: bytes, places: ExitStack
) -> dict[str, Any]:
    """A job that is begun, as it is told; the places go on with it."""
    await service.check_words({"prompt": body.prompt, "negative_prompt": body.negative_prompt})
    size, frames = size_of_text(body.size), frames_of(service, body)
    vision = service.emu.tokenizer.vision
    latents = -(-frames // (1 if vision is None else vision.temporal_factor))
    service.check_size(size or service.emu.defaults.size, latents)
    reference: Image.Image | None = None
    if first:
        reference = await service.in_pixels(service.pictures.read, first[0], "input_reference", size)
        service.check_size((reference.height, reference.width), latents)
        await service.check_pictures([reference], "input_reference")

    def prepare() -> PreparedVideos:
        shape: dict[str, Any] = {"size": size, "frames": frames, "fps": body.fps, "first_frames": reference}
        return service.emu.prepare_videos([body.prompt], seed=body.seed or 0, **shape, **body.sampling())

    prepared = await service.in_pixels(prepare)
    (block,) = prepared.blocks
    service.check_tokens(block.tokens)
    height, width = block.size
    about = {
        "model": service.name,
        "prompt": body.prompt,
        "size": f"{width}x{height}",
        "seconds": f"{frames / prepared.fps:g}",
    }
    emu = {"seed": block.seed, "model": prepared.model, "settings": prepared.told_of(block)[2]}
    emu |= {"warning": prepared.beyond} if prepared.beyond else {}
    return jobs.begin(prepared, about, emu, owner, places.pop_all()).told()


def frames_of(service: Service, body: VideoBody) -> int:
    """How many frames a clip is to have.

    Raises:
        ApiError: seconds are no positive number, or frames are given beside them.
    """
    defaults = service.emu.defaults
    if body.seconds is None:
        return body.frames or defaults.frames
    if body.frames is not None:
        raise bad_value("frames and seconds; give one of them", "seconds")
    try:
        seconds = float(body.seconds)
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise bad_value(f"seconds is {str(body.seconds)[:20]!r}; expected a positive number up to 3600", "seconds")
    return max(1, round(seconds * (body.fps or defaults.fps)))
