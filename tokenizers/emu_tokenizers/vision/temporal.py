"""Temporal layers of the vision tokenizer: causal 3D convolutions on the few latent channels, (B, C, T, H, W).

Every causal convolution sees two frames of the past, zeros at the start of a clip. That past is all the state there is:
`TemporalState` carries it from chunk to chunk, so that a streamed clip gives what one call gives.
Source: baaivision/Emu3 (emu3/tokenizer/modeling_emu3visionvq.py).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu_tokenizers.vision.initialization import start_as
from emu_tokenizers.vision.layers import silu

PAST_FRAMES = 2

TemporalState = dict[nn.Module, Tensor]
"""The last two input frames of each causal convolution of a stream; an empty dict starts a clip."""


class CausalConv3d(nn.Module):
    """3D convolution that sees two frames of the past and none of the future; height and width keep their size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            kernel_size,
            stride=(stride, 1, 1),
            padding=(0, kernel_size[1] // 2, kernel_size[2] // 2),
        )

    def forward(self, x: Tensor, state: TemporalState | None = None) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T / stride, H, W); reads and replaces its past in `state`."""
        if self.conv.kernel_size[0] == 1:
            return self.conv(x)
        past = None if state is None else state.get(self)
        x = F.pad(x, (0, 0, 0, 0, PAST_FRAMES, 0)) if past is None else torch.cat((past, x), dim=2)
        if state is not None:
            state[self] = x[:, :, -PAST_FRAMES:].clone()  # a view would keep the whole chunk in memory
        return self.conv(x)


class TemporalDownsample(nn.Module):
    """Half the frames: a causal convolution over four frames with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, kernel_size=(4, 3, 3), stride=2)
        start_as(self.conv.conv, "pass")

    def forward(self, x: Tensor, state: TemporalState | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T / 2, H, W), T even."""
        return self.conv(x, state)


class TemporalUpsample(nn.Module):
    """Twice the frames: every frame is repeated, then a causal 3x3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(channels, channels, kernel_size=(3, 3, 3))
        start_as(self.conv.conv, "pass")

    def forward(self, x: Tensor, state: TemporalState | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, 2 T, H, W)."""
        return self.conv(x.repeat_interleave(2, dim=2), state)


class TemporalResidualBlock(nn.Module):
    """Batch norm, SiLU, causal 3x3x3 convolution, twice, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = CausalConv3d(channels, channels, kernel_size=(3, 3, 3))
        self.norm2 = nn.BatchNorm3d(channels)
        self.conv2 = CausalConv3d(channels, channels, kernel_size=(3, 3, 3))
        start_as(self.conv2.conv, "branch")

    def forward(self, x: Tensor, state: TemporalState | None = None) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T, H, W)."""
        hidden = self.conv1(silu(self.norm1(x)), state)
        return x + self.conv2(silu(self.norm2(hidden)), state)


def num_halvings(temporal_factor: int) -> int:
    """How often the temporal layers halve the number of frames."""
    return int(math.log2(temporal_factor))
