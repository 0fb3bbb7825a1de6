"""Attention of the newest tokens of each row to what a cache holds; where rows begin and end is read on the device.

Legend: R rows, m new tokens of each (1 of plain decoding, a window of speculative decoding), Hq query heads, Hkv key and value heads (Hq a
multiple of Hkv), C slots of the cache, D head width.

The keys of a row are split at fixed distances from its beginning, each part is attended to by a program of its own, and the parts are
joined in order (Flash-Decoding, https://pytorch.org/blog/flash-decoding). Few rows so fill a GPU, nothing waits for the host, and the
result of a row depends on that row alone, to the last bit.
"""

from __future__ import annotations

from torch import Tensor

from emu_kernels.checks import (
    FLOATS,
    INTEGERS,
    check_like,
    check_not_empty,
    check_positive,
    check_shape,
    check_tensor,
)
from emu_kernels.decode_attention.op import decode_op


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, begin: Tensor, end: Tensor, *, scale: float | None = None
) -> Tensor:
    """Attend from the last m tokens of each row, whose keys and values the cache holds already, to the row's tokens up to each of them.

    Token j of row r stands in slot `end[r] - m + j` and sees the slots from `begin[r]` to its own. A token before the beginning of its row
    sees nothing, and its output is zero. No gradients.

    Args:
        q: queries, (R, m, Hq, D).
        keys: (R, Hkv, C, D), same dtype and device; numbers in slots that no query sees must be finite.
        values: (R, Hkv, C, D).
        begin: first slot of each row, (R,) integers.
        end: slot after the last token of each row, (R,) integers of the dtype of `begin`, at most C. Their values are not read on the host.
        scale: factor of the scores, D ** -0.5 by default.

    Returns:
        (R, m, Hq, D), dtype of q.

    Raises:
        ValueError: a shape, device or number does not fit.
        TypeError: a dtype is not supported.
    """
    check_tensor("q", q, "(R, m, Hq, D)", 4, FLOATS)
    check_tensor("keys", keys, "(R, Hkv, C, D)", 4, FLOATS)
    check_tensor("values", values, "(R, Hkv, C, D)", 4, FLOATS)
    check_not_empty("q", q, 2, "heads")
    check_not_empty("q", q, 3, "features")
    check_not_empty("keys", keys, 1, "heads")
    rows, _, num_heads, width = q.shape
    check_shape("keys", keys, (rows, *keys.shape[1:3], width), "q")
    check_shape("values", values, tuple(keys.shape), "keys")
    if num_heads % keys.shape[1]:
        raise ValueError(
            f"q has {num_heads} heads, which is not a multiple of the {keys.shape[1]} heads of keys and values"
        )
    check_like("keys", keys, "q", q, same_dtype=True)
    check_like("values", values, "q", q, same_dtype=True)
    for name, places in (("begin", begin), ("end", end)):
        check_tensor(name, places, "(R,)", 1, INTEGERS)
        check_shape(name, places, (rows,), "the rows of q")
        check_like(name, places, "q", q)
    if scale is not None:
        check_positive("scale", scale)
    return decode_op(q, keys, values, begin, end, width**-0.5 if scale is None else float(scale))
