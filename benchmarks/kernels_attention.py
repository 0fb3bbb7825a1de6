"""Attention against torch's own: forward and backward, plain causal, packed documents and a sliding window.

python benchmarks/kernels_attention.py --device cpu
python benchmarks/kernels_attention.py --device cuda

The floor is the time of the products that the mask leaves, at the rate of one large matrix product in the same run.
"""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from harness import Contender, Row, measure, report
from torch import Tensor

from emu_kernels import attention, document_bounds
from emu_kernels.attention.op import ENVIRONMENT
from emu_kernels.reference import visible


def train_step(function: Callable[..., Tensor], inputs: list[Tensor], backward: bool) -> Callable[[], Any]:
    """Forward, and backward to all inputs."""
    grad = torch.randn_like(inputs[0])
    if backward:
        return lambda: torch.autograd.grad(function(*inputs), inputs, grad)
    return lambda: function(*(x.detach() for x in inputs))


def forced(backend: str) -> Callable[..., Tensor]:
    """Our op with one backend."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        os.environ[ENVIRONMENT] = backend
        try:
            return attention(q, k, v)
        finally:
            del os.environ[ENVIRONMENT]

    return run


def sdpa_with_mask(mask: Tensor) -> Callable[..., Tensor]:
    """torch's attention with a bool mask (B, 1, S, S), which is what packed rows take without an op of their own."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2)

    return run


def varlen(offsets: Tensor, longest: int) -> Callable[..., Tensor] | None:
    """torch's packed attention where this torch has it, whose arguments have changed from version to version."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = dict(causal)
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
        return varlen_attn(q[0], k[0], v[0], offsets, offsets, longest, longest, **options)[None]

    return run


def flex_with_new_mask(segment_ids: Tensor) -> Callable[..., Tensor]:
    """Flex attention that builds its block mask for every batch, as documents that change at each step require."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled, make_mask = torch.compile(flex_attention), torch.compile(create_block_mask)

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (segment_ids[row, query] == segment_ids[row, key])

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[1]
        mask = make_mask(seen, q.shape[0], None, length, length, device=str(q.device))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)

    return run


def flex_with_window(window: int) -> Callable[..., Tensor]:
    """Causal flex attention with a block mask that is made once."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled, make_mask = torch.compile(flex_attention, dynamic=False), cache(torch.compile(create_block_mask))

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < window)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = make_mask(seen, None, None, q.shape[1], q.shape[1], device=str(q.device))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)

    return run


def floor_step(flops: float, device: str, dtype: torch.dtype) -> Callable[[], Any]:
    """One square product repeated until it has done `flops`."""
    size = 4096 if device == "cuda" else 256
    left = torch.randn(size, size, device=device, dtype=dtype)
    repeats = max(round(flops / (2 * size**3)), 1)
    return lambda: [left @ left for _ in range(repeats)]


def run_case(
    name: str, inputs: list[Tensor], options: dict[str, Any], others: dict[str, Any], arguments: argparse.Namespace
) -> list[Row]:
    """Forward alone and forward with backward of one mask."""
    q = inputs[0]
    torch._dynamo.reset()  # its limit of recompilations is for the whole process
    rows: list[Row] = []
    pairs = sum_of_pairs(q, options)
    for backward in (False, True):
        functions = {"emu": lambda q, k, v: attention(q, k, v, **options)} | others
        contenders = [Contender(n, train_step(f, inputs, backward)) for n, f in functions.items()]
        flops = 4 * pairs * q.shape[2] * q.shape[3] * (3.5 if backward else 1.0)
        contenders.append(Contender("products", floor_step(flops, arguments.device, q.dtype), True, False))
        case = f"{name}, {'forward and backward' if backward else 'forward'}"
        rows += measure("attention", case, contenders, arguments.device, arguments.rounds)
    return rows


def sum_of_pairs(q: Tensor, options: dict[str, Any]) -> float:
    """Number of (query, key) pairs that the mask leaves over all rows."""
    batch, length = q.shape[:2]
    masks = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in options.items()}
    if length <= 4096:
        return float(visible(batch, length, **masks).sum())
    if "cu_seqlens" in masks:
        return float((masks["cu_seqlens"].diff().double() ** 2 / 2).sum())
    window = masks.get("window") or length
    return batch * (length * window - window**2 / 2)


def make_inputs(batch: int, length: int, heads: int, key_heads: int, width: int, like: dict[str, Any]) -> list[Tensor]:
    shapes = [(batch, length, n, width) for n in (heads, key_heads, key_heads)]
    return [torch.randn(shape, **like).requires_grad_() for shape in shapes]


def cpu_cases(arguments: argparse.Namespace) -> list[Row]:
    """The size that a small model trains at on a CPU."""
    inputs = make_inputs(8, 256, 4, 4, 40, {})
    segment_ids = (torch.arange(256) // 83 + 1)[None].repeat(8, 1)
    segment_ids[::2] = (torch.arange(256) // 61 + 1)[None]
    rows: list[Row] = []
    for name, options in (
        ("causal", {}),
        ("documents", {"segment_ids": segment_ids}),
        ("window 64", {"window": 64}),
    ):
        mask = visible(8, 256, **options)[:, None].contiguous()
        others = {"sdpa with mask": sdpa_with_mask(mask)}
        rows += run_case(f"B=8 S=256 H=4 D=40 {name}", inputs, options, others, arguments)
    return rows


def plain_case(length: int, arguments: argparse.Namespace) -> list[Row]:
    """Emu3's heads, 32 and 8 of 128, in causal rows."""
    inputs = make_inputs(1, length, 32, 8, 128, ON_GPU)
    others = {backend: forced(backend) for backend in ("triton", "flash", "cudnn")}
    others |= {"flex": flex_with_window(length)} if length == 8192 else {}
    return run_case(f"S={length} causal", inputs, {}, others, arguments)


def packed_case(length: int, arguments: argparse.Namespace) -> list[Row]:
    """Documents of 200 to 1,848 tokens in one row."""
    inputs = make_inputs(1, length, 32, 8, 128, ON_GPU)
    lengths = torch.randint(200, 2 * 1024 - 200, (length // 512,), generator=torch.Generator().manual_seed(0))
    ends = lengths.cumsum(0)
    offsets = torch.cat([torch.zeros(1), ends[ends < length], torch.tensor([length])]).int().cuda()
    segment_ids = torch.searchsorted(offsets, torch.arange(length, device="cuda").int(), right=True)[None]
    packed = varlen(offsets, int(offsets.diff().max()))
    # As a training step has it: made once for a batch, not by each layer.
    bounds = {"bounds": document_bounds(length, cu_seqlens=offsets)}
    others: dict[str, Any] = {
        "emu, bounds of the batch": lambda q, k, v: attention(q, k, v, cu_seqlens=offsets, **bounds)
    }
    others |= {"varlen_attn": packed} if packed is not None else {}
    others |= {"flex, new mask": flex_with_new_mask(segment_ids)} if length == 8192 else {}
    return run_case(f"S={length} documents", inputs, {"cu_seqlens": offsets}, others, arguments)


def window_case(arguments: argparse.Namespace) -> list[Row]:
    """A long row of which each query sees 4,096 keys."""
    inputs = make_inputs(1, 131_072, 32, 8, 128, ON_GPU)
    return run_case("S=131072 window 4096", inputs, {"window": 4096}, {"flex": flex_with_window(4096)}, arguments)


ON_GPU = {"device": "cuda", "dtype": torch.bfloat16}
GPU_CASES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "causal": partial(plain_case, 8192),
    "short": partial(plain_case, 2048),
    "long": partial(plain_case, 32_768),
    "documents": partial(packed_case, 8192),
    "long-documents": partial(packed_case, 131_072),
    "window": window_case,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument(
        "--cases", nargs="+", choices=list(GPU_CASES), default=list(GPU_CASES), help="on a GPU; all by default"
    )
    parser.add_argument("--name", default=None, help="name of the results, kernels_attention_<device>")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for case in [cpu_cases] if arguments.device == "cpu" else [GPU_CASES[name] for name in arguments.cases]:
        rows += case(arguments)
        report(rows, arguments.name or f"kernels_attention_{arguments.device}")


if __name__ == "__main__":
    main()
