"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from emu.configuration import import_object
from emu.generation.limits import check_number, check_whole

CheckPrompt = Callable[[str], "str | None"]
"""Takes the words of a request; returns why they are refused, None where they are not."""
CheckImage = Callable[[Image.Image], "str | None"]
"""Takes a picture that was given or drawn; returns why it is refused, None where it is not."""
MIB = 1 << 20


@dataclass(frozen=True)
class ServingOptions:
    """How requests are taken.

    Attributes:
        host: address to listen on; another than this machine's own needs a key.
        port: 0 takes a free one.
        api_keys: any of them opens the server; none leaves it open.
        slots: sequences that are drawn at a time; None lets the memory decide.
        queue: sequences that may wait beside them; more get 429.
        timeout: seconds that a request may take, waiting included.
        memory: bytes that drawing may take, or text such as "8GB"; None for most of what is free.
        max_body: bytes of a request.
        max_pixels: of a picture that is given.
        allow_remote: hosts whose pictures may be fetched.
        check_prompt, check_image: what looks at words and pictures, None for nothing.
        examples: prompts to try, which the page shows.
        log_prompts: whether the log holds what users ask for.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    slots: int | None = None
    queue: int = 64
    timeout: float = 300.0
    memory: int | str | None = None
    max_body: int = 32 * MIB
    max_pixels: int = 16_000_000
    allow_remote: tuple[str, ...] = ()
    check_prompt: CheckPrompt | None = None
    check_image: CheckImage | None = None
    examples: tuple[str, ...] = ()
    log_prompts: bool = False

    def check(self) -> None:
        """Raise TypeError or ValueError where an option is invalid, or strangers could reach the server without a key."""
        if check_whole("port", self.port, least=0) > 65535:
            raise ValueError(f"port is {self.port}; expected a number up to 65535")
        for name in ("queue", "max_body", "max_pixels"):
            check_whole(name, getattr(self, name), least=1)
        if self.slots is not None:
            check_whole("slots", self.slots, least=1)
        check_number("timeout", self.timeout, positive=True)
        for key in self.api_keys:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(
                    "an API key is shorter than 8 characters or holds blanks or others than ASCII; expected a long random word, e.g. of "
                    "python -c 'import secrets; print(secrets.token_urlsafe(24))'"
                )
        for host in self.allow_remote:
            if not host or any(part in host for part in "/@ "):
                raise ValueError(f"allow_remote holds {host!r}; expected the name of a host, e.g. images.example.org")
        if not self.api_keys and not is_own_address(self.host):
            raise ValueError(
                f"host is {self.host} and there is no API key, so anyone on the network could use the model; set EMU_API_KEY or give "
                "--api-key, or listen on 127.0.0.1"
            )


def is_own_address(host: str) -> bool:
    """Whether a host is this machine, as only programs on it can name it."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def load_check(name: str, class_path: str | None) -> Any:
    """The hook that a class path names: a function, or a class, of which one is made.

    Raises:
        ValueError: there is no such object, or it cannot be called.
    """
    if class_path is None:
        return None
    found = import_object(class_path)
    hook = found() if isinstance(found, type) else found
    if not callable(hook):
        raise ValueError(
            f"{name} is {class_path}, which cannot be called; expected a function, or a class with __call__"
        )
    return hook
