"""One block of the transformer: attention and a gated feed-forward layer, each after a norm and beside the residual stream."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from emu.model.attention import Attend, Attention, DeviceStep, Linear
from emu.model.norm import RMSNorm
from emu.model.positions import Rotary
from emu.model_config import EmuConfig
from emu_kernels import few_rows_linear, swiglu


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
        if isinstance(attend, DeviceStep) and attend.fused:
            return self.step(x, rotary, attend)
        branch = self._drop(self.self_attn(self.input_layernorm(x), rotary, attend, linear))
        normed, x = self.post_attention_layernorm(branch, x)
        return x + self._drop(self.mlp(normed, linear))

    def step(self, x: Tensor, rotary: Rotary, attend: DeviceStep) -> Tensor:
        """`forward` of few rows without a gradient, where `is_plain`: on a GPU seven launches, of which four read all weights."""
        attention, mlp, norm = self.self_attn, self.mlp, self.input_layernorm
        weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        joint = few_rows_linear(x, weights, norm_weight=norm.weight, eps=norm.eps)
        q, k, v = (
            part.unflatten(-1, (-1, attention.head_dim))
            for part in joint.split([len(weight) for weight in weights], -1)
        )
        branch = attend(q, k, v, rotary, attention).flatten(-2)
        x = few_rows_linear(branch, [attention.o_proj.weight], residual=x)
        weights, norm = [mlp.gate_proj.weight, mlp.up_proj.weight], self.post_attention_layernorm
        inner = few_rows_linear(x, weights, norm_weight=norm.weight, eps=norm.eps, gated=True)
        return few_rows_linear(inner, [mlp.down_proj.weight], residual=x)

    def is_plain(self) -> bool:
        """Whether the block computes from its own weights alone, as `step` does: no adapters, hooks, quantized or mixed weights."""
        attention, mlp = self.self_attn, self.mlp
        products = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        products += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        norms = [self.input_layernorm, self.post_attention_layernorm]
        weights = [layer.weight for layer in (*products, *norms) if isinstance(layer, (nn.Linear, RMSNorm))]
        return (
            all(type(layer) is nn.Linear and layer.bias is None for layer in products)
            and all(type(norm) is RMSNorm for norm in norms)
            and all(type(weight) is nn.Parameter for weight in weights)
            and len({weight.dtype for weight in weights}) == 1
            and not any(
                layer._forward_hooks or layer._forward_pre_hooks for layer in (attention, mlp, *products, *norms)
            )
        )

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x
