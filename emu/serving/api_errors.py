"""What goes wrong with a request, in the form that clients of OpenAI's interface read."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from emu.generation import RequestTooLarge
from emu.lines import shown

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
"""Status -> type; other ones below 500 are the request's fault, and those above the server's."""
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
PARAMETERS = ("size", "frames", "fps", "seed", "guidance_scale", "negative_prompt", "temperature", "top_k", "top_p")
"""Which the messages of the library begin with."""
LONGEST = 1000
"""Characters of a message: what users wrote may stand in it."""


class ApiError(Exception):
    """A request that is refused or failed.

    Args:
        status: of HTTP.
        message: what was given, what was expected, what to do.
        code: a short name for programs.
        param: the parameter that it is about.
        headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message[:LONGEST], code, param
        self.headers = dict(headers or {})

    def alone(self) -> ApiError:
        """The same error, to be kept or raised again, without the frames that it came through and what they hold."""
        return ApiError(self.status, self.message, self.code, self.param, self.headers)

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        about = {"type": TYPES.get(self.status, usual), "param": self.param, "code": self.code}
        return {"error": {"message": self.message, **about}}


class ClientGone(Exception):
    """Nobody waits for the reply any more."""


def bad_value(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that asks for what cannot be."""
    return ApiError(400, message, code, param)


def too_long(message: str, param: str | None = None) -> ApiError:
    """A request that needs more tokens or memory than there are."""
    return ApiError(400, message, "context_length_exceeded", param)


def error_of(error: Exception, identity: str) -> ApiError | None:
    """What a client is told of an error of the library; None for one that is no user's fault and that nobody foresaw.

    Args:
        error: of preparing, drawing or finishing.
        identity: of the request, which the log has too.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, FloatingPointError):
        return ApiError(
            500, f"the model failed at this request, {identity}: its logits hold NaN or infinity", "nan_logits"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return ApiError(507, "the disk of the server is full; nothing was stored", "disk_full")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        told = "the memory of the server did not hold the request beside the others; try again, or ask for less"
        return ApiError(503, told, "out_of_memory", headers={"Retry-After": "10"})
    if isinstance(error, RequestTooLarge):
        return too_long(str(error))
    if isinstance(error, ValueError | TypeError):
        first = str(error).partition(" ")[0]
        return bad_value(str(error), first if first in PARAMETERS else None)
    return None


def _invalid(error: ValidationError) -> ApiError:
    """The first problem of a body."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"][:6]) or None
    if first["type"] == "extra_forbidden":
        return bad_value(f"unknown parameter {place!r}; leave it out", place, "unknown_parameter")
    if first["type"] == "missing":
        return bad_value(f"{place} is missing; give it", place, "missing_required_parameter")
    if first["type"] == "json_invalid":
        return bad_value(f"the body is not JSON that can be read: {first['msg']}", None, "invalid_json")
    given = shown(first["input"])
    return bad_value(f"{place or 'the body'} is {given}: {first['msg']}", place)
