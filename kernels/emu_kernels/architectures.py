"""The GPUs that the Triton kernels are built for, by compute capability, and what a block may use on each.

Shared memory per block: CUDA C++ programming guide, "Technical specifications per compute capability".
"""

from __future__ import annotations

from dataclasses import dataclass

OLDEST = (8, 0)
"""Older GPUs have no asynchronous copies and no products of bfloat16."""


@dataclass(frozen=True)
class Architecture:
    """What one family of GPUs offers to a kernel.

    `shared_bytes` is the most that one block may use; `descriptors` says whether tiles come by tensor descriptor, through the copy
    engine, or by pointers; `overlaps` whether a kernel may start before the one ahead of it has ended, and wait for it inside.
    """

    name: str
    shared_bytes: int
    descriptors: bool
    overlaps: bool


AMPERE = Architecture("sm_80", 166_912, descriptors=False, overlaps=False)
ADA = Architecture("sm_86", 101_376, descriptors=False, overlaps=False)
HOPPER = Architecture("sm_90", 232_448, descriptors=True, overlaps=True)
BLACKWELL = Architecture("sm_100", 232_448, descriptors=True, overlaps=True)
BLACKWELL_RTX = Architecture("sm_120", 101_376, descriptors=False, overlaps=True)

ARCHITECTURES = {
    (8, 0): AMPERE,
    (8, 6): ADA,
    (8, 7): AMPERE,
    (8, 9): ADA,
    (9, 0): HOPPER,
    (10, 0): BLACKWELL,
    (10, 3): BLACKWELL,
    (12, 0): BLACKWELL_RTX,
    (12, 1): BLACKWELL_RTX,
}


def architecture_of(capability: tuple[int, int]) -> Architecture | None:
    """Return the architecture of a compute capability, None below 8.0; GPUs that are not listed take the choice that asks least of them."""
    if capability < OLDEST:
        return None
    return ARCHITECTURES.get(capability, BLACKWELL_RTX)
