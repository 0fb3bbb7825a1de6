"""Attention of the newest tokens to a cache, against torch's attention with a mask and the reading of the keys and values.

python benchmarks/kernels_decode_attention.py --device cpu
python benchmarks/kernels_decode_attention.py --device cuda

Emu3's heads (32 and 8 of 128) on a GPU; rows of unequal length in the last case, which the mask computes to the end of the longest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Contender, Row, measure, report
from kernels_guided_sample import copy_of
from torch import Tensor

from emu_kernels import decode_attention

CASES = (
    ("1 pair, 1 token after 8,192", 1, [8192, 8192]),
    ("1 pair, 16 tokens after 8,192", 16, [8192, 8192]),
    ("8 pairs, 1 token after 4,096", 1, [4096] * 16),
    ("4 rows, 1 token after 8,192 to 64", 1, [8192, 64, 2048, 512]),
)


def masked(q: Tensor, keys: Tensor, values: Tensor, end: Tensor) -> Callable[[], Tensor]:
    """The usual step: a mask over the longest row, made once for all layers."""
    tokens, longest = q.shape[1], int(end.max())
    own = end[:, None] - tokens + torch.arange(tokens, device=q.device)
    mask = (torch.arange(longest, device=q.device) <= own[..., None])[:, None]
    keys, values = keys[:, :, :longest], values[:, :, :longest]
    return lambda: F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=True)


def case(name: str, tokens: int, ends: list[int], arguments: argparse.Namespace) -> list[Row]:
    """One step of one layer."""
    gpu = arguments.device == "cuda"
    heads, key_heads, width = (32, 8, 128) if gpu else (4, 2, 40)
    like = {"device": arguments.device, "dtype": torch.bfloat16 if gpu else torch.float32}
    ends = ends if gpu else [max(end // 32, tokens) for end in ends]
    end = torch.tensor(ends, device=arguments.device)
    q = torch.randn(len(ends), tokens, heads, width, **like)
    keys, values = (torch.randn(len(ends), key_heads, max(ends) + 64, width, **like) for _ in range(2))
    begin = torch.zeros_like(end)
    read = 2 * sum(ends) * key_heads * width * keys.element_size()
    contenders = [
        Contender("emu", lambda: decode_attention(q, keys, values, begin, end)),
        Contender("torch with a mask", masked(q, keys, values, end)),
        Contender("copy of keys and values", copy_of(read, arguments.device), True, False),
    ]
    return measure("decode_attention", name, contenders, arguments.device, arguments.rounds, warm_up=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name, tokens, ends in CASES:
        rows += case(name, tokens, ends, arguments)
        report(rows, f"kernels_decode_attention_{arguments.device}")


if __name__ == "__main__":
    main()
