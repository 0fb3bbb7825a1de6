"""The plain definition of each op: short, slow, differentiable by autograd where the op is. Tests and benchmarks import it."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    vocab_range: tuple[int, int] | Tensor | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, lse (T,) and argmax (T,) through the full logits (T, V); see `emu_kernels.linear_cross_entropy`."""
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if vocab_range is not None:
        ranges = torch.as_tensor(vocab_range).expand(len(target), 2)
        ids = torch.arange(weight.shape[0])
        inside = (ids >= ranges[:, :1]) & (ids < ranges.sum(1, keepdim=True))
        logits = logits.masked_fill(~inside, -torch.inf)
    factors = (target != ignore_index).to(logits.dtype)
    if weights is not None:
        factors = factors * weights.to(logits.dtype)
    lse = logits.logsumexp(1)
    picked = logits.gather(1, target.clamp(min=0).long()[:, None])[:, 0]
    losses = torch.where(factors != 0, factors * (lse - picked + z_loss * lse**2), 0.0)
    total = factors.sum()
    if reduction == "mean":
        losses = losses.sum() / torch.where(total == 0, 1.0, total)
    elif reduction == "sum":
        losses = losses.sum()
    kept = factors != 0
    return losses, torch.where(kept, lse, 0.0), torch.where(kept, logits.argmax(1), -1)


def visible(
    num_rows: int,
    length: int,
    causal: bool = True,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Which key (last axis) each query sees, (B, S, S) bool."""
    position = torch.arange(length)
    distance = position[:, None] - position[None]
    mask = (distance >= 0) if causal else torch.ones(length, length, dtype=torch.bool)
    if window is not None:
        mask = mask & (distance.abs() < window)
    if cu_seqlens is not None:
        document = torch.searchsorted(cu_seqlens.long(), position, right=True)
        segment_ids = torch.where(position < cu_seqlens[-1], document, 0)[None]
    if segment_ids is None:
        return mask.expand(num_rows, length, length)
    changes = torch.nn.functional.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))
    run = changes.long().cumsum(1)
    real = segment_ids != 0
    return mask & (run[:, :, None] == run[:, None]) & real[:, :, None] & real[:, None]


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float | None = None, scale: float | None = None
) -> Tensor:
    """q (B, S, Hq, D), k and v (B, S, Hkv, D), mask (B, S, S) -> (B, S, Hq, D); rows that see nothing are zero."""
    repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeats, dim=2) for x in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    empty = ~mask.any(-1)[:, None, :, None]
    scores = scores.masked_fill(~mask[:, None], -torch.inf).masked_fill(empty, 0.0)
    probabilities = scores.softmax(-1).masked_fill(empty, 0.0)
    return torch.einsum("bhst,bthd->bshd", probabilities, v)


def guided_probabilities(
    logits: Tensor,
    scale: float | tuple[float, float] = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The distribution (B, K) that `emu_kernels.guided_sample` draws from, for logits (R, B, K) and temperature above 0."""
    logits = logits.double()
    pair = (scale, 1.0) if isinstance(scale, (int, float)) else scale
    mixed = logits[0]
    if len(logits) == 2:
        mixed = logits[1] + pair[0] * (logits[0] - logits[1])
    elif len(logits) == 3:
        mixed = logits[1] + pair[1] * (logits[2] - logits[1]) + pair[0] * (logits[0] - logits[2])
    mixed = mixed.nan_to_num(nan=-torch.inf, neginf=-torch.inf) / temperature
    if top_k:
        kth = mixed.topk(min(top_k, mixed.shape[1]), dim=1).values[:, -1:]
        mixed = mixed.masked_fill(mixed < kth, -torch.inf)
    probabilities = mixed.softmax(1)
    if top_p is not None:
        larger = probabilities[:, None, :] > probabilities[:, :, None]
        mass_ahead = (larger * probabilities[:, None, :]).sum(2)
        probabilities = torch.where(mass_ahead < top_p, probabilities, 0.0)
    return probabilities / probabilities.sum(1, keepdim=True)


def nearest_code(z: Tensor, codebook: Tensor) -> Tensor:
    """z (N, D), codebook (K, D) -> (N,) by the table of float64 distances."""
    return (z.double()[:, None] - codebook.double()[None]).square().sum(2).argmin(1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,) -> (..., D), all in the dtype of x."""
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rotary(x: Tensor, angles: Tensor) -> Tensor:
    """x (B, S, H, D) with each pair (i, i + D / 2) as a complex number times exp(i angle), for angles (B or 1, S, D / 2)."""
    real, imaginary = x.chunk(2, -1)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    return torch.cat([turned.real, turned.imag], -1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up (..., F) -> (..., F)."""
    return gate / (1.0 + (-gate).exp()) * up


def few_rows_linear(
    x: Tensor,
    weights: list[Tensor],
    norm_weight: Tensor | None = None,
    eps: float = 1e-5,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """x (..., D), weights (columns, D) each -> (..., N); see `emu_kernels.few_rows_linear`."""
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, eps)
    parts = [x @ weight.T for weight in weights]
    out = swiglu(*parts) if gated else torch.cat(parts, -1)
    return out if residual is None else out + residual
