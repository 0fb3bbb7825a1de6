"""Losses of tokenizer training: a list of names with weights.

Names of reconstruction losses are in `RECONSTRUCTION`; every other name must be one that the quantizer reports
(those of `DEFAULT_WEIGHTS`). Nothing is summed before it was named, so that each term is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """Distance in the features of a fixed, seeded convolutional pyramid: a perceptual loss that needs no weights.

    Random convolutions keep edges and texture apart at three scales (the idea of arXiv 1606.04801). It does not
    replace LPIPS on photographs; it sharpens edges where plain squared error blurs them, and it runs offline.
    """

    def __init__(self, channels: int = 3, width: int = 16, num_scales: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.num_scales = num_scales
        for scale in range(num_scales):
            fan_in = channels * 9
            kernel = torch.randn(width, channels, 3, 3, generator=generator) / fan_in**0.5
            self.register_buffer(f"kernel_{scale}", kernel, persistent=False)
            channels = width

    def forward(self, reconstruction: Tensor, pixels: Tensor) -> Tensor:
        """Frames (N, 3, H, W), twice -> mean absolute difference of the features, a scalar."""
        both = torch.cat((reconstruction, pixels.to(reconstruction.dtype)))
        total = both.new_zeros(())
        for scale in range(self.num_scales):
            kernel = self.get_buffer(f"kernel_{scale}").to(both.dtype)
            both = F.leaky_relu(F.conv2d(both, kernel, padding=1), 0.2)
            left, right = F.normalize(both, dim=1).chunk(2)
            total = total + F.l1_loss(left, right)
            if min(both.shape[-2:]) > 1:
                both = F.avg_pool2d(both, 2)
        return total / self.num_scales


class Lpips(nn.Module):
    """LPIPS through torchmetrics, whose VGG weights are downloaded by torchvision on first use."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            self.metric = LearnedPerceptualImagePatchSimilarity(net_type="vgg")
        except (ImportError, OSError) as error:
            raise ValueError(
                f"the loss 'lpips' needs torchmetrics, torchvision and its VGG16 weights: {error}; "
                "install them, or use the loss 'features', which needs no weights"
            ) from error

    def forward(self, reconstruction: Tensor, pixels: Tensor) -> Tensor:
        """Frames (N, 3, H, W) in [-1, 1], twice -> a scalar."""
        return self.metric(reconstruction.clamp(-1, 1), pixels)


class PixelLoss(nn.Module):
    """A plain elementwise loss as a module."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, reconstruction: Tensor, pixels: Tensor) -> Tensor:
        """Frames (N, 3, H, W), twice -> a scalar."""
        return self.function(reconstruction, pixels.to(reconstruction.dtype))


RECONSTRUCTION: dict[str, Callable[[], nn.Module]] = {
    "l1": lambda: PixelLoss(F.l1_loss),
    "l2": lambda: PixelLoss(F.mse_loss),
    "features": RandomFeatures,
    "lpips": Lpips,
}


def default_losses(reported: Mapping[str, float]) -> dict[str, float]:
    """Squared error, and the losses that a quantizer reports, with its own weights."""
    return {"l2": 1.0, **reported}


class TokenizerLosses(nn.Module):
    """The weighted losses of a training step.

    Args:
        weights: name -> weight. A weight of 0 leaves the loss out.
        known: names that the model itself reports.

    Raises:
        ValueError: a name that neither `RECONSTRUCTION` nor the model knows, or a negative weight.
    """

    def __init__(self, weights: dict[str, float], known: tuple[str, ...] = ("commitment",)) -> None:
        super().__init__()
        unknown = sorted(set(weights) - set(RECONSTRUCTION) - set(known))
        if unknown:
            raise ValueError(f"unknown losses {unknown}; there are {sorted(set(RECONSTRUCTION) | set(known))}")
        if min(weights.values(), default=0) < 0:
            raise ValueError(f"loss weights must not be negative, got {weights}")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight > 0}
        self.terms = nn.ModuleDict({n: make() for n, make in RECONSTRUCTION.items() if n in self.weights})

    def forward(self, reconstruction: Tensor, pixels: Tensor, reported: dict[str, Tensor]) -> dict[str, Tensor]:
        """Frames (N, 3, H, W), twice, and the model's own losses -> unweighted scalars by name."""
        found = {name: term(reconstruction, pixels) for name, term in self.terms.items()}
        return found | {name: loss for name, loss in reported.items() if name in self.weights}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Weighted sum of named scalars."""
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
