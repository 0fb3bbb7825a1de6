"""Clips are made by jobs that outlive their request: begun, asked after, fetched, taken back."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from emu.media import mp4_bytes
from emu.pipeline.grid_requests import PreparedBlock
from emu.pipeline.prepared_drawings import PreparedVideos
from emu.serving.api_errors import ApiError, error_of
from emu.serving.drawn_blocks import finished, request_of
from emu.serving.event_stream import within
from emu.serving.result_files import KEPT
from emu.serving.service import Service, now


@dataclass
class VideoJob:
    """A clip that is made.

    Attributes:
        identity: by which its client asks for it; nobody can guess it.
        about: what was asked for, as OpenAI tells it.
        emu: how it is made.
        owner: stands for the key of its client, empty where the server has none.
        status: "queued", "in_progress", "completed" or "failed".
        progress: percent.
        created, completed: seconds since 1970.
        failure: why it failed.
        file: name of the clip among the files.
        task: that makes it.
    """

    identity: str
    about: dict[str, Any]
    emu: dict[str, Any]
    owner: bytes = b""
    status: str = "queued"
    progress: int = 0
    created: int = field(default_factory=now)
    completed: int | None = None
    failure: ApiError | None = None
    file: str | None = None
    task: asyncio.Task | None = None

    def told(self) -> dict[str, Any]:
        """As OpenAI tells it."""
        failure = None
        if self.failure is not None:
            failure = {"code": self.failure.code or "failed", "message": self.failure.message}
        return {
            "id": self.identity,
            "object": "video",
            "status": self.status,
            "progress": self.progress,
            "created_at": self.created,
            "completed_at": self.completed,
            "expires_at": None if self.completed is None else self.completed + int(KEPT),
            "error": failure,
            "remixed_from_video_id": None,
            **self.about,
            "emu": self.emu,
        }


class VideoJobs:
    """The jobs of one server, each kept for an hour after its end."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs: dict[str, VideoJob] = {}

    def begin(
        self, prepared: PreparedVideos, about: dict[str, Any], emu: dict[str, Any], owner: bytes, places: ExitStack
    ) -> VideoJob:
        """Start a job for the only clip of what is prepared; `places` are given back at its end."""
        self._forget()
        job = VideoJob(f"video_{secrets.token_hex(16)}", about, emu, owner)
        self._jobs[job.identity] = job
        job.task = self._service.background(self._run(job, prepared, places))
        return job

    def find(self, identity: str, owner: bytes) -> VideoJob:
        """A job of one key; those of others stay unknown.

        Raises:
            ApiError: there is none of this name.
        """
        job = self._known(identity)
        if job.owner != owner:
            raise no_such_video()
        return job

    def _known(self, identity: str) -> VideoJob:
        self._forget()
        if identity not in self._jobs:
            raise no_such_video()
        return self._jobs[identity]

    def page(self, owner: bytes, after: str | None, limit: int, *, newest_first: bool) -> dict[str, Any]:
        """Some of the jobs of one key, as OpenAI lists them; those of others stay unknown.

        Args:
            after: name of the last job of the page before.
            limit: most jobs of a page.

        Raises:
            ApiError: 404, there is no job `after`.
        """
        last = None if after is None else self._known(after)
        self._forget()
        jobs = [job for job in self._jobs.values() if job.owner == owner]
        jobs = jobs[::-1] if newest_first else jobs
        if last is not None:
            jobs = jobs[jobs.index(last) + 1 :] if last in jobs else []
        shown = [job.told() for job in jobs[:limit]]
        ends = (
            {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
        )
        return {"object": "list", "data": shown, **ends, "has_more": len(jobs) > limit}

    def remove(self, job: VideoJob) -> None:
        """Take a job back, and delete its clip."""
        if job.task is not None:
            job.task.cancel()
        if job.file is not None:
            self._service.files.remove(job.file)
        del self._jobs[job.identity]
        self._service.unfetched.pop(job.identity, None)

    async def _run(self, job: VideoJob, prepared: PreparedVideos, places: ExitStack) -> None:
        loop, service = asyncio.get_running_loop(), self._service
        with places:
            try:
                deadline = loop.time() + service.options.timeout
                job.file = await within(deadline, self._made(job, prepared, prepared.blocks[0]))
                job.status, job.progress = "completed", 100
                service.unfetched[job.identity] = loop.time()
            except Exception as error:
                told = error_of(error, job.identity)
                if told is None or told.status >= 500:
                    service.log.failed(error, id=job.identity)
                message = f"the server failed at this video, {job.identity}"
                job.failure = (told or ApiError(500, message, "internal_error")).alone()
                job.status = "failed"
            finally:
                job.completed = now()
                service.log.write("video", id=job.identity, status=job.status, seconds=job.completed - job.created)

    async def _made(self, job: VideoJob, prepared: PreparedVideos, block: PreparedBlock) -> str:
        """Make the clip and store it; returns the file's name."""
        service = self._service
        lines = block.grid[0] * block.grid[1]

        def advanced(number: int, _: Any) -> None:
            if job.completed is None:  # a row may be told after the time is over
                job.status, job.progress = "in_progress", min(99, 100 * (number + 1) // lines)

        codes = await service.worker.result(request_of(prepared, block), on_row=advanced)
        result = await finished(service, prepared, block, codes)
        data = await service.in_pixels(mp4_bytes, result.frames, result.fps, result.about)
        return await service.in_pixels(service.files.add, data, "video/mp4")

    def _forget(self) -> None:
        ended = [(job, job.completed) for job in self._jobs.values() if job.completed is not None]
        for job, completed in ended:
            if completed + KEPT < now():
                self.remove(job)


def no_such_video() -> ApiError:
    """A name that is of no job, or of one that is over."""
    return ApiError(404, "there is no such video; videos stay for an hour", "video_not_found")
