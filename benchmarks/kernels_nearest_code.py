"""Codebook search against the table of distances.

python benchmarks/kernels_nearest_code.py --device cpu
python benchmarks/kernels_nearest_code.py --device cuda

The floor is the arithmetic at the rate of one large float32 product in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import Contender, Row, measure, report
from torch import Tensor

from emu_kernels import nearest_code


def table(z: Tensor, codebook: Tensor) -> Tensor:
    """As in most public tokenizers."""
    return (z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2.0 * z @ codebook.T).argmin(1)


def floor_step(z: Tensor, codebook: Tensor) -> Callable[[], Any]:
    """One multiply-add per vector, code and feature, at the rate of a square product in float32 in the same run."""
    size = 2048 if z.is_cuda else 256
    left = torch.randn(size, size, device=z.device)
    repeats = max(round(len(z) * codebook.numel() / size**3), 1)
    return lambda: [left @ left for _ in range(repeats)]


def run_case(num_vectors: int, num_codes: int, width: int, arguments: argparse.Namespace) -> list[Row]:
    """One size."""
    generator = torch.Generator(arguments.device).manual_seed(0)
    z = torch.randn(num_vectors, width, generator=generator, device=arguments.device)
    codebook = torch.randn(num_codes, width, generator=generator, device=arguments.device)
    contenders = [
        Contender("emu", lambda: nearest_code(z, codebook)),
        Contender("table", lambda: table(z, codebook)),
        Contender("cdist", lambda: torch.cdist(z, codebook).argmin(1)),
        Contender("arithmetic", floor_step(z, codebook), True, False),
    ]
    if arguments.device == "cuda":
        compiled = torch.compile(table)
        contenders.insert(3, Contender("torch.compile", lambda: compiled(z, codebook)))
    case = f"N={num_vectors} K={num_codes} D={width}"
    return measure("nearest_code", case, contenders, arguments.device, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    sizes = [(65_536, 32_768, 4), (65_536, 32_768, 8), (65_536, 32_768, 256)]
    if arguments.device == "cpu":
        sizes = [(4096, 512, 4), (4096, 8192, 4), (1024, 32_768, 4), (1024, 32_768, 64)]
    rows = [row for size in sizes for row in run_case(*size, arguments)]
    report(rows, f"kernels_nearest_code_{arguments.device}")


if __name__ == "__main__":
    main()
