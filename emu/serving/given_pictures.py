"""Pictures that requests bring: as bytes, as data in the text, or from an address of a host that is allowed."""

from __future__ import annotations

import base64
import binascii
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from emu.data.tokenizing.picture_sizes import Sizing
from emu.pipeline import Emu
from emu.pipeline.masked_pictures import resized_mask
from emu.pipeline.requests import Size
from emu.serving.api_errors import ApiError, bad_value, too_long
from emu_tokenizers.pixels.images import open_image, opened_image

SECONDS = 20
"""That an address may take."""


class GivenPictures:
    """Reads pictures and brings them to a size that the model takes, as `Emu` does with files.

    Args:
        emu: the model.
        max_pixels: of a picture.
        max_bytes: of one that is fetched.
        hosts: from which pictures may be fetched.
    """

    def __init__(self, emu: Emu, max_pixels: int, max_bytes: int, hosts: Sequence[str]) -> None:
        self._emu, self._max_pixels, self._max_bytes, self._hosts = emu, max_pixels, max_bytes, hosts

    def read(self, data: bytes, name: str, size: Size | None = None) -> Image.Image:
        """A picture from the bytes of a file, at (height, width) or the model's own size.

        Raises:
            ApiError, ValueError: it is no picture, too large, or needs more tokens than the model has.
        """
        return self._sized(open_image(data, self._max_pixels, name), name, size)

    def masked(self, data: bytes, mask: bytes, size: Size | None = None) -> tuple[Image.Image, np.ndarray]:
        """A picture, and bool (H, W): True where the mask is transparent and the picture is to be drawn anew.

        Raises:
            ApiError, ValueError: as of `read`, or the mask has no transparency or another size.
        """
        picture = open_image(data, self._max_pixels, "image")
        with opened_image(mask, "mask", self._max_pixels) as opened:
            alpha = np.asarray(opened.convert("RGBA").getchannel("A")) if opened.has_transparency_data else None
        if alpha is None:  # raised outside, where it is not taken for a damaged file
            raise bad_value("mask has no transparency; expected a PNG that is transparent where to draw", "mask")
        if alpha.shape != (picture.height, picture.width):
            told = f"mask is {alpha.shape[1]}x{alpha.shape[0]} pixels and the image {picture.width}x{picture.height}"
            raise bad_value(f"{told}; give a mask of the image's size", "mask")
        white = resized_mask(alpha == 0, lambda grey: self._sized(grey, "mask", size))
        return self._sized(picture, "image", size), white

    def at(self, address: str, name: str, size: Size | None = None) -> Image.Image:
        """The picture at an address: `data:image/...;base64,...`, or one of an allowed host.

        Raises:
            ApiError, ValueError: as of `read`, or the address is refused or does not answer.
        """
        if address[:5].lower() == "data:":
            return self.read(_data(address, name), name, size)
        return self.read(self._fetched(address, name), name, size)

    def _sized(self, image: Image.Image, name: str, size: Size | None) -> Image.Image:
        tokenizer, positions = self._emu.tokenizer, self._emu.model.config.max_position_embeddings
        if tokenizer.resize is not None:
            found = tokenizer.resize(image)
        else:
            found = Sizing(self._emu.spatial_factor, size or self._emu.defaults.size).picture(image)
        cells = found.width * found.height // self._emu.spatial_factor**2
        if cells > positions:
            raise too_long(f"{name} needs {cells} tokens, and the model has {positions}; make it smaller", name)
        return found

    def _fetched(self, address: str, name: str) -> bytes:
        check_address(address, name, self._hosts)
        opener = urllib.request.build_opener(_SameHosts(name, self._hosts))
        try:
            with opener.open(address, timeout=SECONDS) as reply:
                data = _read(reply, self._max_bytes + 1)
        except (URLError, OSError, ValueError, HTTPException) as error:
            raise bad_value(f"{name} could not be fetched: {type(error).__name__}", name) from error
        if len(data) > self._max_bytes:
            raise ApiError(413, f"{name} is longer than {self._max_bytes} bytes", "request_too_large", name)
        return data


class _SameHosts(urllib.request.HTTPRedirectHandler):
    """Follows an address to allowed hosts alone."""

    def __init__(self, name: str, hosts: Sequence[str]) -> None:
        self._name, self._hosts = name, hosts

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Check where the reply leads."""
        check_address(newurl, self._name, self._hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(reply: HTTPResponse, most: int) -> bytes:
    """What a host sends, at most so many bytes and somewhat more; TimeoutError where it sends slowly: others wait for the thread."""
    data, end = bytearray(), time.monotonic() + SECONDS
    while len(data) < most and (part := reply.read1(1 << 16)):
        data += part
        if time.monotonic() > end:
            raise TimeoutError("it sends too slowly")
    return bytes(data)


def check_address(address: str, name: str, hosts: Sequence[str]) -> None:
    """Raise ApiError where an address is not that of a picture on an allowed host."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise bad_value(f"{name} is at an address that cannot be read", name) from None
    named = host if port in (None, 80, 443) else f"{host}:{port}"
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or named.lower() not in map(str.lower, hosts):
        allowed = f"or an address of {', '.join(hosts)}" if hosts else "this server fetches none"
        told = f"{name} is at {named[:80] or address[:20]!r}; expected data:image/png;base64,... ({allowed})"
        raise bad_value(told, name, "remote_not_allowed")


def _data(address: str, name: str) -> bytes:
    head, comma, body = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise bad_value(f"{name} is a data address without base64; expected data:image/png;base64,...", name)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_value(f"{name} is not base64: {error}", name) from error
