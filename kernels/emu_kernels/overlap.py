# mypy: allow-incomplete-defs, allow-untyped-defs
"""Kernels that follow each other in a step of generation begin before the one ahead has ended (programmatic dependent launch).

Starting a kernel, filling the memory's queues and draining them takes some microseconds, in which a GPU reads nothing: as long as a small
kernel takes, hundreds of times a step. A kernel that is started early reads what nothing ahead of it writes, the weights, and then waits.
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


@triton.jit
def fetch_ahead(pointers, BYTES: tl.constexpr):
    """Bring BYTES from each pointer on to the second-level cache, without waiting; both are multiples of 16."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;",
        "=r,l,r",
        [pointers.to(tl.int64), tl.full(pointers.shape, BYTES, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
