"""Torch operators: one public function each, over an implementation in torch and one in Triton.

A folder per op with the same files: `__init__.py` is the public function, its checks and its contract; `op.py` the
`torch.library` custom op with its fake implementation, its dispatch by device and, where the op trains, its formula for backward;
`cpu.py` the implementation in torch; `gpu.py` that in Triton, which is imported on the first call with CUDA tensors and never
before. `reference.py` has the plain definition of each. `choices` says which implementation a device takes, and why.
"""

from __future__ import annotations

import logging

from emu_kernels.attention import attention, document_bounds
from emu_kernels.decode_attention import decode_attention
from emu_kernels.dispatch import choices
from emu_kernels.few_rows_linear import few_rows_linear
from emu_kernels.guided_sample import guided_sample
from emu_kernels.linear_cross_entropy import linear_cross_entropy
from emu_kernels.linear_cross_entropy.split import split_linear_cross_entropy
from emu_kernels.nearest_code import nearest_code
from emu_kernels.rms_norm import rms_norm
from emu_kernels.rotary import rotary, rotary_into
from emu_kernels.swiglu import swiglu

__all__ = [
    "attention",
    "choices",
    "decode_attention",
    "document_bounds",
    "few_rows_linear",
    "guided_sample",
    "linear_cross_entropy",
    "nearest_code",
    "rms_norm",
    "rotary",
    "rotary_into",
    "split_linear_cross_entropy",
    "swiglu",
]

logging.getLogger("emu").addHandler(logging.NullHandler())
