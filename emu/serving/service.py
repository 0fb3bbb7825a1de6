"""One model that is served, and what all routes share: the worker, the thread for pixels, places, hooks, log and counters."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from fastapi import Request
from PIL import Image
from starlette.responses import Response

from emu.pipeline import Emu
from emu.serving.admission import Admission
from emu.serving.api_errors import ApiError, bad_value, error_of, too_long
from emu.serving.event_stream import AttendedReply, Events
from emu.serving.given_pictures import GivenPictures
from emu.serving.model_worker import ModelWorker
from emu.serving.request_log import RequestLog
from emu.serving.result_files import ResultFiles
from emu.serving.serving_metrics import ServingMetrics
from emu.serving.serving_options import ServingOptions

Given = ParamSpec("Given")
Value = TypeVar("Value")


class Service:
    """A model that is served.

    Args:
        emu: the model, deterministic or not.
        options: see `ServingOptions`.
        folder: for files that replies name.
        log: where lines go.

    Attributes:
        name: of the model, as requests name it.
        revision: fingerprint of the model.
        model_name: both, as results tell it.
        unfetched: clips that nobody has fetched yet, and the time of the event loop at which they were done.
    """

    def __init__(self, emu: Emu, options: ServingOptions, folder: Path, log: RequestLog) -> None:
        options.check()
        self.emu, self.options, self.log = emu, options, log
        self.model_name = emu.model_name
        self.name, _, self.revision = self.model_name.rpartition(" ")
        self.worker = ModelWorker(lambda: emu.batcher(options.slots, options.memory))
        self.admission = Admission(self.worker.batcher.slots, options.queue)
        self.metrics = ServingMetrics(self.admission)
        self.files = ResultFiles(folder)
        self.pictures = GivenPictures(emu, options.max_pixels, options.max_body, options.allow_remote)
        # One thread: pixels of one request at a time, beside the model's thread.
        self._pixels = ThreadPoolExecutor(1, "emu-pixels")
        self._tasks: set[asyncio.Task] = set()
        self.unfetched: dict[str, float] = {}

    def close(self) -> None:
        """End the threads."""
        self.worker.stop()
        self._pixels.shutdown(cancel_futures=True)

    async def in_pixels(self, function: Callable[Given, Value], *given: Given.args, **named: Given.kwargs) -> Value:
        """Run a function in the thread for pixels: preparing, decoding, hooks."""

        def run() -> Value:
            try:
                return function(*given, **named)
            except StopIteration as error:  # which no future can hold: whoever waits for it would wait for ever
                raise RuntimeError("StopIteration") from error

        return await asyncio.get_running_loop().run_in_executor(self._pixels, run)

    def background(self, work: Awaitable[Any]) -> asyncio.Task:
        """A task that nobody awaits; it is kept from being forgotten."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def attended(self, request: Request, work: Callable[[Events], Awaitable[Response | None]]) -> AttendedReply:
        """A reply that is worked out while its client waits."""
        identity = request.state.id

        def failure(error: Exception) -> ApiError:
            told = error_of(error, identity)
            if told is None or told.code == "nan_logits":
                self.log.failed(error, id=identity)
            return told or ApiError(500, f"the server failed at this request, {identity}", "internal_error")

        return AttendedReply(work, request.state.deadline, failure)

    def check_model(self, name: str | None) -> None:
        """Raise ApiError where a request names another model."""
        if name is not None and name != self.name:
            told = f"there is no model {name[:80]!r}; this server has {self.name!r}"
            raise ApiError(404, told, "model_not_found", "model")

    def check_tokens(self, tokens: int, param: str | None = None) -> None:
        """Raise ApiError where a sequence is longer than the model's positions."""
        positions = self.emu.model.config.max_position_embeddings
        if tokens > positions:
            told = f"the request takes {tokens} tokens, and the model has {positions} positions"
            raise too_long(f"{told}; ask for a smaller size or fewer frames, or shorten the prompt", param)

    def check_size(self, size: tuple[int, int] | None, latents: int = 1) -> None:
        """Raise ApiError where a picture or clip of (height, width) alone has more codes than the model has positions."""
        if size is not None:
            factor = self.emu.spatial_factor
            self.check_tokens(latents * (size[0] // factor) * (size[1] // factor), "size")

    async def check_words(self, words: Mapping[str, str | None]) -> None:
        """Raise ApiError where the hook for prompts refuses the words of a parameter."""
        for param, text in words.items():
            if text and self.options.check_prompt is not None:
                await self._hook(self.options.check_prompt, text, param)

    async def check_pictures(self, images: Sequence[Image.Image], param: str | None) -> None:
        """Raise ApiError where the hook for pictures refuses one that was given, or drawn (no parameter)."""
        if self.options.check_image is not None:
            for image in images:
                await self._hook(self.options.check_image, image, param)

    async def _hook(self, hook: Callable[[Any], str | None], value: Any, param: str | None) -> None:
        try:
            reason = await self.in_pixels(hook, value)
        except Exception as error:  # a hook that fails lets nothing pass
            self.log.failed(error, hook=param or "result")
            reason = "it could not be checked"
        if reason:
            what = "the picture that was drawn" if param is None else param
            raise bad_value(f"{what} is refused: {str(reason)[:300]}", param, "content_policy_violation")

    def note(self, request: Request, **told: Any) -> None:
        """Add to the line that the log gets of a request."""
        request.state.log.update({name: value for name, value in told.items() if value is not None})


def chosen_seed(seed: int | None) -> int:
    """The seed that is asked for, else one by chance; every number of JavaScript holds it exactly."""
    return secrets.randbelow(1 << 32) if seed is None else seed


def now() -> int:
    """Seconds since 1970, as replies tell the time."""
    return int(time.time())
