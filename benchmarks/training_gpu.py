"""A training step on a GPU: forward, backward and AdamW on packed rows, in bf16-mixed, beside transformers' Llama of the same body.

    python benchmarks/training_gpu.py
    python benchmarks/training_gpu.py --device cpu --sizes tiny --rounds 1         only to see it run

Rows hold documents of 200 to 1,800 tokens. The peer gets the same rows without their documents, which is less work for its attention to
know and more to do, and takes its loss from full logits. The floor is the products of matrices alone, 6 operations a weight and token, at
the rate of one large product in the same run; attention is not in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import Contender, Row, measure, report
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from emu.model import EmuConfig, EmuForCausalLM
from emu.training.blocks import compile_blocks


@dataclass(frozen=True)
class Size:
    """A body, its vocabulary, and the rows of a step."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rows: int
    length: int

    @property
    def shape(self) -> dict[str, int]:
        """Arguments of both configurations."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.hidden_size * 11 // 4,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": max(self.num_attention_heads // 4, 1),
            "max_position_embeddings": self.length,
        }


SIZES = {
    "tiny": Size(1000, 64, 2, 4, 2, 64),
    "100m": Size(20_104, 768, 12, 12, 32, 2048),
    "1b": Size(184_622, 2048, 20, 16, 8, 2048),
}


def rows_of(size: Size, device: str) -> tuple[Tensor, Tensor]:
    """Ids and segments, (rows, length) int64 each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size.vocab_size, (size.rows, size.length), generator=generator)
    lengths = torch.randint(200, 1800, (size.rows, -(-size.length // 200)), generator=generator)
    borders = torch.zeros(size.rows, size.length, dtype=torch.int64)
    for row, ends in enumerate(lengths.cumsum(1)):
        borders[row, ends[ends < size.length]] = 1
    return ids.to(device), (borders.cumsum(1) + 1).to(device)


def step_of(model: nn.Module, inputs: dict[str, Tensor], device: str) -> Callable[[], Any]:
    """Forward, backward and update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def floor_of(model: nn.Module, tokens: int, device: str) -> Callable[[], Any]:
    """One square product, as often as a step has operations of matrices."""
    width = 8192 if device == "cuda" else 256
    left = torch.randn(width, width, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    repeats = max(round(6 * weights * tokens / (2 * width**3)), 1)
    return lambda: [left @ left for _ in range(repeats)]


def case(name: str, arguments: argparse.Namespace) -> list[Row]:
    """One size."""
    size, device = SIZES[name], arguments.device
    ids, segments = rows_of(size, device)
    inputs = {"input_ids": ids, "labels": ids}
    with torch.device(device):
        plain, compiled = (EmuForCausalLM(EmuConfig(**size.shape)) for _ in range(2))
        theirs = LlamaForCausalLM(LlamaConfig(**size.shape))
    compile_blocks(compiled)
    own = inputs | {"segment_ids": segments}
    contenders = [
        Contender("emu, compiled blocks", step_of(compiled, own, device)),
        Contender("emu", step_of(plain, own, device)),
        Contender("transformers", step_of(theirs, inputs, device)),
        Contender("products of matrices", floor_of(plain, ids.numel(), device), True, False),
    ]
    return measure("training", f"{name}, {size.rows} rows of {size.length}", contenders, device, arguments.rounds, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=["100m", "1b"])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.sizes:
        rows += case(name, arguments)
        report(rows, f"training_gpu_{arguments.device}")


if __name__ == "__main__":
    main()
