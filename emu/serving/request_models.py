"""Bodies of requests: OpenAI's fields, and beside them those of `Emu.generate_images` and its like."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from emu.serving.api_errors import bad_value

PROMPT = 32_000
"""Characters of a prompt, as OpenAI's largest."""
Prompt = Annotated[str, Field(max_length=PROMPT)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Number = Annotated[float, Field(ge=0, le=1000)]
"""Larger ones would leave the range in which logits can be told apart."""
Temperature = Annotated[float, Field(ge=0, le=100)]
SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class SampledBody(BaseModel):
    """What all bodies that draw hold."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)

    model: Annotated[str, Field(max_length=200)] | None = None
    seed: Seed | None = None
    temperature: Temperature | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    user: str | None = None
    safety_identifier: str | None = None

    def sampling(self) -> dict[str, Any]:
        """What is said of how codes are drawn, by the names of `Emu.generate_images`."""
        names = ("temperature", "top_k", "top_p", "guidance_scale", "negative_prompt")
        given = {name: getattr(self, name, None) for name in names}
        return {name: value for name, value in given.items() if value is not None}


class Wishes(BaseModel):
    """What our own page asks for, under "emu"."""

    model_config = ConfigDict(extra="forbid", strict=True)

    every_row: bool = False


class DrawingBody(SampledBody):
    """What bodies hold that ask for pictures or clips."""

    prompt: Prompt
    size: Annotated[str, Field(max_length=20)] | None = None
    guidance_scale: Number | None = None
    negative_prompt: Prompt | None = None


class ImageBody(DrawingBody):
    """Of `images/generations`."""

    n: Annotated[int, Field(ge=1, le=10)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto", "standard"] | None = None
    moderation: Literal["auto", "low"] | None = None
    emu: Wishes = Wishes()

    @property
    def count(self) -> int:
        """Pictures that are asked for."""
        return self.n or 1


class EditBody(ImageBody):
    """Of `images/edits`; pictures and mask come beside it."""

    input_fidelity: Literal["low", "high"] | None = None


class VideoBody(DrawingBody):
    """Of `videos`; the first frame comes beside it."""

    seconds: Annotated[str, Field(max_length=20)] | int | float | None = None
    frames: Annotated[int, Field(ge=1, le=100_000)] | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None


class ImageAddress(BaseModel):
    """Where a picture of a message is."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class MessagePart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    type: Literal["text", "image_url"]
    text: Prompt | None = None
    image_url: ImageAddress | None = None


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Prompt | Annotated[list[MessagePart], Field(max_length=64)] | None = None
    images: Annotated[list[MessagePart], Field(max_length=64)] | None = None


class StreamOptions(BaseModel):
    """What a stream of a conversation holds beside text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class ChatBody(SampledBody):
    """Of `chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    modalities: Annotated[list[Literal["text", "image"]], Field(min_length=1, max_length=2)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    size: Annotated[str, Field(max_length=20)] | None = None
    guidance_scale: Number | None = None
    negative_prompt: Prompt | None = None


def size_of_text(text: str | None) -> tuple[int, int] | None:
    """(height, width) of a size as OpenAI writes it, "WIDTHxHEIGHT"; None for "auto".

    Raises:
        ApiError: it is something else.
    """
    if text is None or text == "auto":
        return None
    found = SIZE.fullmatch(text)
    if found is None:
        raise bad_value(f'size is {text[:40]!r}; expected WIDTHxHEIGHT in pixels, e.g. "64x32", or "auto"', "size")
    return int(found[2]), int(found[1])
