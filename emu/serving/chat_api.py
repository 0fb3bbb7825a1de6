"""The route of conversations: text and pictures in, text and pictures out, at once or as they are written."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import JSONResponse, Response
from torch import Tensor

from emu.generation import DocumentTextRequest, GridRequest, TextRequest
from emu.generation.interleaved import next_piece
from emu.media import png_bytes
from emu.pipeline.prepared_texts import PreparedDocument, PreparedTexts
from emu.serving.api_errors import bad_value
from emu.serving.drawn_blocks import as_text, drawn, end_with
from emu.serving.event_stream import Events, within
from emu.serving.request_bodies import read_json
from emu.serving.request_models import ChatBody, Message, MessagePart, size_of_text
from emu.serving.service import Service, chosen_seed, now

TOKENS = 256
"""Of text, where a request does not say."""
MAX_BLOCKS = 4
"""Pictures of an answer."""
Piece = str | Image.Image


@dataclass
class Answer:
    """What was written so far.

    Attributes:
        prompt_tokens, tokens: of the conversation and of the answer.
        reason: why it ended, "stop" or "length".
        emu: how it was made.
        text: all of it.
        pictures: PNG files.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    reason: str = "stop"
    emu: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    pictures: list[bytes] = field(default_factory=list)

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI tells it."""
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}


def chat_api(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        """Answer a conversation."""
        body = await within(request.state.deadline, read_json(request, ChatBody, service.options.max_body))
        service.check_model(body.model)
        body.seed = chosen_seed(body.seed)
        asked = service.log.asked([text for _, text in texts_of(body)])
        service.note(request, seed=body.seed, stream=body.stream, **asked)
        service.admission.check()

        async def work(events: Events) -> Response | None:
            with service.admission.taking():
                return await _answered(service, body, events)

        return service.attended(request, work)

    return router


async def _answered(service: Service, body: ChatBody, events: Events) -> Response | None:
    await service.check_words(dict(texts_of(body)))
    service.check_size(size_of_text(body.size))
    items = await service.in_pixels(read_items, service, body)
    await service.check_pictures([item for item in items if isinstance(item, Image.Image)], "messages")
    answer = Answer(emu={"seed": body.seed, "model": service.model_name})
    about = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": now(), "model": service.name}
    # Closed here and not when it is collected: a client that leaves frees its slot at once.
    async with aclosing(_pieces(service, body, items, answer)) as pieces:
        if body.stream:
            await _stream(body, pieces, answer, about, events)
            return None
        async for piece in pieces:
            add(answer, piece)
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.pictures:
        message["images"] = list(map(picture_part, answer.pictures))
    elif message["content"] is None:
        message["content"] = ""
    choice = {"index": 0, "message": message, "finish_reason": answer.reason, "logprobs": None}
    told = {**about, "object": "chat.completion", "choices": [choice], "usage": answer.usage, "emu": answer.emu}
    return JSONResponse(told)


async def _stream(
    body: ChatBody, pieces: AsyncIterator[str | bytes], answer: Answer, about: dict[str, Any], events: Events
) -> None:
    about = {**about, "object": "chat.completion.chunk"}

    async def send(delta: dict[str, Any], reason: str | None = None, **more: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        await events.send(None, {**about, "choices": [choice], **more})

    is_first = True
    async for piece in pieces:
        add(answer, piece)
        begun = {"role": "assistant"} if is_first else {}
        is_first = False
        shown = {"content": piece} if isinstance(piece, str) else {"images": [picture_part(piece)]}
        await send({**begun, **shown})
    await send({} if not is_first else {"role": "assistant", "content": ""}, answer.reason, emu=answer.emu)
    if body.stream_options is not None and body.stream_options.include_usage:
        await events.send(None, {**about, "choices": [], "usage": answer.usage})
    await events.send(None, "[DONE]")


async def _pieces(
    service: Service, body: ChatBody, items: list[Piece], answer: Answer
) -> AsyncGenerator[str | bytes, None]:
    """The answer as it is written: text, and pictures as PNG files; `answer` is told what it costs and why it ends."""
    wanted = set(body.modalities or ["text"])
    if wanted == {"text"}:
        prepared = await service.in_pixels(prepare_text, service, body, items)
        told_text(prepared, answer)
        async with aclosing(_written(service, prepared, answer)) as texts:
            async for text in texts:
                yield text
    elif wanted == {"image"}:
        yield await _drawn(service, body, items, answer)
    else:
        async for piece in _interleaved(service, body, items, answer):
            yield piece


def prepare_text(service: Service, body: ChatBody, items: list[Piece]) -> PreparedTexts:
    """The prompt of an answer in text."""
    sampling = {name: value for name, value in body.sampling().items() if name in ("temperature", "top_k", "top_p")}
    return service.emu.prepare_texts([items], max_new_tokens=tokens_of(body), seed=body.seed or 0, **sampling)


def told_text(prepared: PreparedTexts, answer: Answer) -> None:
    """Tell how a text is written."""
    sampling = prepared.sampling
    answer.prompt_tokens = len(prepared.prompts[0])
    answer.emu["settings"] = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": sampling.top_p,
        "max_new_tokens": prepared.max_new_tokens,
    }
    answer.emu |= {"warning": prepared.beyond} if prepared.beyond else {}


async def _written(service: Service, prepared: PreparedTexts, answer: Answer) -> AsyncGenerator[str, None]:
    """Text as it grows, cut where what was said stays as it is."""
    (prompt,) = prepared.prompts
    request = TextRequest(prompt, prepared.sampling, prepared.max_new_tokens, prepared.seeds[0])
    grown: asyncio.Queue[Tensor | None] = asyncio.Queue()
    task = asyncio.ensure_future(service.worker.result(request, on_text=grown.put_nowait))
    end_with(task, grown)
    said = ""
    try:
        while (ids := await grown.get()) is not None:
            text = prepared.finish(ids)
            # A character of several tokens is not readable before its last one.
            if grown.empty() and text.startswith(said) and not text.endswith("\ufffd") and len(text) > len(said):
                yield text[len(said) :]
                said = text
        ids = await task
        text = prepared.finish(ids)
        limit = min(prepared.max_new_tokens, service.emu.model.config.max_position_embeddings - len(prompt))
        answer.tokens, answer.reason = len(ids), "stop" if len(ids) < limit else "length"
        service.metrics.tokens.labels("text").inc(len(ids))
        if text[len(said) :]:
            yield text[len(said) :]
    finally:
        task.cancel()


async def _drawn(service: Service, body: ChatBody, items: list[Piece], answer: Answer) -> bytes:
    """One picture after the conversation."""

    def prepare() -> Any:
        return service.emu.prepare_images([items], size=size_of_text(body.size), seed=body.seed or 0, **body.sampling())

    prepared = await service.in_pixels(prepare)
    (block,) = prepared.blocks
    service.check_tokens(block.tokens)
    result = await drawn(service, prepared, block)
    answer.prompt_tokens, answer.tokens = len(block.head), block.tokens - len(block.head)
    answer.emu["settings"] = {name: value for name, value in result.settings.items() if name != "document"}
    answer.emu |= {"warning": prepared.beyond} if prepared.beyond else {}
    return await service.in_pixels(png_bytes, result.image, result.about)


async def _interleaved(
    service: Service, body: ChatBody, items: list[Piece], answer: Answer
) -> AsyncIterator[str | bytes]:
    """Text and pictures in the order that the model chooses: each piece is a request to the batch, which the next one follows."""
    if body.negative_prompt is not None:
        told = 'negative_prompt is for modalities ["image"]; leave it out where text and pictures come in turn'
        raise bad_value(told, "negative_prompt")
    settings = {**body.sampling(), "max_new_tokens": tokens_of(body), "max_blocks": MAX_BLOCKS}
    answer.emu["settings"] = {**settings, "size": size_of_text(body.size)}

    def prepare() -> PreparedDocument:
        return service.emu.prepare_document(items, size=size_of_text(body.size), seed=body.seed or 0, **settings)

    prepared = await service.in_pixels(prepare)
    answer.emu |= {"warning": prepared.beyond} if prepared.beyond else {}
    answer.prompt_tokens = prepared.writer.prompt_length
    work = prepared.writer.work()
    outcome: Tensor | None = None
    while (piece := next_piece(work, outcome)) is not None:
        if isinstance(piece, (GridRequest, DocumentTextRequest)):
            outcome = await service.worker.result(piece)
            answer.tokens += len(outcome.flatten())
            continue
        outcome, value = None, await service.in_pixels(prepared.finish, piece)
        if isinstance(value, str):
            yield value
        elif isinstance(value, Image.Image):
            await service.check_pictures([value], None)
            about = {"prompt": words_of(items), "seed": body.seed, "model": service.model_name}
            yield await service.in_pixels(png_bytes, value, {**about, "settings": answer.emu["settings"]})
        else:
            raise bad_value("the model answered with a clip, which a conversation does not hold; ask /v1/videos")


def read_items(service: Service, body: ChatBody) -> list[Piece]:
    """The items of a conversation, in order.

    Raises:
        ApiError: there are none, or a part is not of its type.
    """
    size, items, cells = size_of_text(body.size), list[Piece](), 0
    for number, message in enumerate(body.messages):
        for place, part in enumerate(parts_of(message)):
            name = f"messages.{number}.content.{place}"
            if part.type == "text" and part.text is not None and part.image_url is None:
                items += [part.text] if part.text else []
            elif part.type == "image_url" and part.image_url is not None and part.text is None:
                items.append(picture := service.pictures.at(part.image_url.url, name, size))
                cells += picture.width * picture.height // service.emu.spatial_factor**2
                service.check_tokens(cells, "messages")  # before the next one: a body may hold thousands
            else:
                raise bad_value(f"{name} is of type {part.type} and does not hold it; give {part.type} alone", name)
    if not items:
        raise bad_value("the messages hold neither words nor pictures; give at least one", "messages")
    return items


def parts_of(message: Message) -> list[MessagePart]:
    """The parts of a message, its pictures last."""
    content = message.content
    parts = [MessagePart(type="text", text=content)] if isinstance(content, str) else list(content or [])
    return parts + list(message.images or [])


def texts_of(body: ChatBody) -> list[tuple[str, str]]:
    """(name, words) of all parts, for hooks and the log."""
    found = [("negative_prompt", body.negative_prompt)] if body.negative_prompt else []
    for number, message in enumerate(body.messages):
        parts = enumerate(parts_of(message))
        found += [(f"messages.{number}.content.{place}", part.text) for place, part in parts if part.text]
    return found


def words_of(items: list[Piece]) -> str:
    """All words of a conversation, as files of its pictures tell them."""
    return " ".join(item for item in items if isinstance(item, str))


def tokens_of(body: ChatBody) -> int:
    """Most tokens of text."""
    return body.max_completion_tokens or body.max_tokens or TOKENS


def add(answer: Answer, piece: str | bytes) -> None:
    """Put a piece into the whole answer."""
    if isinstance(piece, str):
        answer.text += piece
    else:
        answer.pictures.append(piece)


def picture_part(data: bytes) -> dict[str, Any]:
    """A picture of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{as_text(data)}"}}
