"""Many clients at once against `emu serve digits`: no reply is lost or mixed up, memory does not grow, and how long they wait.

    python benchmarks/serving_clients.py --minutes 10        # 32 streaming clients, every tenth picture given up half-way

Each client asks for a picture of one of 40 pairs of prompt and seed, reads its rows as they come, and compares the last one with the bytes
that `Emu.generate_images` gives for the pair. Figures go to results/serving_clients.json.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from emu import Emu
from emu.media import png_bytes

RESULTS = Path(__file__).parent / "results" / "serving_clients.json"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ASKED = [(f"a handwritten {number}", seed) for number in NUMBERS for seed in range(4)]
GIVEN_UP = 0.1


@dataclass
class Figures:
    """What was seen.

    Attributes:
        begun: when, by `time.monotonic`.
        whole, first: seconds from asking to the whole picture, and to its first row.
        mixed, failed, given_up: replies with other bytes than expected, replies that were none, and those that were left.
        memory: (seconds, MiB) of the server.
    """

    begun: float = field(default_factory=time.monotonic)
    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    mixed: int = 0
    failed: int = 0
    given_up: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)


@contextmanager
def served(*words: str) -> Iterator[tuple[int, str]]:
    """The process number and the address of a server."""
    command = [sys.executable, "-m", "emu", "serve", "digits", "--port", "0", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = json.loads(process.stderr.readline())["address"]
        # Its log is read away, so that it never waits for a reader.
        with subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL):
            yield process.pid, address
            process.terminate()
        assert process.wait() == 143, "the server did not end in order"


async def ask(
    client: httpx.AsyncClient, expected: dict[tuple[str, int], bytes], draw: random.Random, seen: Figures
) -> None:
    """Ask for one picture."""
    prompt, seed = draw.choice(list(expected))
    body = {"prompt": prompt, "seed": seed, "stream": True, "emu": {"every_row": True}}
    leaves, begun = draw.random() < GIVEN_UP, time.monotonic()
    rows, last = 0, b""
    async with client.stream("POST", "/v1/images/generations", json=body) as reply:
        if reply.status_code != 200:
            seen.failed += 1
            return
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            rows += 1
            if rows == 1:
                seen.first.append(time.monotonic() - begun)
            if leaves and rows == 2:
                seen.given_up += 1
                return
            if event.get("type") == "image_generation.completed":
                last = base64.b64decode(event["b64_json"])
    seen.whole.append(time.monotonic() - begun)
    seen.failed += not last
    seen.mixed += bool(last) and last != expected[prompt, seed]


async def crowd(
    address: str, process: int, clients: int, seconds: float, expected: dict[tuple[str, int], bytes]
) -> Figures:
    """What N clients see in some time, each asking again as soon as it has its picture."""
    seen = Figures()

    async def client(number: int) -> None:
        draw = random.Random(number)
        async with httpx.AsyncClient(base_url=address, timeout=120, trust_env=False) as connection:
            while time.monotonic() - seen.begun < seconds:
                await ask(connection, expected, draw, seen)

    async def watch() -> None:
        while time.monotonic() - seen.begun < seconds:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            seen.memory.append((time.monotonic() - seen.begun, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *map(client, range(clients)))
    return seen


def growth(memory: list[tuple[float, float]], after: float) -> float:
    """Percent by which memory grows from a time to the end, along the straight line that fits best."""
    times, sizes = zip(*[(at, size) for at, size in memory if at >= after], strict=True)
    slope, start = statistics.linear_regression(times, sizes)
    return 100 * slope * (times[-1] - times[0]) / (start + slope * times[0])


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in seconds."""
    hundredths = statistics.quantiles(seconds, n=100)
    return {"p50": round(hundredths[49], 3), "p99": round(hundredths[98], 3)}


def main() -> None:
    """Run it and write the figures."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float, default=10.0)
    words.add_argument("--clients", type=int, default=32)
    words.add_argument("--slots", type=int, default=8)
    given = words.parse_args()
    emu = Emu.from_pretrained("digits", device="cpu", deterministic=True)
    results = [emu.generate_images(prompt, seed=seed)[0] for prompt, seed in ASKED]
    expected = {asked: png_bytes(result.image, result.about) for asked, result in zip(ASKED, results, strict=True)}
    with served("--slots", str(given.slots)) as (process, address):
        seen = asyncio.run(crowd(address, process, given.clients, 60 * given.minutes, expected))
        counters = httpx.get(f"{address}/metrics", trust_env=False).text.splitlines()
    inside = next(line for line in counters if line.startswith("emu_sequences_inside ")).split()[1]
    figures: dict[str, Any] = {
        "clients": given.clients,
        "slots": given.slots,
        "minutes": given.minutes,
        "pictures": len(seen.whole),
        "given_up": seen.given_up,
        "failed": seen.failed,
        "mixed_up": seen.mixed,
        "left_inside": float(inside),
        "seconds_to_first_row": percentiles(seen.first),
        "seconds_to_picture": percentiles(seen.whole),
        "memory_mib": round(seen.memory[-1][1]),
        "memory_growth_percent": round(growth(seen.memory, min(120.0, 20 * given.minutes)), 2),
    }
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    assert not seen.failed and not seen.mixed and figures["left_inside"] == 0


if __name__ == "__main__":
    main()
