"""Bodies as they arrive: JSON and forms, no larger than allowed, kept in memory."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from emu.serving.api_errors import ApiError, ClientGone, bad_value

Body = TypeVar("Body", bound=BaseModel)
MAX_FIELDS = 64
OWN_FIELD = "emu"
"""What is not OpenAI's stands in a table of this name; in a form it may be JSON."""
_BRACKETS = re.compile(r"(\w+)\[(\w*)\]")


async def read_bytes(request: Request, most: int) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413, it is longer than `most`.
        ClientGone: it never came to its end.
    """
    parts, length = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > most:
            raise ApiError(413, f"the body is longer than {most} bytes; send smaller pictures", "request_too_large")
        if not message.get("more_body"):
            return b"".join(parts)


async def read_json(request: Request, model: type[Body], most: int) -> Body:
    """A JSON body.

    Raises:
        ApiError: it is of another type or too large.
        pydantic.ValidationError: it is not of this form.
    """
    check_content_type(request.headers, "application/json")
    return model.model_validate_json(await read_bytes(request, most))


async def read_form(request: Request, model: type[Body], most: int) -> tuple[Body, dict[str, list[bytes]]]:
    """A form's fields, and its files by name; JSON does for a form without files.

    Raises:
        ApiError: it is of another type, too large or cut.
        pydantic.ValidationError: its fields are not of this form.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        return await read_json(request, model, most), {}
    check_content_type(request.headers, "multipart/form-data")
    data = await read_bytes(request, most)
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    try:
        form = await InMemoryForm(request.headers, _once(data)).parse()
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            else:
                _put(fields, name, value)
    except ApiError:
        raise
    # What the parser makes of a stranger's bytes: wrong boundaries, character sets that are none, names that are no text.
    except (MultiPartException, ValueError, LookupError, KeyError, AssertionError) as error:
        raise bad_value(f"the form cannot be read: {str(error)[:200]}", None, "invalid_form") from error
    return model.model_validate(fields, strict=False), files


class InMemoryForm(MultiPartParser):
    """Reads a form without files on a disk, which could be full."""

    spool_max_size = 1 << 40

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None]) -> None:
        # The whole body has a limit of its own.
        super().__init__(headers, stream, max_files=MAX_FIELDS, max_fields=MAX_FIELDS, max_part_size=1 << 40)


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data


def _put(fields: dict[str, Any], name: str, value: str) -> None:
    """Set a field; `emu[every_row]` is how clients write a table, and a table may be JSON."""
    inner = _BRACKETS.fullmatch(name)
    if inner is not None and inner[2]:
        table = fields.setdefault(inner[1], {})
        if not isinstance(table, dict):
            raise bad_value(f"{inner[1]} is given as text and as a table; give one of them", inner[1])
        table[inner[2]] = value
        return
    if name in fields:
        raise bad_value(f"{name[:40]!r} is given twice; give it once", name[:40])
    if name == OWN_FIELD:
        try:
            fields[name] = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise bad_value(f"{name} is not JSON", name) from error
        return
    fields[name] = value


def check_content_type(headers: Mapping[str, str], expected: str) -> None:
    """Raise ApiError where a body is of another type.

    Pages of other origins cannot send JSON without asking first, which this server never allows.
    """
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != expected:
        raise ApiError(415, f"the body is {given[:60]!r}; expected {expected}", "unsupported_media_type")
