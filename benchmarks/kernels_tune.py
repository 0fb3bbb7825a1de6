"""Block sizes of the Triton kernels, timed against those that the library uses.

python benchmarks/kernels_tune.py --device cuda
TRITON_INTERPRET=1 python benchmarks/kernels_tune.py --device cpu --length 64 --vocab 512 --width 32 --rounds 1     only to see it run

Prints a table per kernel, the fastest first; the library's own choice is marked. What the script finds goes into
`emu_kernels/configurations.py` by hand.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from harness import seconds
from triton.runtime.errors import OutOfResources

from emu_kernels.attention.gpu import attention_triton
from emu_kernels.attention.gpu_backward import attention_backward_triton
from emu_kernels.configurations import Config, attention_backward, attention_forward, configuration, loss
from emu_kernels.linear_cross_entropy.gpu import SCRATCH_BYTES, forward_triton


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


def attention_runs(arguments: argparse.Namespace, packed: bool) -> None:
    """Forward, keys and values, queries: causal rows with 32 heads of queries and 8 of keys."""
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float16
    heads, key_heads = (32, 8) if arguments.device == "cuda" else (2, 1)
    shapes = [(1, arguments.length, number, arguments.head_width) for number in (heads, key_heads, key_heads, heads)]
    q, k, v, grad = (torch.randn(shape, device=arguments.device).to(dtype) for shape in shapes)
    ids = torch.arange(arguments.length, device=arguments.device) // max(arguments.length // 8, 1) + 1
    options = (ids[None] if packed else None, None, True, 0, 0.0, arguments.head_width**-0.5)
    out, lse = attention_triton(q, k, v, *options)
    kind = "packed " if packed else ""
    choices = {"BLOCK_QUERIES": (64, 128), "BLOCK_KEYS": (64, 128), "num_stages": (2, 3)}
    chosen = configuration(attention_forward, q.device, dtype, arguments.head_width)
    key, query = configuration(attention_backward, q.device, dtype, arguments.head_width)

    def forward(config: Config) -> Callable[[], Any]:
        return lambda: attention_triton(q, k, v, *options, config=config)

    def backward(key: Config, query: Config) -> Callable[[], Any]:
        return lambda: attention_backward_triton(grad, q, k, v, out, lse, *options, configs=(key, query))

    runs = [(found, forward(found)) for found in variants(chosen, "BLOCK_QUERIES", **choices)]
    compare(f"{kind}forward", runs, arguments.device, arguments.rounds)
    runs = [
        (found, backward(found, query))
        for found in variants(key, "BLOCK_KEYS", **choices | {"BLOCK_QUERIES": (32, 64)})
    ]
    compare(f"{kind}backward, keys", runs, arguments.device, arguments.rounds)
    runs = [(found, backward(key, found)) for found in variants(query, "BLOCK_QUERIES", **choices)]
    compare(f"{kind}backward, queries", runs, arguments.device, arguments.rounds)


def loss_runs(arguments: argparse.Namespace) -> None:
    """The loss alone, then with gradients over several sizes of the buffer."""
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float16
    hidden = torch.randn(arguments.length, arguments.width, device=arguments.device).to(dtype)
    weight = torch.randn(arguments.vocab, arguments.width, device=arguments.device).mul_(0.02).to(dtype)
    target = torch.randint(0, arguments.vocab, (arguments.length,), device=arguments.device)
    options = (target, None, 0, arguments.vocab, None, 0.0, -100, 0.0, "mean", False)

    def run(config: Config, gradients: bool, scratch_bytes: int = SCRATCH_BYTES) -> Callable[[], Any]:
        wanted = gradients, gradients
        return lambda: forward_triton(hidden, weight, *options, *wanted, config=config, scratch_bytes=scratch_bytes)

    chosen = configuration(loss, hidden.device)
    choices = {"BLOCK_IDS": (128, 256), "num_stages": (3, 4), "GROUP_ROWS": (4, 8, 16)}
    runs = [(config, run(config, False)) for config in variants(chosen, **choices)]
    compare("loss", runs, arguments.device, arguments.rounds)
    sizes = [SCRATCH_BYTES, *(size * 2**20 for size in (128, 256, 896, 1536))]
    runs = [({"scratch_bytes": size}, run(chosen, True, size)) for size in sizes]
    compare("loss and gradients", runs, arguments.device, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--length", type=int, default=8192, help="positions of a row, and tokens of the loss")
    parser.add_argument("--head-width", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=184_622)
    parser.add_argument("--width", type=int, default=4096, help="features of the head")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    for packed in (False, True):
        attention_runs(arguments, packed)
    loss_runs(arguments)


if __name__ == "__main__":
    main()
