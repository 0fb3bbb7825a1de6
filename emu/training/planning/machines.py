"""Graphics cards as their makers describe them: what a plan reckons with."""

from __future__ import annotations

from dataclasses import dataclass

from emu_tokenizers.registry import Registry


@dataclass(frozen=True)
class Card:
    """A card, and how it is usually joined to others.

    Attributes:
        title: with its memory, as people call it.
        memory: bytes that a process may fill: the card's memory less half a GiB for the context of CUDA.
        memory_bandwidth: bytes a second.
        bfloat16: products in bfloat16, FLOP a second, without sparsity.
        float32: products of float32 numbers as torch computes them unless told otherwise, FLOP a second.
        within: bytes a second and direction to the cards of the same machine.
        between: bytes a second and direction to those of others.
        per_machine: cards of a machine.
    """

    title: str
    memory: float
    memory_bandwidth: float
    bfloat16: float
    float32: float
    within: float
    between: float
    per_machine: int = 8

    def bandwidth(self, cards: int) -> float:
        """Bytes a second and direction in a ring of this many cards: that of its slowest link."""
        return self.within if cards <= self.per_machine else self.between


CONTEXT = 2**29
CARDS: Registry[Card] = Registry(
    "card",
    {
        # Data sheets of NVIDIA: H100 SXM5, H200 SXM, A100 SXM4; NVLink 900 and 600 GB/s both directions together; 400 and 200 Gb/s a card
        # between machines, as in the makers' own DGX machines.
        "h100": Card("H100 80 GB", 80 * 2**30 - CONTEXT, 3.35e12, 989.4e12, 66.9e12, 450e9, 50e9),
        "h200": Card("H200 141 GB", 141e9 - CONTEXT, 4.8e12, 989.4e12, 66.9e12, 450e9, 50e9),
        "a100": Card("A100 80 GB", 80 * 2**30 - CONTEXT, 2.039e12, 311.9e12, 19.5e12, 300e9, 25e9),
        # GeForce RTX 4090: products of bfloat16 that add up in float32; PCIe 4.0 x16, and no faster way to another machine than 100 Gb/s.
        "rtx4090": Card("RTX 4090 24 GB", 24 * 2**30 - CONTEXT, 1.008e12, 165.2e12, 82.6e12, 25e9, 12.5e9),
    },
)
"""Cards by the word that `emu plan --gpu` takes."""
