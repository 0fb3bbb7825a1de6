"""A pass of generation on a GPU: recorded in a CUDA graph, started kernel by kernel, and the reading of what it cannot do without.

    python benchmarks/generation_gpu.py
    python benchmarks/generation_gpu.py --device cpu --layers 2 --width 64 --rounds 1 --grid 4        only to see it run

The body is that of Emu3 (32 layers of 4096, arXiv 2409.18869, table 2) with random weights in bfloat16; a pair is a prompt and what it is
guided against. The last case draws whole pictures with the engine: guidance 3, top-k 2048, the head's slice of 32,768 codes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from generation_peers import make_prompts
from harness import Contender, Row, measure, report
from kernels_guided_sample import copy_of
from torch import Tensor

from emu.generation import Engine, device_passes
from emu.generation.device_passes import RecordedPasses
from emu.generation.linear import LinearBackend
from emu.layouts import Emu3Layout
from emu.model import EmuConfig, EmuForCausalLM, StaticCache
from emu.vocabulary import Vocabulary


def build(arguments: argparse.Namespace) -> tuple[EmuForCausalLM, Vocabulary]:
    """Emu3's body and vocabulary, or a smaller one of the same form."""
    width = arguments.width
    vocabulary = Vocabulary.build(151_643 * width // 4096, {"vision": 32_768 * width // 4096})
    config = EmuConfig(
        vocab_size=vocabulary.size, hidden_size=width, intermediate_size=width * 7 // 2, num_hidden_layers=arguments.layers,
        num_attention_heads=max(width // 128, 1), num_key_value_heads=max(width // 512, 1), max_position_embeddings=9216,
    )  # fmt: skip
    like = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if arguments.device == "cuda" else torch.float32)
    with torch.device(arguments.device):
        model = EmuForCausalLM(config).eval()
    torch.set_default_dtype(like)
    return model, vocabulary


def filled(model: EmuForCausalLM, rows: int, context: int, room: int) -> StaticCache:
    """A cache that holds noise."""
    cache = StaticCache(model.config, rows, context + room, dtype=model.dtype, device=model.device)
    for part in cache.memory:
        part.normal_()
    cache.end_at([context] * rows)
    return cache


def pass_case(model: EmuForCausalLM, pairs: int, tokens: int, context: int, arguments: argparse.Namespace) -> list[Row]:
    """One pass over pairs of rows."""
    linear, rows = LinearBackend(model), 2 * pairs
    cache = filled(model, rows, context, tokens)
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device=model.device)
    recorded, others = RecordedPasses(model, linear, cache), RecordedPasses(model, linear, cache)
    fused = device_passes.fuses(model, linear, ids.numel())

    def run(function: Callable[[], Tensor]) -> Callable[[], Any]:
        def once() -> None:
            cache.end_at([context] * rows)
            function()

        return once

    def other_way() -> Tensor:
        with mock.patch.object(device_passes, "fuses", lambda *_: not fused):
            return others.run(ids)

    read = sum(p.numel() * p.element_size() for p in model.model.layers.parameters())
    held = 2 * rows * context * model.config.num_key_value_heads * model.config.head_dim  # type: ignore[operator]
    read += held * model.config.num_hidden_layers * cache.memory[0].element_size()
    contenders = [
        Contender("emu, recorded", run(lambda: recorded.run(ids))),
        Contender(f"emu, recorded, {'cuBLAS' if fused else 'fused'}", run(other_way)),
        Contender("emu, kernel by kernel", run(lambda: model.forward_block(ids, cache, linear))),
        Contender("copy of weights and cache", copy_of(read, arguments.device), True, False),
    ]
    case = f"{pairs} pairs, {tokens} tokens after {context}"
    return measure("generation", case, contenders, arguments.device, arguments.rounds, warm_up=4)


def picture_case(model: EmuForCausalLM, vocabulary: Vocabulary, pairs: int, arguments: argparse.Namespace) -> None:
    """Print seconds of whole pictures, with recorded passes and without."""
    engine, grid = Engine(model, Emu3Layout(vocabulary)), (arguments.grid, arguments.grid)
    prompts, negatives = make_prompts(vocabulary, pairs, 32, 1), make_prompts(vocabulary, pairs, 56, 2)
    for name in ("recorded", "kernel by kernel"):
        with mock.patch.object(device_passes, "can_record", lambda _, records=name == "recorded": records):
            begun = time.perf_counter()
            codes = engine.generate_codes(prompts, negatives, grid, guidance_scale=3.0, top_k=2048)
            spent = time.perf_counter() - begun
        print(
            f"{pairs} pictures of {grid[0]}x{grid[1]}, {name}: {spent:.2f} s, {1e3 * spent / codes[0].numel():.2f} ms a code"
        )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--grid", type=int, default=24, help="height and width of the pictures, in codes")
    parser.add_argument("--pictures", type=int, nargs="*", default=[1, 8], help="how many are drawn together")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    model, vocabulary = build(arguments)
    rows: list[Row] = []
    for context in arguments.contexts:
        for pairs, tokens in ((1, 1), (1, 8), (8, 1), *([(32, 1)] if context <= 2048 else [])):
            rows += pass_case(model, pairs, tokens, context, arguments)
            report(rows, f"generation_gpu_{arguments.device}")
    for pairs in arguments.pictures:
        picture_case(model, vocabulary, pairs, arguments)


if __name__ == "__main__":
    main()
