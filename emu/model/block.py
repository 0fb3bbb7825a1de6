"""One block of the transformer: attention and a gated feed-forward layer, each after a norm and beside the residual stream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from emu.model.attention import Attend, Attention, DeviceStep, Linear
from emu.model.norm import RMSNorm
from emu.model.positions import Rotary
from emu.model_config import EmuConfig
from emu_kernels import swiglu


def separate(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """One product per layer."""
    return tuple(layer(x) for layer in layers)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: EmuConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, linear: Linear) -> Tensor:
        """x (B, S, hidden) -> (B, S, hidden)."""
        gate, up = linear(x, self.gate_proj, self.up_proj)
        return linear(swiglu(gate, up), self.down_proj)[0]


class Block(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); dropout on both branches."""

    def __init__(self, config: EmuConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = config.residual_dropout

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend | DeviceStep, linear: Linear = separate) -> Tensor:
        """x (B, S, hidden), rotary two (B or 1, S, 1, head_dim) -> (B, S, hidden)."""
        branch = self._drop(self.self_attn(self.input_layernorm(x), rotary, attend, linear))
        normed, x = self.post_attention_layernorm(branch, x)
        return x + self._drop(self.mlp(normed, linear))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x
