"""Torch operators with a chunked implementation in torch and a Triton implementation behind one name each.

Every function here validates its arguments and calls a `torch.library` custom op that has a fake implementation and, where
it makes sense, a formula for backward, so that the ops are correct under `torch.compile`. Triton is imported on the first
call with CUDA tensors and never before; `choices` says which implementation a device takes, and why.
"""

from __future__ import annotations

import logging

from emu_kernels.attention import attention
from emu_kernels.dispatch import choices
from emu_kernels.guided_sample import guided_sample
from emu_kernels.linear_cross_entropy import linear_cross_entropy
from emu_kernels.nearest_code import nearest_code

__all__ = ["attention", "choices", "guided_sample", "linear_cross_entropy", "nearest_code"]

logging.getLogger("emu").addHandler(logging.NullHandler())
