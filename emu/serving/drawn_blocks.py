"""Blocks of codes through the batch: what was prepared becomes a request of it, and what it draws becomes a result."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu.generation import FillRequest, GridRequest
from emu.pipeline.grid_requests import PreparedBlock
from emu.pipeline.prepared_drawings import PreparedDrawing, PreparedImages, decoded_block
from emu.pipeline.results import ImageResult
from emu.serving.service import Service

Value = TypeVar("Value")
GREY = 128
"""Level of rows that are not drawn yet."""
BEHIND = 4
"""So many finished rows wait to be shown at most; older ones are left out, where pixels take longer than codes."""


def request_of(prepared: PreparedDrawing, block: PreparedBlock) -> GridRequest | FillRequest:
    """The request to the batch for a block."""
    sampling = prepared.drawing.sampling
    prompt, negative = block.head, block.negative if sampling.guided else None
    told: dict[str, Any] = {"sampling": sampling, "seed": block.seed, "stream": block.stream}
    if block.hidden is not None:
        assert block.given is not None
        return FillRequest(prompt, negative, block.modality, block.grid, block.given, block.hidden, **told)
    return GridRequest(prompt, negative, block.modality, block.grid, **told, prefix_codes=block.given)


def tokens_of(service: Service, block: PreparedBlock) -> dict[str, Any]:
    """How long a sequence is, as OpenAI tells it."""
    drawn = len(service.emu.tokenizer.layout.block(block.modality, block.grid))
    given = len(block.head)
    pictures = given if not block.document.is_text else 0
    return {
        "input_tokens": given,
        "output_tokens": drawn,
        "total_tokens": given + drawn,
        "input_tokens_details": {"text_tokens": given - pictures, "image_tokens": pictures},
    }


async def drawn(service: Service, prepared: PreparedDrawing, block: PreparedBlock) -> Any:
    """The result of a block, once hooks have seen it.

    Raises:
        ApiError: a hook refuses it.
        FloatingPointError: the model's logits hold NaN or infinity.
    """
    codes = await service.worker.result(request_of(prepared, block))
    return await finished(service, prepared, block, codes)


async def finished(service: Service, prepared: PreparedDrawing, block: PreparedBlock, codes: Tensor) -> Any:
    """The result of codes; errors as of `drawn`."""
    service.metrics.tokens.labels(block.modality).inc(codes.numel())
    result = await service.in_pixels(prepared.finish, block, codes)
    await service.check_pictures([result.image] if isinstance(result, ImageResult) else result.frames, None)
    return result


async def row_by_row(
    service: Service, prepared: PreparedImages, block: PreparedBlock
) -> AsyncGenerator[tuple[int, Tensor | None, ImageResult | None], None]:
    """A picture as it is drawn: (finished rows, codes so far, None) for each, and at last (all, None, the result).

    Errors as of `drawn`.
    """
    rows: asyncio.Queue[tuple[int, Tensor] | None] = asyncio.Queue()
    request = request_of(prepared, block)
    task = asyncio.ensure_future(
        service.worker.result(request, on_row=lambda number, codes: rows.put_nowait((number, codes)))
    )
    end_with(task, rows)
    begun, lines = time.monotonic(), dict[int, Tensor]()
    try:
        while (row := await rows.get()) is not None:
            if not lines:
                service.metrics.first_seconds.observe(time.monotonic() - begun)
            lines[row[0]] = row[1]
            if rows.qsize() <= BEHIND:
                yield len(lines), torch.stack([lines[number] for number in sorted(lines)]), None
        yield block.grid[0], None, await finished(service, prepared, block, await task)
    finally:
        task.cancel()


def end_with(task: asyncio.Task, queue: asyncio.Queue) -> None:
    """Put None at the end of a queue when a task ends. Its error is looked at here, since the queue's reader may have left by then."""

    def ended(_: asyncio.Task) -> None:
        if not task.cancelled():
            task.exception()
        queue.put_nowait(None)

    task.add_done_callback(ended)


def partial_picture(service: Service, block: PreparedBlock, codes: Tensor) -> Image.Image:
    """A picture of which the first rows (k, w, ...) of codes are drawn, the others grey."""
    missing = block.grid[0] - len(codes)
    # The last row goes on below, so that what is drawn has no edge.
    whole = torch.cat([codes, codes[-1:].expand(missing, *codes.shape[1:])])
    pixels = np.array(decoded_block(service.emu.tokenizer, block, whole))
    pixels[len(codes) * service.emu.spatial_factor :] = GREY
    return Image.fromarray(pixels)


async def together(work: Sequence[Awaitable[Value]]) -> list[Value]:
    """The outcomes of several, in order; when one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def as_text(data: bytes) -> str:
    """Bytes as JSON holds them."""
    return base64.b64encode(data).decode("ascii")
