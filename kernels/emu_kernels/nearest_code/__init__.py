"""Nearest codebook entry of many vectors without the (vectors, codes) table of distances.

The streamed search is that of Flash-KMeans (arXiv 2603.09229); here it is exact: what the fast products cannot tell apart is
compared again in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import FLOATS, check_like, check_not_empty, check_shape, check_tensor
from emu_kernels.dispatch import without_autocast
from emu_kernels.nearest_code.cpu import nearest_code_torch
from emu_kernels.nearest_code.op import nearest_op


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """Find the index of the codebook entry with the smallest Euclidean distance to each vector, the lowest index on ties.

    No gradient; the result is the same whatever the batch.

    Args:
        z: vectors, (N, D), finite.
        codebook: entries, (K, D), same dtype and device, finite.

    Returns:
        (N,) int64.

    Raises:
        ValueError: a shape or device does not fit, or on CPU a number is not finite.
        TypeError: a dtype is not supported.
    """
    check_tensor("z", z, "(N, D)", 2, FLOATS)
    check_tensor("codebook", codebook, "(K, D)", 2, FLOATS)
    check_not_empty("z", z, 1, "features")
    check_not_empty("codebook", codebook, 0, "entries")
    check_shape("codebook", codebook, (codebook.shape[0], z.shape[1]), "the features of z")
    check_like("codebook", codebook, "z", z, same_dtype=True)
    plain = type(z) is Tensor and z.device.type == "cpu"
    if plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # What the op does there, without its wrapper: the first call of a custom op loads the compiler, which takes more time than a folder
        # of small pictures takes to be encoded.
        with without_autocast(z):
            return nearest_code_torch(z, codebook)
    return nearest_op(z, codebook)
