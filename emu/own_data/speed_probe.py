"""How long a step takes on this machine: the one place where time is measured; what follows from it is written down in plan.json."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from emu.model import EmuConfig, EmuForCausalLM
from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig

MOST_SECONDS = 12.0
"""For each of the two networks, the first step apart."""
MOST_STEPS = 8
OVERHEAD = 1.15
"""What data, optimizer and curves add to the passes that are timed here."""


@dataclass(frozen=True)
class Speed:
    """Seconds.

    Attributes:
        vision_step: of a step of the vision tokenizer.
        encoding: of one picture or clip.
        transformer_step: of a step of the transformer.
    """

    vision_step: float
    encoding: float
    transformer_step: float


def measure_speed(vision: VisionTokenizerConfig, shape: Sequence[int], config: EmuConfig, rows: int) -> Speed:
    """Time a few steps of both networks on random input.

    Args:
        vision: the vision tokenizer.
        shape: of the pixels of a step, (B, 3, H, W) or (B, T, 3, H, W).
        config: of the transformer; its rows are as long as its positions.
        rows: in a step.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = VisionTokenizer(vision).train()
        pixels = torch.rand(*shape) * 2 - 1

        def vision_step() -> None:
            out = tokenizer(pixels)
            ((out.reconstruction - pixels).square().mean() + sum(loss.sum() for loss in out.losses.values())).backward()

        seconds = median_seconds(vision_step)
        tokenizer.eval()
        encoding = median_seconds(lambda: tokenizer.encode(pixels)) / len(pixels)
        model = EmuForCausalLM(config).train()
        ids = torch.randint(0, config.vocab_size, (rows, config.max_position_embeddings))
        ones = torch.ones_like(ids)

        def transformer_step() -> None:
            loss = model(input_ids=ids, labels=ids, loss_weights=ones.float(), segment_ids=ones).loss
            assert loss is not None
            loss.backward()

        return Speed(OVERHEAD * seconds, encoding, OVERHEAD * median_seconds(transformer_step))


def median_seconds(step: Callable[[], object]) -> float:
    """Median time of a call, after a first one that is not counted."""
    step()
    times: list[float] = []
    while len(times) < MOST_STEPS and sum(times) < MOST_SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
