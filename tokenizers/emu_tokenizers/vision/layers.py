"""Two-dimensional blocks of the vision tokenizer: norms, residual block, attention, down- and upsampling.

They act on frames, (N, C, H, W); time is folded into N. Parameter names are those of transformers' Emu3VQVAE.
Source: baaivision/Emu3 (emu3/tokenizer/modeling_emu3visionvq.py), MoVQ (arXiv 2209.09002).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu_tokenizers.vision.initialization import start_as

NORM_EPS = 1e-6


def num_groups(channels: int, groups: int) -> int:
    """Groups of a group norm over `channels`: the greatest common divisor, so that every width works."""
    return math.gcd(channels, groups)


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that has no other reader: in place unless a gradient needs the input."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class FrameNorm(nn.GroupNorm):
    """Group norm that takes, and ignores, the code map, so that blocks need not ask which norm they hold.

    Attributes:
        given: mean and variance (N, groups) to use instead of the input's: those of a whole picture, for a part of it.
    """

    given: tuple[Tensor, Tensor] | None = None

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(num_groups(channels, groups), channels, eps=NORM_EPS)

    def forward(self, x: Tensor, code_map: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if self.given is None:
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        mean, variance = (value.repeat_interleave(self.num_channels // self.num_groups, dim=1) for value in self.given)
        scale = self.weight * (variance + self.eps).rsqrt()  # (N, C)
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, :, None, None].to(x.dtype), x, scale[:, :, None, None].to(x.dtype))


class SpatialNorm(nn.Module):
    """Group norm whose scale and shift come from the code map (MoVQ, arXiv 2209.09002, equation 5).

    The reference upsamples the code map to the size of `x` and then applies two 1x1 convolutions. They commute with
    nearest upsampling, so they run on the small map here and its cells are spread by broadcasting.
    """

    def __init__(self, channels: int, code_channels: int, groups: int) -> None:
        super().__init__()
        self.norm_layer = FrameNorm(channels, groups)
        self.conv_y = nn.Conv2d(code_channels, channels, kernel_size=1)
        self.conv_b = nn.Conv2d(code_channels, channels, kernel_size=1)
        start_as(self.conv_y, "one")
        start_as(self.conv_b, "zero")

    def forward(self, x: Tensor, code_map: Tensor) -> Tensor:
        """(N, C, H, W) and code map (N, D, h, w), with H and W multiples of h and w -> (N, C, H, W)."""
        weight = torch.cat((self.conv_y.weight, self.conv_b.weight)).flatten(1)  # (2 C, D)
        bias = torch.cat([conv.bias for conv in (self.conv_y, self.conv_b) if conv.bias is not None])
        cells = code_map.flatten(2)  # (N, D, hw)
        modulation = torch.baddbmm(bias[:, None], weight.expand(len(cells), -1, -1), cells)  # (N, 2 C, hw)
        modulation = modulation.unflatten(2, code_map.shape[2:])
        if torch.is_grad_enabled():
            if x.shape[-2:] != code_map.shape[-2:]:
                modulation = F.interpolate(modulation, size=x.shape[-2:], mode="nearest")
            scale, shift = modulation.chunk(2, dim=1)
            return torch.addcmul(shift, self.norm_layer(x), scale)
        return spread_(self.norm_layer(x), *modulation.chunk(2, dim=1))


def spread_(normed: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """normed * scale + shift in place, (N, C, H, W); the cells of the small maps (N, C, h, w) cover it.

    Only a row of cells is widened at a time, so that no map of the full size is made.
    """
    n, c, h, w = scale.shape
    rows = normed.view(n, c, h, normed.shape[2] // h, normed.shape[3])
    widen = normed.shape[3] // w
    for operation, small in ((rows.mul_, scale), (rows.add_, shift)):
        operation(small.repeat_interleave(widen, dim=3)[:, :, :, None])
    return normed


def make_norm(channels: int, code_channels: int | None, groups: int) -> nn.Module:
    """A `SpatialNorm` where the block sees a code map of `code_channels`, else a `FrameNorm`."""
    return FrameNorm(channels, groups) if code_channels is None else SpatialNorm(channels, code_channels, groups)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice, plus the input (through a 1x1 convolution where widths differ)."""

    def __init__(self, in_channels: int, out_channels: int, code_channels: int | None, groups: int) -> None:
        super().__init__()
        self.norm1 = make_norm(in_channels, code_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = make_norm(out_channels, code_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        start_as(self.conv2, "branch")
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, code_map: Tensor | None = None) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W); `code_map` (N, D, h, w) conditions the decoder's norms."""
        hidden = self.conv1(silu(self.norm1(x, code_map)))
        hidden = self.conv2(silu(self.norm2(hidden, code_map)))
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return shortcut + hidden if torch.is_grad_enabled() else hidden.add_(shortcut)


class FrameAttention(nn.Module):
    """Attention among the positions of one frame; the scores are never stored as a table."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(
                f"num_attention_heads is {num_heads}; expected a divisor of the attention's width {channels}"
            )
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (N, HW, C)
        q, k, v = (
            project(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)  # (N, heads, HW, C / heads)
        mixed = self.out_proj(mixed.transpose(1, 2).reshape(n, h * w, c))
        return mixed.transpose(1, 2).reshape(n, c, h, w)


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, code_channels: int | None, groups: int, num_heads: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, code_channels, groups)
        self.attn_1 = FrameAttention(channels, num_heads)
        self.attn_norm = make_norm(channels, code_channels, groups)
        self.block_2 = ResidualBlock(channels, channels, code_channels, groups)

    def forward(self, x: Tensor, code_map: Tensor | None = None) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        x = self.block_1(x, code_map)
        x = x + self.attn_1(self.attn_norm(x, code_map))
        return self.block_2(x, code_map)


class Level(nn.Module):
    """The residual blocks of one resolution, an attention after each where asked, then the change of resolution."""

    def __init__(
        self, widths: list[tuple[int, int]], code_channels: int | None, groups: int, num_heads: int | None
    ) -> None:
        """`widths` are (in, out) channels of each block; `num_heads` None leaves the attention out."""
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(i, o, code_channels, groups) for i, o in widths)
        attended = [] if num_heads is None else [out for _, out in widths]
        self.attn = nn.ModuleList(FrameAttention(width, num_heads or 1) for width in attended)
        self.attn_norms = nn.ModuleList(make_norm(width, code_channels, groups) for width in attended)
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Tensor, code_map: Tensor | None = None) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H', W') with half, double or the same size."""
        return self.resize(self.mix(x, code_map))

    def mix(self, x: Tensor, code_map: Tensor | None = None) -> Tensor:
        """The blocks and attentions: (N, C_in, H, W) -> (N, C_out, H, W)."""
        for index, block in enumerate(self.block):
            x = block(x, code_map)
            if self.attn:
                x = x + self.attn[index](self.attn_norms[index](x, code_map))
        return x

    def resize(self, x: Tensor) -> Tensor:
        """The change of resolution."""
        for change in (self.downsample, self.upsample):
            x = x if change is None else change(x)
        return x


class Downsample(nn.Module):
    """Half the size: one zero row and column at the right and bottom, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: every pixel becomes 2x2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
