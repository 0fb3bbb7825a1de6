"""Pixels to latents: a 2D encoder per frame, then causal temporal layers on its few latent channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from emu_tokenizers.vision.config import VisionTokenizerConfig
from emu_tokenizers.vision.layers import Downsample, FrameNorm, Level, MiddleBlock, silu
from emu_tokenizers.vision.temporal import TemporalDownsample, TemporalResidualBlock, TemporalState, num_halvings


class DownBlock(nn.Module):
    """The levels of the encoder, from full resolution down."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        last = len(config.widths) - 1
        for index, width in enumerate(config.widths):
            width_in = config.widths[max(index - 1, 0)]
            pairs = [(width_in, width)] + [(width, width)] * (config.num_res_blocks - 1)
            heads = config.num_attention_heads if index in config.attn_resolutions else None
            level = Level(pairs, None, config.norm_groups, heads)
            if index != last:
                level.downsample = Downsample(width)
            self.down.append(level)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / 2^k, W / 2^k) for k + 1 levels."""
        for level in self.down:
            x = level(x)
        return x


class Encoder(nn.Module):
    """`spatial` maps frames to latent maps; `temporal` joins the latent maps of `temporal_factor` frames into one."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        width = config.widths[-1]
        pixel_channels = config.in_channels * config.patch_size**2
        self.conv_in = nn.Conv2d(pixel_channels, config.base_channels, kernel_size=3, padding=1)
        self.down_block = DownBlock(config)
        self.middle_block = MiddleBlock(width, None, config.norm_groups, config.num_attention_heads)
        self.norm_out = FrameNorm(width, config.norm_groups)
        self.conv_out = nn.Conv2d(width, config.latent_channels, kernel_size=3, padding=1)
        halvings = num_halvings(config.temporal_factor)
        self.time_conv = nn.ModuleList(TemporalDownsample(config.latent_channels) for _ in range(halvings))
        num_time_blocks = config.num_res_blocks if halvings else 0
        self.time_res_stack = nn.ModuleList(
            TemporalResidualBlock(config.latent_channels) for _ in range(num_time_blocks)
        )

    def spatial(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) -> latent maps (N, C, h, w)."""
        x = F.pixel_unshuffle(frames, self.patch_size) if self.patch_size > 1 else frames
        x = self.middle_block(self.down_block(self.conv_in(x)))
        return self.conv_out(silu(self.norm_out(x)))

    def temporal(self, maps: Tensor, state: TemporalState | None = None) -> Tensor:
        """Latent maps (B, C, T, h, w), T a multiple of the temporal factor -> (B, C, t, h, w)."""
        for conv in self.time_conv:
            maps = silu(conv(maps, state))
        for block in self.time_res_stack:
            maps = block(maps, state)
        return maps
