"""Which implementation runs attention on a GPU: the Triton kernels, or one of torch's where it is faster for the case.

Legend: see `attention.py`. `choose_backend` is a pure function of shapes and options. Cases that have been timed on a card are
looked up in MEASURED (`benchmarks/kernels_attention.py --table` prints its entries); the others follow `default_backend`.
"""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = ("triton", "flash", "cudnn", "flex")
ENVIRONMENT = "EMU_KERNELS_ATTENTION"
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """What the speed of attention depends on; `length` is rounded down to a power of two."""

    capability: tuple[int, int]
    width: int
    length: int
    causal: bool
    packed: bool
    windowed: bool


# Filled from timings on a card, forward and backward together; empty until there are some.
MEASURED: dict[Case, str] = {}


def default_backend(packed: bool, windowed: bool, capped: bool, dtype: torch.dtype) -> str:
    """Without a timing: cuDNN for plain masks in 16 bits (published as 1.7 to 2.3 times torch's flash on Hopper), else ours."""
    plain = not (packed or windowed or capped)
    return "cudnn" if plain and dtype in HALVES else "triton"


def able(backend: str, packed: bool, windowed: bool, capped: bool, dtype: torch.dtype) -> bool:
    """Whether a backend computes the case at all."""
    if backend == "triton":
        return True
    if backend == "flex":
        return not packed
    return not (packed or windowed or capped) and dtype in HALVES


def choose_backend(q: Tensor, causal: bool, packed: bool, window: int | None, softcap: float | None) -> str:
    """Name of the backend for CUDA queries (B, S, Hq, D); the environment variable EMU_KERNELS_ATTENTION forces one."""
    features = packed, window is not None, softcap is not None
    forced = os.environ.get(ENVIRONMENT)
    if forced is not None:
        if forced not in BACKENDS:
            raise ValueError(f"{ENVIRONMENT} must be one of {BACKENDS}, got {forced!r}")
        return forced if able(forced, *features, q.dtype) else "triton"
    if q.dtype == torch.float64:
        return "triton"
    length = 1 << max(int(q.shape[1]).bit_length() - 1, 0)
    capability = torch.cuda.get_device_capability(q.device)
    case = Case(capability, q.shape[-1], length, causal, packed, window is not None)
    chosen = MEASURED.get(case) or default_backend(*features, q.dtype)
    return chosen if able(chosen, *features, q.dtype) else "triton"


def torch_attention(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> Tensor:
    """Attention by one of torch's own implementations, which bring their own backward; shapes as in `attention`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, S, D)
    shared = q.shape[1] != k.shape[1]
    if backend == "flex":
        return _flex(q, k, v, causal, window, softcap, scale, shared).transpose(1, 2)
    # The other names in the list serve shapes that the first one refuses.
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if backend == "flash":
        order = order[1:]
    with sdpa_kernel(order, set_priority=True):
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=shared
        )
    return out.transpose(1, 2)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _compiled_mask() -> Any:
    """Without compilation the mask of a long row would be held whole, S x S."""
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=False)


@cache
def _block_mask(length: int, causal: bool, window: int | None, device: torch.device) -> Any:
    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        visible = distance >= 0 if causal else distance == distance
        return visible if window is None else visible & (distance.abs() < window)

    return _compiled_mask()(seen, None, None, length, length, device=str(device))


def _flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
    shared: bool,
) -> Tensor:
    """Flex attention, (B, H, S, D), with a block mask that is kept per length and window."""

    limit = softcap or 1.0

    def cap(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return limit * torch.tanh(score / limit)

    mask = _block_mask(q.shape[2], causal, window, q.device) if causal or window is not None else None
    options = {"score_mod": None if softcap is None else cap, "block_mask": mask, "scale": scale}
    return _compiled_flex()(q, k, v, enable_gqa=shared, **options)


def attention_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The op on a GPU: Triton, or plain tiles for float64."""
    if arguments[0].dtype == torch.float64:
        from emu_kernels.attention_tiled import attention_tiled

        return attention_tiled(*arguments)
    from emu_kernels.attention_triton import attention_triton

    return attention_triton(*arguments)


def attention_backward_cuda(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The backward of `attention_cuda`."""
    if arguments[0].dtype == torch.float64:
        from emu_kernels.attention_tiled import attention_backward_tiled

        return attention_backward_tiled(*arguments)
    from emu_kernels.attention_triton_backward import attention_backward_triton

    return attention_backward_triton(*arguments)
