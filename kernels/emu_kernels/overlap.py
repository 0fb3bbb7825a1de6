# mypy: allow-incomplete-defs, allow-untyped-defs
"""Kernels that follow each other in a step of generation begin before the one ahead has ended (programmatic dependent launch).

Starting a kernel takes some microseconds, as long as a small kernel runs, hundreds of times a step: three microseconds are saved for each
that is started early and waits where it needs what the one ahead writes. Large products gain nothing by it (timed on an H200).
CUDA C++ programming guide, "Programmatic dependent launch and synchronization"; from compute capability 9.0 on.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from emu_kernels.dispatch import architecture


def overlaps(like: Tensor) -> bool:
    """Whether kernels on the device of a tensor may be started early; they are then told so as OVERLAP and `launch_pdl`."""
    found = architecture(like.device)
    return found is not None and found.overlaps


@triton.jit
def start_next(OVERLAP: tl.constexpr):
    """Let the next kernel start as soon as all programs of this one have."""
    if OVERLAP:
        tl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Wait until all kernels ahead have ended; every program has to, before it writes anything or reads what they have written."""
    if OVERLAP:
        tl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
