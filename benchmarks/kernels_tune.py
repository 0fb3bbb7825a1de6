"""Block sizes of the Triton kernels, timed against those that the library uses.

python benchmarks/kernels_tune.py --device cuda
python benchmarks/kernels_tune.py --device cuda --kernels forward chunks search
TRITON_INTERPRET=1 python benchmarks/kernels_tune.py --device cpu --length 64 --vocab 512 --width 32 --rounds 1     only to see it run

Prints a table per kernel, the fastest first; the library's own choice is marked. What the script finds goes into
`emu_kernels/configurations.py` by hand.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from harness import seconds
from triton.runtime.errors import OutOfResources

from emu_kernels.attention.gpu import attention_triton
from emu_kernels.attention.gpu_backward import attention_backward_triton
from emu_kernels.configurations import Config, attention_backward, attention_forward, configuration, loss
from emu_kernels.linear_cross_entropy.gpu import SCRATCH_BYTES, forward_triton, loss_scratch
from emu_kernels.nearest_code.gpu import nearest_code_config, nearest_code_triton


def variants(base: Config, rows: str | None = None, **choices: tuple[int, ...]) -> Iterator[Config]:
    """`base`, then every combination of the choices; with a warp for every 16 of the block's `rows`, as the tensor cores like it."""
    yield base
    for values in itertools.product(*choices.values()):
        found = base | dict(zip(choices, values, strict=True))
        if rows is not None:
            found["num_warps"] = max(found[rows] // 16, 4)
        if found != base:
            yield found


def compare(name: str, runs: list[tuple[Config, Callable[[], Any]]], device: str, rounds: int) -> None:
    """Time all runs in alternating order and print their medians; the first run is the library's choice."""
    fitting = []
    for config, run in runs:
        try:
            run()
            fitting.append((config, run))
        except OutOfResources as error:
            print(f"{name:24s} does not fit: {config}: {error}")
    times: list[list[float]] = [[] for _ in fitting]
    for number in range(rounds):
        for place in range(len(fitting)):
            chosen = (place + number) % len(fitting)
            times[chosen].append(1e3 * seconds(fitting[chosen][1], device)[0])
    ranked = sorted((statistics.median(found), place) for place, found in enumerate(times))
    for median, place in ranked:
        mark = "*" if fitting[place][0] is runs[0][0] else " "
        print(f"{name:24s} {mark} {median:10.4f} ms  {fitting[place][0]}")


class Attention:
    """Causal rows with 32 heads of queries and 8 of keys, whole or packed with eight documents."""

    def __init__(self, arguments: argparse.Namespace, packed: bool) -> None:
        self.device, self.rounds = arguments.device, arguments.rounds
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float16
        heads, key_heads = (32, 8) if self.device == "cuda" else (2, 1)
        shapes = [(1, arguments.length, n, arguments.head_width) for n in (heads, key_heads, key_heads, heads)]
        *self.inputs, self.grad = (torch.randn(shape, device=self.device).to(dtype) for shape in shapes)
        ids = torch.arange(arguments.length, device=self.device) // max(arguments.length // 8, 1) + 1
        self.options = (ids[None] if packed else None, None, True, 0, 0.0, arguments.head_width**-0.5)
        self.kind = "packed " if packed else ""
        where = self.inputs[0].device, dtype, arguments.head_width
        self.chosen = configuration(attention_forward, *where)
        self.key, self.query = configuration(attention_backward, *where)
        self.choices = {"BLOCK_QUERIES": (64, 128), "BLOCK_KEYS": (64, 128), "num_stages": (2, 3)}

    def forward(self) -> None:
        """The forward alone."""

        def run(config: Config) -> Callable[[], Any]:
            return lambda: attention_triton(*self.inputs, *self.options, config=config)

        runs = [(found, run(found)) for found in variants(self.chosen, "BLOCK_QUERIES", **self.choices)]
        compare(f"{self.kind}forward", runs, self.device, self.rounds)

    def backward(self) -> None:
        """The kernels of keys and values, and of queries."""
        results = attention_triton(*self.inputs, *self.options)

        def run(key: Config, query: Config) -> Callable[[], Any]:
            configs = key, query
            return lambda: attention_backward_triton(self.grad, *self.inputs, *results, *self.options, configs=configs)

        choices = self.choices | {"BLOCK_QUERIES": (32, 64)}
        runs = [(found, run(found, self.query)) for found in variants(self.key, "BLOCK_KEYS", **choices)]
        compare(f"{self.kind}backward, keys", runs, self.device, self.rounds)
        runs = [(found, run(self.key, found)) for found in variants(self.query, "BLOCK_QUERIES", **self.choices)]
        compare(f"{self.kind}backward, queries", runs, self.device, self.rounds)


class Loss:
    """The head of a large vocabulary and its loss."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device, self.rounds = arguments.device, arguments.rounds
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float16
        self.hidden = torch.randn(arguments.length, arguments.width, device=self.device).to(dtype)
        self.weight = torch.randn(arguments.vocab, arguments.width, device=self.device).mul_(0.02).to(dtype)
        self.target = torch.randint(0, arguments.vocab, (arguments.length,), device=self.device)
        self.chosen = configuration(loss, self.hidden.device)

    def run(self, config: Config, gradients: bool, scratch_bytes: int | None = None) -> Callable[[], Any]:
        """One call."""
        inputs = self.hidden, self.weight, self.target, None, 0, len(self.weight), None, 0.0, -100
        last = torch.zeros((), device=self.device), "mean", False, gradients, gradients
        return lambda: forward_triton(*inputs, *last, config=config, scratch_bytes=scratch_bytes)

    def blocks(self) -> None:
        """The loss alone."""
        choices = {"BLOCK_IDS": (128, 256), "num_stages": (3, 4), "GROUP_ROWS": (4, 8, 16)}
        runs = [(config, self.run(config, False)) for config in variants(self.chosen, **choices)]
        compare("loss", runs, self.device, self.rounds)

    def chunks(self) -> None:
        """With gradients over several sizes of the buffer: a larger one reads and writes d weight less often."""
        sizes = [loss_scratch(self.weight, True), SCRATCH_BYTES, *(size * 2**20 for size in (256, 640, 1088, 1536))]
        runs = [({"scratch_bytes": size}, self.run(self.chosen, True, size)) for size in sizes]
        compare("loss and gradients", runs, self.device, self.rounds)


def search_variants(chosen: Config) -> Iterator[Config]:
    """Vectors and codes of a block, warps and stages."""
    yield chosen
    for vectors, codes, warps, stages in (
        (64, 128, 4, 3),
        (128, 128, 8, 3),
        (128, 128, 8, 4),
        (128, 64, 8, 4),
        (256, 64, 8, 3),
    ):
        found = {"BLOCK_VECTORS": vectors, "BLOCK_CODES": codes, "num_warps": warps, "num_stages": stages}
        if chosen | found != chosen:
            yield chosen | found


def search_runs(arguments: argparse.Namespace) -> None:
    """Vectors of 4 and of 8 features among 32,768 codes."""
    vectors, codes = (65_536, 32_768) if arguments.device == "cuda" else (128, 300)
    for width in (4, 8):
        z, codebook = (torch.randn(n, width, device=arguments.device) for n in (vectors, codes))
        chosen = nearest_code_config(width)
        runs = [(found, partial(nearest_code_triton, z, codebook, found)) for found in search_variants(chosen)]
        compare(f"search, {width} features", runs, arguments.device, arguments.rounds)


KERNELS: dict[str, Callable[[argparse.Namespace], None]] = {
    "forward": lambda arguments: Attention(arguments, False).forward(),
    "backward": lambda arguments: Attention(arguments, False).backward(),
    "packed-forward": lambda arguments: Attention(arguments, True).forward(),
    "packed-backward": lambda arguments: Attention(arguments, True).backward(),
    "loss": lambda arguments: Loss(arguments).blocks(),
    "chunks": lambda arguments: Loss(arguments).chunks(),
    "search": search_runs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--length", type=int, default=8192, help="positions of a row, and tokens of the loss")
    parser.add_argument("--head-width", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=184_622)
    parser.add_argument("--width", type=int, default=4096, help="features of the head")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS), default=list(KERNELS), help="all by default")
    arguments = parser.parse_args()
    for name in arguments.kernels:
        KERNELS[name](arguments)


if __name__ == "__main__":
    main()
