"""Norm, rotation and gate against the same operations of torch, one by one and compiled.

python benchmarks/kernels_fused.py --device cpu
python benchmarks/kernels_fused.py --device cuda

The floor copies as many bytes as the op must read and write, in one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import Contender, Row, measure, report
from torch import Tensor

from emu_kernels import rms_norm, rotary, rotary_into, swiglu
from emu_kernels.rms_norm.cpu import normalise
from emu_kernels.rotary.cpu import norm_rotary_torch, rotary_into_torch
from emu_kernels.swiglu.cpu import swiglu_torch

EPS = 1e-5


def copied(num_bytes: int, device: str) -> Callable[[], Any]:
    """Read half of the bytes and write half."""
    source, target = (torch.zeros(num_bytes // 2, dtype=torch.int8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def trained(function: Callable[..., Any], inputs: list[Tensor]) -> Callable[[], Any]:
    """Forward and backward."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with torch.no_grad():
        out = function(*inputs)
    grads = [torch.randn_like(x) for x in (out if isinstance(out, tuple) else (out,))]

    def run() -> Any:
        out = function(*inputs)
        return torch.autograd.grad(out, inputs, grads)

    return run


def contenders(
    ours: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor], train: bool, num_bytes: int
) -> list[Contender]:
    """Ours, torch's operations one by one, on a GPU compiled, and the copy."""
    device = inputs[0].device.type
    functions = {"emu": ours, "torch": plain}
    if device == "cuda":
        functions["torch.compile"] = torch.compile(plain)
    if train:
        runs = {name: trained(function, inputs) for name, function in functions.items()}
    else:
        runs = {name: lambda f=function: f(*inputs) for name, function in functions.items()}  # type: ignore[misc]
    found = [Contender(name, run) for name, run in runs.items()]
    return [*found, Contender("copy", copied(num_bytes, device), floor=True, measure_memory=False)]


def training_cases(num_tokens: int, hidden: int, inner: int, width: int, device: str) -> list[tuple]:
    """(op, case, ours, plain, inputs, tensors of the first input's size that a forward and a step move)."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x, residual, weight = random(num_tokens, hidden), random(num_tokens, hidden), random(hidden)
    heads, head_weight = x.view(1, num_tokens, -1, width), random(width)
    cos, sin = random(1, num_tokens, 1, width), random(1, num_tokens, 1, width)
    gate, up = random(num_tokens, inner), random(num_tokens, inner)

    def summed(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return normalise(total, weight, EPS)[0], total

    case = f"{num_tokens} x {hidden}"
    return [
        ("rms_norm", case, lambda x, w: rms_norm(x, w, EPS), lambda x, w: normalise(x, w, EPS)[0], [x, weight], 2, 5),
        ("add + rms_norm", case, lambda x, r, w: rms_norm(x, w, EPS, r), summed, [x, residual, weight], 4, 8),
        (
            "norm + rotary", f"{case}, heads of {width}", lambda x, w: rotary(x, cos, sin, weight=w, eps=EPS),
            lambda x, w: norm_rotary_torch(x, w, cos, sin, EPS)[0], [heads, head_weight], 2, 5,
        ),
        ("swiglu", f"{num_tokens} x {inner}", swiglu, swiglu_torch, [gate, up], 3, 8),
    ]  # fmt: skip


def step_rows(arguments: argparse.Namespace) -> list[Row]:
    """A layer of a step of generation: 8 rows of one token, 32 and 8 heads of 128, into a cache of 1,024 slots."""
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    q, k, v, cos, sin = (torch.randn(8, 1, heads, 128, device=arguments.device).to(dtype) for heads in (32, 8, 8, 1, 1))
    keys, values = (torch.zeros(8, 8, 1024, 128, device=arguments.device, dtype=dtype) for _ in range(2))
    places = (torch.arange(8, device=arguments.device) * 1024 + 500)[:, None]
    weight = torch.ones(128, device=arguments.device, dtype=dtype)
    own = q, k, v, cos, sin, keys, values, places
    runs = [
        Contender("emu", lambda: rotary_into(*own, q_weight=weight, k_weight=weight)),
        Contender("torch", lambda: rotary_into_torch(*own, weight, weight, EPS)),
    ]
    with torch.no_grad():
        return measure("rotary_into", "8 rows, 32 and 8 heads of 128", runs, arguments.device, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=None, help="8192 on a GPU, 2080 on a CPU")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    sizes = (8192, 4096, 14_336, 128) if arguments.device == "cuda" else (2080, 160, 448, 40)
    sizes = (arguments.tokens or sizes[0], *sizes[1:])
    rows = []
    for op, case, ours, plain, inputs, forward, step in training_cases(*sizes, arguments.device):
        size = inputs[0].numel() * inputs[0].element_size()
        for train, moved in ((False, forward), (True, step)):
            name = f"{op}, {case}, {'forward and backward' if train else 'forward'}"
            with torch.set_grad_enabled(train):
                found = contenders(ours, plain, inputs, train, moved * size)
                rows += measure(op, name, found, arguments.device, arguments.rounds, warm_up=2)
    report([*rows, *step_rows(arguments)], f"kernels_fused_{arguments.device}")


if __name__ == "__main__":
    main()
