"""Code vectors to pixels: causal temporal layers, then a 2D decoder per frame whose norms see the code map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu_tokenizers.vision.config import VisionTokenizerConfig
from emu_tokenizers.vision.layers import Level, MiddleBlock, Upsample, make_norm, silu
from emu_tokenizers.vision.temporal import TemporalResidualBlock, TemporalState, TemporalUpsample, num_halvings


def code_channels(config: VisionTokenizerConfig) -> int | None:
    """Channels of the map that conditions the decoder's norms; None for plain group norms."""
    return config.embed_dim if config.spatial_norm else None


class UpBlock(nn.Module):
    """The levels of the decoder. They are stored from full resolution down and run the other way."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        levels: list[nn.Module] = []
        width_in = config.widths[-1]
        for index in reversed(range(len(config.widths))):
            width = config.widths[index]
            pairs = [(width_in, width)] + [(width, width)] * config.num_res_blocks
            heads = config.num_attention_heads if index in config.attn_resolutions else None
            level = Level(pairs, code_channels(config), config.norm_groups, heads)
            if index != 0:
                level.upsample = Upsample(width)
            levels.insert(0, level)
            width_in = width
        self.up = nn.ModuleList(levels)

    def coarse(self, x: Tensor, code_map: Tensor | None, cut: int) -> Tensor:
        """The levels from the lowest resolution up to `cut`, before its change of resolution.

        (N, C', h, w) -> (N, C, h', w'); `code_map` (N, D, h, w).
        """
        for level in reversed(self.up[cut + 1 :]):
            x = level(x, code_map)
        return self.level(cut).mix(x, code_map)

    def fine(self, x: Tensor, code_map: Tensor | None, cut: int) -> Tensor:
        """That change of resolution, and the `cut` levels after it: (N, C, h', w') -> (N, C, H, W)."""
        x = self.level(cut).resize(x)
        for level in reversed(self.up[:cut]):
            x = level(x, code_map)
        return x

    def level(self, index: int) -> Level:
        """A level, 0 for the highest resolution."""
        level = self.up[index]
        assert isinstance(level, Level)
        return level


class Decoder(nn.Module):
    """`temporal` spreads latent frames over time; `spatial` decodes each frame."""

    def __init__(self, config: VisionTokenizerConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.conditioned = config.spatial_norm
        width, channels = config.widths[-1], code_channels(config)
        halvings = num_halvings(config.temporal_factor)
        num_time_blocks = config.num_res_blocks if halvings else 0
        self.time_res_stack = nn.ModuleList(
            TemporalResidualBlock(config.latent_channels) for _ in range(num_time_blocks)
        )
        self.time_conv = nn.ModuleList(TemporalUpsample(config.latent_channels) for _ in range(halvings))
        self.conv_in = nn.Conv2d(config.latent_channels, width, kernel_size=3, padding=1)
        self.middle_block = MiddleBlock(width, channels, config.norm_groups, config.num_attention_heads)
        self.up_block = UpBlock(config)
        self.norm_out = make_norm(config.base_channels * config.channel_multiplier[0], channels, config.norm_groups)
        self.conv_out = nn.Conv2d(config.widths[0], config.out_channels * self.patch_size**2, kernel_size=3, padding=1)

    def temporal(self, latents: Tensor, vectors: Tensor, state: TemporalState | None = None) -> tuple[Tensor, Tensor]:
        """Latents and code vectors, both (B, C, t, h, w) -> both (B, C, t * factor, h, w).

        The two go through the same layers, one after the other on the batch axis, so their widths are equal.
        """
        if not self.time_conv:
            return latents, vectors
        both = torch.cat((latents, vectors)) if self.conditioned else latents
        for block in self.time_res_stack:
            both = block(both, state)
        for conv in self.time_conv:
            both = silu(conv(both, state))
        if not self.conditioned:
            return both, both
        latents, vectors = both.chunk(2)
        return latents, vectors

    def spatial(self, latents: Tensor, code_map: Tensor) -> Tensor:
        """Latent maps (N, C, h, w) and code maps (N, D, h, w) of single frames -> pixels (N, 3, H, W)."""
        return self.fine(self.coarse(latents, code_map, 0), code_map, 0)

    def coarse(self, latents: Tensor, code_map: Tensor, cut: int) -> Tensor:
        """The part of `spatial` below the `cut` levels of the highest resolution."""
        condition = code_map if self.conditioned else None
        x = self.middle_block(self.conv_in(latents), condition)
        return self.up_block.coarse(x, condition, cut)

    def fine(self, x: Tensor, code_map: Tensor, cut: int) -> Tensor:
        """The rest of `spatial`: the `cut` levels of the highest resolution, and the picture."""
        condition = code_map if self.conditioned else None
        x = self.up_block.fine(x, condition, cut)
        x = self.conv_out(silu(self.norm_out(x, condition)))
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x
