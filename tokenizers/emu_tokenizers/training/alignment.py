"""Alignment of codes with the features of a frozen model, so that tokens carry meaning (arXiv 2412.03069, 2510.26583)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureAlignment(nn.Module):
    """One minus the cosine between projected code vectors and a teacher's features of the same place.

    Args:
        teacher: frozen model, frames (N, 3, H, W) in [-1, 1] -> features (N, C, h', w').
        embed_dim: width of the code vectors.
        teacher_dim: channels C of the features.
    """

    def __init__(self, teacher: nn.Module, embed_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()
        self.project = nn.Conv2d(embed_dim, teacher_dim, kernel_size=1)

    def train(self, mode: bool = True) -> FeatureAlignment:
        """Training mode for the projection; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, vectors: Tensor, pixels: Tensor) -> Tensor:
        """Code vectors (B, D, t, h, w) and their images (B, 3, H, W) or clips (B, T, 3, H, W) -> a scalar.

        A latent frame is aligned with the mean over the frames that it stands for.
        """
        clip = pixels if pixels.ndim == 5 else pixels[:, None]
        batch, _, latent_frames, *grid = vectors.shape
        with torch.no_grad():
            features = self.teacher(clip.flatten(0, 1))
            if features.ndim != 4 or features.shape[1] != self.project.out_channels:
                raise ValueError(
                    f"the teacher gave features of shape {tuple(features.shape)}, expected "
                    f"(N, {self.project.out_channels}, h, w); wrap it if it returns tokens"
                )
            features = F.interpolate(features.float(), size=grid, mode="bilinear", antialias=True)
            groups = features.unflatten(0, (batch, -1)).tensor_split(latent_frames, dim=1)
            target = torch.stack([group.mean(1) for group in groups], dim=1).flatten(0, 1)  # (B t, C, h, w)
        found = self.project(vectors.transpose(1, 2).flatten(0, 1))
        return 1 - F.cosine_similarity(found, target.to(found.dtype), dim=1).mean()
