"""Requests of many kinds through eight slots, against batches that end together, on one CPU thread and random weights.

    python benchmarks/serving.py --repeats 3

64 requests in a random order: grids of 4 x 4, 6 x 6, 8 x 8 and 12 x 12 codes evenly, and a third each of text to image (guided), image to
text (of random length) and the continuation of an image (half of its rows are given). Static batches hold up to eight requests of one task
and size, in order of arrival or, of texts, sorted by length; a batch of texts ends with its longest. The last case draws 64 images of one
size, for which continuous batches have nothing to gain.

The weights are those of setup B of `benchmarks/generation.py`. Contenders run in alternating order; process CPU seconds and wall time are
medians. Rows go to a CSV in results/.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from generation import RESULTS, write_rows
from generation_peers import SETUPS, scaled_vocabulary
from torch import Tensor

from emu.generation import Batcher, Engine, GridRequest, Sampling, TextRequest
from emu.layouts import Emu3Layout
from emu.model import EmuConfig, EmuForCausalLM

SIZES = (4, 6, 8, 12)
TASKS = ("text to image", "image to text", "continuation")
SLOTS = 8
Request = GridRequest | TextRequest


class Letters:
    """Headers of images, in single characters."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return "".join(map(chr, ids))


def engine_of(name: str, deterministic: bool) -> Engine:
    """An engine with random weights."""
    setup, vocabulary = SETUPS[name], scaled_vocabulary(SETUPS[name].divisor)
    torch.manual_seed(0)
    config = EmuConfig(
        vocab_size=vocabulary.size,
        hidden_size=setup.hidden,
        intermediate_size=setup.wide,
        num_hidden_layers=setup.layers,
        num_attention_heads=setup.heads,
        num_key_value_heads=setup.kv_heads,
    )
    return Engine(EmuForCausalLM(config).eval(), Emu3Layout(vocabulary, Letters()), deterministic=deterministic)


class Requests:
    """Makes requests.

    Args:
        layout: the grammar.
        seed: of everything that is random about them.
    """

    def __init__(self, layout: Emu3Layout, seed: int = 0) -> None:
        self.layout, self.draw = layout, random.Random(seed)
        self.numbers = torch.Generator().manual_seed(seed)

    def mixed(self, count: int) -> list[Request]:
        """Every task and size as often as the others, in a random order."""
        kinds = list(itertools.islice(itertools.cycle(itertools.product(TASKS, SIZES)), count))
        self.draw.shuffle(kinds)
        return [self.one(task, side, number) for number, (task, side) in enumerate(kinds)]

    def alike(self, count: int, side: int = 8) -> list[Request]:
        """Images of one size."""
        return [self.one("text to image", side, number) for number in range(count)]

    def one(self, task: str, side: int, seed: int) -> Request:
        """A request with its own words, picture and noise."""
        grid, bos = (side, side), torch.tensor([self.layout.vocabulary.control("bos")])
        words = torch.randint(0, 4000, (self.draw.randint(4, 20),), generator=self.numbers)
        header = torch.tensor(self.layout.header("image", grid))
        first, count = self.layout.vocabulary.range("vision")
        codes = torch.randint(0, count, grid, generator=self.numbers)
        if task == "image to text":
            block = self.layout.block("image", grid).fill(codes)
            ids = torch.cat([bos, header, block, words])
            return TextRequest(ids, Sampling(top_k=50), self.draw.randint(8, 96), seed)
        sampling = Sampling(3.0 if task == "text to image" else 1.0, top_k=512)
        negative = torch.cat([bos, header]) if sampling.guided else None
        given = codes[: side // 2] if task == "continuation" else None
        return GridRequest(torch.cat([bos, words, header]), negative, "image", grid, sampling, seed, prefix_codes=given)


def continuous(engine: Engine, requests: Sequence[Request]) -> list[Tensor]:
    """All through the same slots."""
    batcher = Batcher(engine, slots=SLOTS)
    tickets = [batcher.submit(request) for request in requests]
    batcher.run()
    return [ticket.result() for ticket in tickets]


def static(engine: Engine, requests: Sequence[Request], *, by_length: bool) -> list[Tensor]:
    """Batches of one task and size, each begun when the one before it has ended."""
    found: dict[int, Tensor] = {}
    kinds: dict[object, list[int]] = {}
    for number, request in enumerate(requests):
        is_text = isinstance(request, TextRequest)
        size = kind_of_text(request, engine) if is_text else (request.grid, request.prefix_codes is None)
        kinds.setdefault((is_text, size), []).append(number)
    for numbers in kinds.values():
        if by_length and isinstance(requests[numbers[0]], TextRequest):
            numbers = sorted(numbers, key=lambda number: requests[number].max_new_tokens)
        for start in range(0, len(numbers), SLOTS):
            batch = numbers[start : start + SLOTS]
            for number, outcome in zip(batch, together(engine, [requests[n] for n in batch]), strict=True):
                found[number] = outcome
    return [found[number] for number in range(len(requests))]


def kind_of_text(request: TextRequest, engine: Engine) -> object:
    """The grid of the picture in a prompt."""
    return engine.layout.parse(request.prompt.tolist())[0].codes.shape


def together(engine: Engine, batch: Sequence[Request]) -> list[Tensor]:
    """One call of the engine."""
    first, seeds = batch[0], [request.seed for request in batch]
    if isinstance(first, TextRequest):
        longest = max(request.max_new_tokens for request in batch)
        prompts = [request.prompt for request in batch]
        texts = engine.continue_texts(prompts, first.sampling, max_new_tokens=longest, seed=seeds)
        return [text[: request.max_new_tokens] for text, request in zip(texts, batch, strict=True)]
    negatives = [request.negative for request in batch] if first.sampling.guided else []
    given = None if first.prefix_codes is None else torch.stack([request.prefix_codes for request in batch])
    prompts = [request.prompt for request in batch]
    return list(
        engine.generate_grids(prompts, negatives, "image", first.grid, first.sampling, seed=seeds, prefix_codes=given)
    )


def measure(name: str, calls: dict[str, Callable[[], list[Tensor]]], repeats: int) -> list[dict[str, object]]:
    """One CSV row per contender, timed in turns."""
    outcomes: dict[str, list[Tensor]] = {}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in calls}
    for turn in range(repeats):
        order = list(calls)[:: 1 if turn % 2 else -1]
        for kind in order:
            cpu, wall = time.process_time(), time.perf_counter()
            outcomes[kind] = calls[kind]()
            times[kind].append((time.process_time() - cpu, time.perf_counter() - wall))
            sys.stderr.write(f"{name}, {kind}: {times[kind][-1][0]:.2f} s of the CPU\n")
    own = statistics.median(cpu for cpu, _ in times["continuous"])
    rows: list[dict[str, object]] = []
    for kind, pairs in times.items():
        cpu_times = [cpu for cpu, _ in pairs]
        same = [torch.equal(one, other) for one, other in zip(outcomes[kind], outcomes["continuous"], strict=True)]
        rows.append(
            {
                "case": name,
                "contender": kind,
                "requests": len(same),
                "slots": SLOTS,
                "cpu_s_min": f"{min(cpu_times):.2f}",
                "cpu_s_median": f"{statistics.median(cpu_times):.2f}",
                "cpu_s_max": f"{max(cpu_times):.2f}",
                "wall_s_median": f"{statistics.median(wall for _, wall in pairs):.2f}",
                "continuous_is_faster": f"{statistics.median(cpu_times) / own:.2f}",
                "same_tokens": f"{sum(same)}/{len(same)}",
                "tokens": sum(outcome.numel() for outcome in outcomes[kind]),
            }
        )
    return rows


def main() -> None:
    """Run what is asked for and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=sorted(SETUPS), default="B")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=["mixed", "one size"], default=["mixed", "one size"])
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving_cpu.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = engine_of(options.config, options.deterministic)
    made = Requests(engine.layout)
    machine = {
        "config": options.config,
        "deterministic": options.deterministic,
        "threads": 1,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }
    continuous(engine, made.mixed(len(TASKS)))  # packs the weights
    for case in options.cases:
        requests = made.mixed(options.requests) if case == "mixed" else made.alike(options.requests)
        calls = {
            "continuous": partial(continuous, engine, requests),
            "static, in order of arrival": partial(static, engine, requests, by_length=False),
        }
        if case == "mixed":
            calls["static, sorted by length"] = partial(static, engine, requests, by_length=True)
        write_rows(options.output, measure(case, calls, options.repeats), machine)


if __name__ == "__main__":
    main()
