"""Fused head and cross-entropy against the alternatives: forward and backward, time and memory.

python benchmarks/kernels_linear_cross_entropy.py --device cpu
python benchmarks/kernels_linear_cross_entropy.py --device cuda --tokens 8192 --width 4096

The floor is the three matrix products alone. Liger-Kernel and Cut Cross-Entropy join where they can be imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import Contender, Row, measure, report
from torch import Tensor

from emu_kernels import linear_cross_entropy


def eager(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy on the full logits, in float32 as usual for 16-bit models."""
    return torch.nn.functional.cross_entropy((hidden @ weight.T).float(), target)


def train_step(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Forward and backward to both inputs."""
    hidden, weight, target = inputs
    return lambda: torch.autograd.grad(function(hidden, weight, target), (hidden, weight))


def three_products(hidden: Tensor, weight: Tensor, chunk: int = 1024) -> Callable[[], Any]:
    """The products alone, on logits of the size of the vocabulary, in chunks that fit the memory: the best that cuBLAS can do.

    Rows of logits begin at multiples of 512 bytes, since a vocabulary of 184,622 would send it to its slow kernels, and d weight is summed
    in float32, as a gradient of 184,622 x 4096 sums of thousands of tokens has to be.
    """
    chunk = min(chunk, len(hidden))
    hidden, weight = hidden.detach(), weight.detach()
    logits = aligned_rows(chunk, weight)
    d_weight = torch.zeros(weight.shape, device=weight.device)

    def run() -> None:
        for start in range(0, len(hidden), chunk):
            part = hidden[start : start + chunk]
            rows = logits[: len(part)]
            torch.mm(part, weight.T, out=rows)
            torch.mm(rows, weight)
            add_product(d_weight, rows.T, part, first=start == 0)

    return run


def aligned_rows(num_rows: int, weight: Tensor) -> Tensor:
    """Random numbers (num_rows, V) like those of the weight (V, H), each row from an even address."""
    step = 512 // weight.element_size()
    stride = -(-len(weight) // step) * step
    return torch.randn(num_rows, stride, dtype=weight.dtype, device=weight.device)[:, : len(weight)]


def add_product(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """total = left @ right for the first chunk, total += left @ right after it, in float32."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0.0 if first else 1.0, out=total)
    elif first:
        torch.mm(left, right, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


def peers() -> dict[str, Callable[..., Tensor]]:
    """Public libraries that can be imported here, with the gradients of all tokens kept exact."""
    found: dict[str, Callable[..., Tensor]] = {}
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found["liger"] = lambda h, w, t: liger_fused_linear_cross_entropy(h, w, t)
    except ImportError:
        pass
    try:
        from cut_cross_entropy import linear_cross_entropy as cut

        found["cce"] = lambda h, w, t: cut(h, w, t)
        found["cce exact"] = lambda h, w, t: cut(h, w, t, filter_eps=None)
    except ImportError:
        pass
    return found


def cases(arguments: argparse.Namespace) -> list[Row]:
    """Full and slice loss at one size, and the full loss at an aligned vocabulary on a GPU."""
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    rows: list[Row] = []
    sizes = [arguments.vocab] if device == "cpu" else [arguments.vocab, -(-arguments.vocab // 256) * 256]
    for size in sizes:
        generator = torch.Generator(device).manual_seed(0)
        hidden = torch.randn(arguments.tokens, arguments.width, generator=generator, device=device).to(dtype)
        weight = torch.randn(size, arguments.width, generator=generator, device=device).mul_(0.02).to(dtype)
        target = torch.randint(0, size, (arguments.tokens,), generator=generator, device=device)
        inputs = (hidden.requires_grad_(), weight.requires_grad_(), target)
        functions: dict[str, Callable[..., Tensor]] = {"emu": linear_cross_entropy}
        if not arguments.skip_eager:
            functions["eager"] = eager
        if device == "cuda":
            functions |= {} if arguments.skip_eager else {"torch.compile": torch.compile(eager)}
            functions |= peers()
        contenders = [Contender(name, train_step(function, inputs)) for name, function in functions.items()]
        contenders.append(Contender("three products", three_products(hidden, weight), True, False))
        if device == "cuda":  # d weight is then read and written once
            whole = three_products(hidden, weight, arguments.tokens)
            contenders.append(Contender("three products at once", whole, True, False))
        case = f"T={arguments.tokens} H={arguments.width} V={size}"
        rows += measure("linear_cross_entropy", case, contenders, device, arguments.rounds)
        rows += slice_case(arguments, inputs, size)
    return rows


def slice_case(arguments: argparse.Namespace, inputs: tuple[Tensor, ...], size: int) -> list[Row]:
    """The loss over a slice of the vocabulary, against the same slice cut out by hand."""
    first, count = size - size // 5, size // 5
    target = inputs[2] % count + first
    step = train_step(lambda h, w, t: linear_cross_entropy(h, w, t, vocab_range=(first, count)), (*inputs[:2], target))
    floor = three_products(inputs[0], inputs[1][first : first + count])
    contenders = [Contender("emu", step), Contender("three products", floor, True, False)]
    case = f"T={arguments.tokens} H={arguments.width} slice={count}"
    return measure("linear_cross_entropy", case, contenders, arguments.device, arguments.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, default=None, help="8192 on a GPU, 4096 on a CPU")
    parser.add_argument("--width", type=int, default=None, help="4096 on a GPU, 256 on a CPU")
    parser.add_argument("--vocab", type=int, default=184_622)
    parser.add_argument("--dtype", default=None, help="bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--rounds", type=int, default=None, help="20 on a GPU, 3 on a CPU")
    parser.add_argument("--skip-eager", action="store_true", help="for sizes whose full logits do not fit")
    parser.add_argument("--name", default=None, help="name of the results, kernels_linear_cross_entropy_<device>")
    arguments = parser.parse_args()
    gpu = arguments.device == "cuda"
    arguments.tokens = arguments.tokens or (8192 if gpu else 4096)
    arguments.width = arguments.width or (4096 if gpu else 256)
    arguments.dtype = arguments.dtype or ("bfloat16" if gpu else "float32")
    arguments.rounds = arguments.rounds or (20 if gpu else 3)
    report(cases(arguments), arguments.name or f"kernels_linear_cross_entropy_{arguments.device}")


if __name__ == "__main__":
    main()
