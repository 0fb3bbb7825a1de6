"""Where each token stands, and the rotary embedding that tells attention (arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

import emu_kernels
from emu.model.norm import RMSNorm
from emu.model_config import EmuConfig

Rotary = tuple[Tensor, Tensor]
"""Cosines of the rotation of each token, and its sines with the sign of the first half turned; (B or 1, S, 1, head_dim) each."""


class EmuRotaryEmbedding(nn.Module):
    """Angles of the rotary embedding, in float32; every `rope_type` of transformers.

    The names of its buffers and its class are those by which transformers restores such modules when it loads without memory.
    """

    inv_freq: Tensor

    def __init__(self, config: EmuConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type: str = config.rope_parameters["rope_type"]  # type: ignore[index]
        init = (
            self.compute_default_rope_parameters if self.rope_type == "default" else ROPE_INIT_FUNCTIONS[self.rope_type]
        )
        inv_freq, self.attention_scaling = init(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @property
    def depends_on_length(self) -> bool:
        """Whether the angle of a position changes with the length of the sequence."""
        return self.rope_type in ("dynamic", "longrope")

    @staticmethod
    def compute_default_rope_parameters(config: EmuConfig, **_: Any) -> tuple[Tensor, float]:
        """Frequencies (head_dim / 2,) of plain rotary embeddings, and their scale."""
        width: int = config.head_dim  # type: ignore[assignment]
        exponents = torch.arange(0, width, 2, dtype=torch.float) / width
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0  # type: ignore[index]

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> Rotary:
        """Positions (B, S) -> cosines and signed sines (B, S, 1, head_dim) in the dtype of x."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return torch.cat([cos, cos], -1).to(x.dtype)[..., None, :], torch.cat([-sin, sin], -1).to(x.dtype)[..., None, :]


def rotate(x: Tensor, rotary: Rotary, norm: nn.Module) -> Tensor:
    """Norm the heads of x (B, S, heads, head_dim) and turn their pairs (i, i + head_dim / 2) by the angle of their token."""
    if type(norm) is RMSNorm:  # both in one pass
        return emu_kernels.rotary(x, *rotary, weight=norm.weight, eps=norm.eps)
    return emu_kernels.rotary(norm(x), *rotary)


def segment_positions(segment_ids: Tensor) -> Tensor:
    """Positions (B, S) that restart where the segment (B, S) changes."""
    place = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return place - torch.where(begins, place, 0).cummax(1).values
