"""Rotary embedding (arXiv 2104.09864): turns pairs of features by the angle of their token, after a norm of each head where there is one.

`rotary` is for training and prompts. `rotary_into` is a layer's part of a step of generation: one launch norms and turns queries and
keys and writes keys and values to the cache, at places that are read on the device, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emu_kernels.checks import FLOATS, INTEGERS, check_like, check_shape, check_tensor
from emu_kernels.rms_norm.cpu import rms_norm_torch
from emu_kernels.rotary.cpu import rotary_torch
from emu_kernels.rotary.op import norm_rotary_op, rotary_into_op, rotary_op


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Turn the pairs (i, i + D / 2) of features of each head by the angle of their token, differentiable in x and weight.

    `x * cos + roll(x, D / 2) * sin`, where the sines of the first half of the features carry a minus. With `weight`, x is first
    normed as `rms_norm` does; then there is a first derivative only.

    Args:
        x: queries or keys, (B, S, H, D), D even.
        cos: cosines of the angles, (B or 1, S, 1, D), same device; taken as a constant.
        sin: sines, (B or 1, S, 1, D), negative in the first D / 2 features; taken as a constant.
        weight: scale of each feature after the norm of a head, (D,); None for no norm.
        eps: added to the mean of the squares in the norm.

    Returns:
        (B, S, H, D), in the dtype that x, weight and cos promote to.

    Raises:
        ValueError: a shape or device does not fit, or an angle requires a gradient.
        TypeError: a dtype is not supported.
    """
    check_tensor("x", x, "(B, S, H, D)", 4, FLOATS)
    _check_angles(x, cos, sin)
    # Without a gradient, as in each step of generation on a CPU, the dispatch of an op would cost more than the rotation of a token; and
    # a compiler fuses plain operations with their neighbours, which it cannot do with an op.
    plain = torch.compiler.is_compiling() or not (x.is_cuda or torch.is_grad_enabled())
    if weight is None:
        return rotary_torch(x, cos, sin) if plain else rotary_op(x, cos, sin)
    _check_weight("weight", weight, x)
    if plain:
        return rotary_torch(rms_norm_torch(x, weight, eps), cos, sin)
    return norm_rotary_op(x, weight, cos, sin, eps)[0]


def rotary_into(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Turn queries and keys of new tokens as `rotary` does, and write keys and values to a cache; without a gradient.

    On a GPU it is one launch, and the host reads nothing.

    Args:
        q: queries, (B, S, Hq, D), D even.
        k: keys, (B, S, Hkv, D), same device.
        v: values, (B, S, Hkv, D).
        cos, sin: see `rotary`.
        keys: what is written to, (R, Hkv, K, D): R rows of K slots.
        values: the same for values, of the dtype of `keys`.
        places: (B, S) integers: token (b, s) goes to slot `places[b, s] % K` of row `places[b, s] // K`; nothing is written for places
            outside of the cache, -1 say. No two tokens may have the same place.
        q_weight, k_weight: see `weight` of `rotary`; both or none.
        eps: see `rotary`.

    Returns:
        The queries, (B, S, Hq, D), in the dtype of `keys`.

    Raises:
        ValueError: a shape or device does not fit, or one of the two weights is missing.
        TypeError: a dtype is not supported.
    """
    check_tensor("q", q, "(B, S, Hq, D)", 4, FLOATS)
    check_tensor("k", k, "(B, S, Hkv, D)", 4, FLOATS)
    _check_angles(q, cos, sin, "q")
    check_shape("k", k, (*q.shape[:2], k.shape[2], q.shape[3]), "q")
    check_shape("v", v, tuple(k.shape), "k")
    check_like("k", k, "q", q, same_dtype=True)
    check_like("v", v, "q", q)
    _check_cache(k, keys, values, places)
    if (q_weight is None) != (k_weight is None):
        missing = "q_weight" if q_weight is None else "k_weight"
        raise ValueError(f"{missing} is missing; give q_weight and k_weight, or neither")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None:
            _check_weight(name, weight, q)
    with torch.no_grad():
        return rotary_into_op(q, k, v, cos, sin, keys, values, places, q_weight, k_weight, eps)


def _check_angles(x: Tensor, cos: Tensor, sin: Tensor, name: str = "x") -> None:
    check_tensor("cos", cos, "(B or 1, S, 1, D)", 4, FLOATS)
    check_tensor("sin", sin, "(B or 1, S, 1, D)", 4, FLOATS)
    batch, length, _, width = x.shape
    if width % 2:
        raise ValueError(f"{name} has heads of {width} features, which do not form pairs; expected an even number")
    rows = batch if cos.shape[0] == batch else 1
    check_shape("cos", cos, (rows, length, 1, width), name)
    check_shape("sin", sin, (rows, length, 1, width), "cos")
    check_like("cos", cos, name, x)
    check_like("sin", sin, "cos", cos, same_dtype=True)
    if cos.requires_grad or sin.requires_grad:
        raise ValueError("cos and sin are taken as constants but require a gradient; detach them")


def _check_weight(name: str, weight: Tensor, x: Tensor) -> None:
    check_tensor(name, weight, "(D,)", 1, FLOATS)
    check_shape(name, weight, (x.shape[3],), "the features of a head")
    check_like(name, weight, "x", x)


def _check_cache(k: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> None:
    check_tensor("keys", keys, "(R, Hkv, K, D)", 4, FLOATS)
    check_shape("keys", keys, (keys.shape[0], k.shape[2], keys.shape[2], k.shape[3]), "the heads of k")
    check_shape("values", values, tuple(keys.shape), "keys")
    check_like("keys", keys, "k", k)
    check_like("values", values, "keys", keys, same_dtype=True)
    check_tensor("places", places, "(B, S)", 2, INTEGERS)
    check_shape("places", places, tuple(k.shape[:2]), "k")
    check_like("places", places, "k", k)
