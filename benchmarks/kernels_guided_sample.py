"""Guided sampling against the usual chain: guidance mix, temperature, top-k, softmax, multinomial.

python benchmarks/kernels_guided_sample.py --device cpu
python benchmarks/kernels_guided_sample.py --device cuda

On a GPU one case includes the slice of the output head (32,768 of 184,622 ids at width 4096); its floor is reading that slice
once at the rate of a copy in the same run. The other cases have the copy of their logits as floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import Contender, Row, measure, report
from torch import Tensor

from emu_kernels import guided_sample


def usual_chain(logits: Tensor, scale: float, top_k: int, top_p: float, outside: Tensor | None = None) -> Tensor:
    """What logits processors do: on the slice alone, or on all ids of which those `outside` are taken away."""
    mixed = torch.log_softmax(logits[1].float(), -1)
    mixed = mixed + scale * (torch.log_softmax(logits[0].float(), -1) - mixed)
    mixed = mixed if outside is None else mixed.masked_fill(outside, -torch.inf)
    mixed = mixed.masked_fill(mixed < mixed.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, index = mixed.sort(descending=False)
        drop = ordered.softmax(-1).cumsum(-1) <= 1.0 - top_p
        drop[:, -1:] = False
        mixed = mixed.masked_fill(drop.scatter(1, index, drop), -torch.inf)
    return torch.multinomial(mixed.softmax(-1), 1)[:, 0]


def copy_of(bytes_read: int, device: str) -> Callable[[], Any]:
    """Read and write half of the bytes each, which takes as long as reading all of them."""
    source = torch.empty(max(bytes_read // 8, 1), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def sampler_case(rows: int, candidates: int, top_p: float, arguments: argparse.Namespace) -> list[Row]:
    """The sampler alone."""
    device = arguments.device
    logits = torch.randn(2, rows, candidates, device=device) * 3.0
    key = torch.arange(rows, device=device)
    top_k = candidates // 2 if device == "cpu" else 2048

    def ours() -> Tensor:
        return guided_sample(logits, 3.0, top_k=top_k, top_p=top_p, seed=key, stream=key, position=key)

    contenders = [
        Contender("emu", ours),
        Contender("usual chain", lambda: usual_chain(logits, 3.0, top_k, top_p)),
        Contender("copy", copy_of(logits.nbytes, device), True, False),
    ]
    if device == "cuda" and top_p == 1.0:  # torch 2.11 cannot compile the sort of the other chain
        compiled = torch.compile(usual_chain)
        contenders.insert(2, Contender("torch.compile", lambda: compiled(logits, 3.0, top_k, top_p)))
    case = f"B={rows} K={candidates} top-k {top_k} top-p {top_p}"
    return measure("guided_sample", case, contenders, device, arguments.rounds, warm_up=3)


def head_case(pairs: int, arguments: argparse.Namespace) -> list[Row]:
    """Slice of the head and sampler in one CUDA graph, against the full head and the usual chain."""
    hidden = torch.randn(2 * pairs, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(184_622, 4096, device="cuda", dtype=torch.bfloat16) * 0.02
    part = weight[151_854 : 151_854 + 32_768]
    key = torch.arange(pairs, device="cuda")

    def step() -> Tensor:
        logits = (hidden @ part.T).view(2, pairs, -1)
        return guided_sample(logits, 3.0, top_k=2048, seed=key, stream=key, position=key)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def usual() -> Tensor:
        logits = (hidden @ weight.T).float().view(2, pairs, -1)
        outside = torch.ones(weight.shape[0], dtype=torch.bool, device="cuda")
        outside[151_854 : 151_854 + 32_768] = False
        return usual_chain(logits, 3.0, 2048, 1.0, outside)

    contenders = [
        Contender("emu in a graph", graph.replay, measure_memory=False),
        Contender("emu", step),
        Contender("full head, usual chain", usual),
        Contender("copy of the slice", copy_of(part.nbytes, "cuda"), True, False),
    ]
    return measure("guided_sample", f"head and sampler, {pairs} pairs", contenders, "cuda", arguments.rounds, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--head", action="store_true", help="the case with the head alone, which needs a GPU")
    parser.add_argument("--name", default=None, help="name of the results, kernels_guided_sample_<device>")
    arguments = parser.parse_args()
    name = arguments.name or f"kernels_guided_sample_{arguments.device}"
    rows: list[Row] = []
    for batch in () if arguments.head else (1, 8, 64):
        for top_p in (1.0, 0.9):
            rows += sampler_case(batch, 512 if arguments.device == "cpu" else 32_768, top_p, arguments)
        report(rows, name)
    if arguments.device == "cuda":
        for pairs in (1, 4, 8):
            rows += head_case(pairs, arguments)
        report(rows, name)


if __name__ == "__main__":
    main()
