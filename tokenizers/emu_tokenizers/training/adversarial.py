"""Adversarial training of a tokenizer: a patch discriminator, hinge losses, a delayed start, an adaptive weight.

Source: taming-transformers (arXiv 2012.09841, equations 5 to 7); the fixed weight of 0.1 is that of MoVQGAN and IBQ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu_tokenizers.vision.layers import num_groups


@dataclass(frozen=True)
class AdversarialOptions:
    """How the discriminator takes part.

    Args:
        weight: weight of the generator's loss; with `adaptive`, a factor on the ratio of gradients.
        start_step: first step with a discriminator.
        adaptive: weigh the generator's loss so that its gradient at the decoder's last layer is as large as that of the
            other losses.
        lr: learning rate of the discriminator.
        base_channels: width of its first layer.
        num_layers: its strided layers.
    """

    weight: float = 0.1
    start_step: int = 10000
    adaptive: bool = True
    lr: float = 1e-4
    base_channels: int = 64
    num_layers: int = 3


class PatchDiscriminator(nn.Module):
    """Convolutions that judge overlapping patches of a frame (arXiv 1611.07004); group norms, so that frames stay apart."""

    def __init__(self, channels: int = 3, base_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = base_channels
        for index in range(1, num_layers + 1):
            wider = base_channels * min(2**index, 8)
            stride = 2 if index < num_layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1),
                nn.GroupNorm(num_groups(wider, 32), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.smallest = 2**num_layers * 3

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W) -> a logit per patch (N, 1, h, w), high for real ones.

        Raises:
            ValueError: frames too small for the number of layers.
        """
        if min(frames.shape[-2:]) < self.smallest:
            raise ValueError(
                f"frames of {tuple(frames.shape[-2:])} are too small for this discriminator, which needs "
                f"{self.smallest} pixels a side; give fewer num_layers"
            )
        return self.layers(frames)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of logits of any shape, a scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """What the tokenizer gains by fooling the discriminator: minus the mean logit, a scalar."""
    return -fake.mean()


def adaptive_weight(other: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the gradients of two losses at the decoder's last weight, in [0, 1e4], detached."""
    (other_gradient,) = torch.autograd.grad(other, last_layer, retain_graph=True)
    (generator_gradient,) = torch.autograd.grad(generator, last_layer, retain_graph=True)
    return (other_gradient.norm() / (generator_gradient.norm() + 1e-4)).clamp(0, 1e4).detach()
