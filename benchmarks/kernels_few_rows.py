"""The products of a layer of few rows, with what is around them, against cuBLAS; and block sizes, timed in recorded passes.

    python benchmarks/kernels_few_rows.py --device cuda
    python benchmarks/kernels_few_rows.py --device cuda --tune
    python benchmarks/kernels_few_rows.py --device cpu --rounds 1         only to see it run

The shapes are those of Emu3 (hidden 4096, 32 and 8 heads of 128, 14,336 features inside). "cuBLAS" is the norm, a product for each weight,
and the gate or the sum, launch by launch; "cuBLAS, joined" one product with the joined weights and nothing else; the floor copies as many
bytes as the weights have. `--tune` changes the blocks of one product of all layers at a time, keeps what is faster, and prints all times.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from generation_gpu import build, filled
from harness import Contender, Row, measure, report, seconds
from kernels_guided_sample import copy_of
from torch import Tensor
from triton.runtime.errors import OutOfResources

from emu.generation.device_passes import decode
from emu.generation.linear import LinearBackend
from emu_kernels import few_rows_linear, rms_norm, swiglu
from emu_kernels.configurations import Config, few_rows

PRODUCTS = {
    "queries, keys, values": ((4096, 1024, 1024), 4096, True, False, False),
    "out": ((4096,), 4096, False, False, True),
    "gate, up": ((14_336, 14_336), 4096, True, True, False),
    "down": ((4096,), 14_336, False, False, True),
}
"""Columns of each weight, features, and whether there is a norm, a gate and a sum."""


def product_case(name: str, num_rows: int, arguments: argparse.Namespace) -> list[Row]:
    """One product of so many rows."""
    columns, width, normed, gated, added = PRODUCTS[name]
    gpu = arguments.device == "cuda"
    if not gpu:
        columns, width = tuple(count // 64 for count in columns), width // 64
    like: dict[str, Any] = {"device": arguments.device, "dtype": torch.bfloat16 if gpu else torch.float32}
    joined, x = torch.randn(sum(columns), width, **like), torch.randn(num_rows, width, **like)
    weights = list(joined.split(columns))
    norm, residual = torch.ones(width, **like), torch.randn(num_rows, columns[0], **like)
    options: dict[str, Any] = {
        "norm_weight": norm if normed else None,
        "gated": gated,
        "residual": residual if added else None,
    }

    def apart() -> Tensor | list[Tensor]:
        normal = rms_norm(x, norm, 1e-5) if normed else x
        parts = [F.linear(normal, weight) for weight in weights]
        return swiglu(*parts) if gated else parts[0] + residual if added else parts

    contenders = [
        Contender("emu", lambda: few_rows_linear(x, weights, **options)),
        Contender("cuBLAS", apart),
        Contender("cuBLAS, joined", lambda: F.linear(x, joined)),
        Contender(
            "copy of the weights", copy_of(joined.numel() * joined.element_size(), arguments.device), True, False
        ),
    ]
    with torch.no_grad():
        rows = measure("few_rows_linear", f"{name}, {num_rows} rows", contenders, arguments.device, arguments.rounds, 2)
    for row in rows[:-1]:
        print(
            f"    {row.contender:20s} {joined.numel() * joined.element_size() / row.median_ms / 1e6:8.0f} GB/s of weights"
        )
    return rows


Kind = tuple[int, int, bool]
"""Columns, features and whether there is a gate: which of the four products it is."""


@contextmanager
def blocks(chosen: dict[Kind, Config], overlap: bool = True, part: int = 0, stages: int = 0) -> Iterator[None]:
    """Passes that are recorded inside take these blocks, and attention of these parts and stages."""
    from emu_kernels import overlap as early
    from emu_kernels.decode_attention import gpu as attention
    from emu_kernels.few_rows_linear import gpu
    from emu_kernels.rotary import gpu_into

    def choose(found: Any, dtype: torch.dtype, columns: int, width: int, gated: bool) -> Config:
        usual = few_rows(found, dtype, columns, width, gated)
        return usual | chosen.get((columns, width, gated), {})

    ahead = early.overlaps if overlap else lambda like: False
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(gpu, "few_rows", choose))
        for module in (attention, gpu_into):
            patches.enter_context(mock.patch.object(module, "overlaps", ahead))
        if part:
            usual_blocks = attention.decode_blocks
            patches.enter_context(mock.patch.object(attention, "PART", part))
            patches.enter_context(
                mock.patch.object(
                    attention, "decode_blocks", lambda *sizes: usual_blocks(*sizes) | {"num_stages": stages}
                )
            )
        yield


def recorded(model: Any, num_rows: int, context: int) -> Callable[[], Any]:
    """A pass of one token of each row."""
    cache, linear = filled(model, num_rows, context, 1), LinearBackend(model)
    ids = torch.zeros(num_rows, 1, dtype=torch.int64, device=model.device)
    places = torch.tensor([[0] * num_rows, [context] * num_rows], device=model.device)
    run = lambda: decode(model, linear, cache, ids, places)  # noqa: E731
    run()
    if model.device.type == "cpu":
        return run
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.kept = run(), cache, ids, places  # type: ignore[attr-defined]
    return graph.replay


def milliseconds(run: Callable[[], Any], arguments: argparse.Namespace) -> float:
    """Median time of a pass."""
    run()
    return 1e3 * statistics.median(seconds(run, arguments.device)[0] for _ in range(arguments.rounds))


CANDIDATES: tuple[Config, ...] = tuple(
    {"BLOCK_COLUMNS": columns, "SLICES": slices, "num_warps": slices, "num_stages": stages}
    for columns, slices, stages in (
        (16, 2, 5),
        (16, 4, 3),
        (16, 4, 4),
        (32, 2, 3),
        (32, 2, 5),
        (32, 2, 8),
        (32, 4, 3),
        (32, 4, 4),
        (32, 4, 5),
    )
)


@torch.no_grad()
def tune(arguments: argparse.Namespace) -> None:
    """Blocks of each product in turn, then the parts of attention, in passes of two rows."""
    model, _ = build(arguments)
    config = model.config
    hidden, inner = config.hidden_size, config.intermediate_size
    joined = hidden + 2 * config.num_key_value_heads * config.head_dim
    kinds = {
        "queries, keys, values": (joined, hidden, False),
        "gate, up": (2 * inner, hidden, True),
        "down": (hidden, inner, False),
        "out": (hidden, hidden, False),
    }
    chosen: dict[Kind, Config] = {}

    def time_of(tried: dict[Kind, Config], *others: Any) -> float:
        try:
            with blocks(tried, *others):
                run = recorded(model, arguments.pairs * 2, arguments.context)
            return milliseconds(run, arguments)
        except OutOfResources:
            return float("inf")

    best = time_of(chosen)
    print(f"{best:8.4f} ms  as it is; {time_of(chosen, False):.4f} ms without an early start", flush=True)
    steps = [((name,), CANDIDATES) for name in kinds]
    for names, choices in steps:
        found = [(chosen | {kinds[n]: chosen.get(kinds[n], {}) | tried for n in names}, tried) for tried in choices]
        ranked = sorted(((time_of(blocks_of), number) for number, (blocks_of, _) in enumerate(found)))
        for spent, number in ranked:
            print(f"{spent:8.4f} ms  {' and '.join(names)}: {found[number][1]}", flush=True)
        least, number = ranked[0]
        if least < best:
            best, chosen = least, found[number][0]
    for part, stages in ((128, 2), (128, 3), (256, 3), (256, 4), (512, 4)):
        print(f"{time_of(chosen, True, part, stages):8.4f} ms  attention: parts of {part}, {stages} stages", flush=True)
    print(f"{best:8.4f} ms  {chosen}; {time_of(chosen, False):.4f} ms without an early start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--tune", action="store_true", help="time block sizes in passes of a model, rather than products"
    )
    parser.add_argument("--layers", type=int, default=8, help="of that model")
    parser.add_argument("--width", type=int, default=4096, help="of that model")
    parser.add_argument("--pairs", type=int, default=1, help="of rows of those passes")
    parser.add_argument("--context", type=int, default=1024, help="tokens ahead of those passes")
    arguments = parser.parse_args()
    if arguments.tune:
        return tune(arguments)
    rows: list[Row] = []
    for name, num_rows in itertools.product(PRODUCTS, (1, 2, 8, 16, 32, 64)):
        rows += product_case(name, num_rows, arguments)
    report(rows, f"kernels_few_rows_{arguments.device}")


if __name__ == "__main__":
    main()
