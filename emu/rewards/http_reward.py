"""A reward that a server gives: candidates go out as JSON in batches, scores come back.

    POST URL    {"candidates": [{"prompt": "a cat", "image": "<PNG in base64>"}, ...]}
    200         {"scores": [0.7, ...]}

A clip is sent as "frames", a list of PNGs, and "fps". A batch that fails is asked for again; what has no answer after that has no score, so
that its group is left out of the step, and the run goes on.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

from PIL import Image

from emu.documents import Video
from emu.media import png_bytes
from emu.rewards.base import Candidate

logger = logging.getLogger(__name__)

MAX_ANSWER = 1 << 24
"""Bytes of the longest answer that is read."""


class HttpReward:
    """Scores of a server.

    Args:
        url: that candidates are posted to, http or https.
        batch_size: candidates of a request.
        timeout: seconds that one request may take, from its first byte to the last one of the answer.
        retries: how often a batch is asked for again; the server's time for breath doubles each time.
        pause: seconds before the first time.
        parallel: requests at a time.
        headers: of every request, e.g. {"Authorization": "Bearer ..."}.

    Raises:
        ValueError: an argument is out of range, or the address is none of HTTP.
    """

    def __init__(
        self,
        url: str,
        batch_size: int = 16,
        timeout: float = 60.0,
        retries: int = 3,
        pause: float = 1.0,
        parallel: int = 2,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"reward.url is {url!r}; expected an address that begins with http:// or https://")
        for name, value, least in (("batch_size", batch_size, 1), ("retries", retries, 0), ("parallel", parallel, 1)):
            if value < least:
                raise ValueError(f"reward.{name} is {value}; expected {least} or more")
        if not 0 < timeout < math.inf or not 0 <= pause < math.inf:
            raise ValueError(
                f"reward.timeout is {timeout} and pause {pause}; expected seconds, a timeout above 0 and a pause of 0 or more"
            )
        self.url, self.batch_size, self.timeout = url, batch_size, timeout
        self.retries, self.pause, self.parallel, self.headers = retries, pause, parallel, dict(headers or {})
        self.num_failed = 0

    def __repr__(self) -> str:
        return f"HttpReward({self.url!r})"  # headers may hold a key

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Scores in the order of the candidates, NaN for those of batches that failed; `num_failed` counts these batches."""
        batches = [candidates[start : start + self.batch_size] for start in range(0, len(candidates), self.batch_size)]
        with ThreadPoolExecutor(self.parallel) as pool:
            found = list(pool.map(self._scores, batches))
        self.num_failed += sum(scores is None for scores in found)
        return [
            value
            for batch, scores in zip(batches, found, strict=True)
            for value in (scores if scores is not None else [math.nan] * len(batch))
        ]

    def _scores(self, batch: Sequence[Candidate]) -> list[float] | None:
        body = json.dumps({"candidates": [described(candidate) for candidate in batch]}).encode()
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return self._read(self._post(body), len(batch))
            except (OSError, ValueError, HTTPException) as error:  # of the network, of time, of the answer
                problem = error
        logger.warning(
            "the reward at %s gave no scores for %d candidates in %d tries (%s); they are left out",
            self.url, len(batch), self.retries + 1, problem,
        )  # fmt: skip
        return None

    def _post(self, body: bytes) -> bytes:
        """The answer.

        Raises:
            OSError: there is none, it is an error, or it takes too long.
            ValueError: it is too long.
        """
        end = time.monotonic() + self.timeout
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json", **self.headers})
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            parts, size = [], 0
            while part := answer.read1(1 << 16):  # what is there: a server that drips must not be waited for
                parts.append(part)
                size += len(part)
                if size > MAX_ANSWER:
                    raise ValueError(f"the answer is longer than {MAX_ANSWER} bytes")
                if time.monotonic() > end:
                    raise TimeoutError(f"the answer took more than {self.timeout:g} s")
        return b"".join(parts)

    def _read(self, answer: bytes, count: int) -> list[float]:
        table = json.loads(answer)
        scores = table.get("scores") if isinstance(table, dict) else None
        if not isinstance(scores, list) or len(scores) != count:
            told = f"{len(scores)} scores" if isinstance(scores, list) else "no list of scores"
            raise ValueError(f"the answer holds {told} for {count} candidates")
        if not all(isinstance(value, int | float) or value is None for value in scores):
            raise ValueError("the answer holds scores that are no numbers")
        return [math.nan if value is None else float(value) for value in scores]


def described(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON.

    Raises:
        TypeError: it is neither a picture nor a clip.
    """
    value = candidate.value
    if isinstance(value, Image.Image):
        return {"prompt": candidate.prompt, "image": _png(value)}
    if isinstance(value, Video):
        return {"prompt": candidate.prompt, "frames": [_png(frame) for frame in value.images()], "fps": value.fps}
    raise TypeError(f"candidates of {candidate.modality} cannot be sent; expected pictures or clips")


def _png(picture: Image.Image) -> str:
    return base64.b64encode(png_bytes(picture)).decode()
