"""Distances that need trained networks: LPIPS, rFID and rFVD over torchmetrics. What cannot be measured is skipped by name.

Weights that are not on this machine are downloaded only where that was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emu_tokenizers.pixels.transforms import to_bytes

LPIPS, RFID, RFVD = "lpips", "rfid", "rfvd"
LPIPS_SIDE = 32
"""Smallest side that the five stages of VGG leave something of."""


class Skipped(Exception):
    """A distance cannot be measured; the text says why."""


class Perceptual:
    """Mean LPIPS (VGG) over frames."""

    def __init__(self, metric: nn.Module) -> None:
        self.metric = metric

    def add(self, rebuilt: Tensor, original: Tensor) -> None:
        """Add frames (..., 3, H, W) in [-1, 1] and their originals."""
        if min(original.shape[-2:]) < LPIPS_SIDE:
            raise Skipped(
                f"pictures are {tuple(original.shape[-2:])}; LPIPS needs sides of at least {LPIPS_SIDE} pixels"
            )
        left, right = (x.float().flatten(0, -4).to("cpu") for x in (rebuilt, original))
        self.metric.update(left, right)  # type: ignore[operator]

    def compute(self) -> float:
        """The mean."""
        return float(self.metric.compute())  # type: ignore[operator]


class Frechet:
    """Frechet distance between features of originals and of reconstructions.

    Args:
        network: TorchScript that takes pictures (B, 3, H, W) or clips (B, 3, T, H, W) in [-1, 1] and returns (B, F); None
            for torchmetrics' Inception, which takes bytes.
    """

    def __init__(self, network: nn.Module | None) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.network = network
        self.metric = FrechetInceptionDistance() if network is None else None
        self.count = 0

    @torch.no_grad()
    def add(self, rebuilt: Tensor, original: Tensor) -> None:
        """Add pictures (B, 3, H, W) or clips (B, T, 3, H, W) in [-1, 1] and their originals."""
        if original.ndim == 5:
            rebuilt, original = rebuilt.transpose(1, 2), original.transpose(1, 2)
        if self.network is None:
            rebuilt, original = to_bytes(rebuilt), to_bytes(original)
        elif self.metric is None:
            self.metric = self._of_network(original.float().cpu())
        assert self.metric is not None
        for pixels, real in ((rebuilt, False), (original, True)):
            given = pixels.cpu() if self.network is None else pixels.float().cpu()
            try:
                self.metric.update(given, real=real)
            except RuntimeError as error:
                raise Skipped(_refusal(given, error)) from error
        self.count += len(original)

    def _of_network(self, pixels: Tensor) -> Any:
        from torchmetrics.image.fid import FrechetInceptionDistance

        assert self.network is not None
        try:
            features = self.network(pixels)
        except RuntimeError as error:
            raise Skipped(_refusal(pixels, error)) from error
        if not isinstance(features, Tensor) or features.ndim != 2:
            raise Skipped("the network does not return features (B, F)")
        return FrechetInceptionDistance(feature=Features(self.network, features.shape[1]))

    def compute(self) -> float:
        """The distance."""
        if self.count < 2 or self.metric is None:
            raise Skipped(f"there are {self.count} samples; a Frechet distance needs at least 2 samples")
        return float(self.metric.compute())


def _refusal(pixels: Tensor, error: RuntimeError) -> str:
    return f"the network cannot take {tuple(pixels.shape)}: {str(error).strip().splitlines()[-1]}"


class Features(nn.Module):
    """A network with the number of its features beside it, as torchmetrics asks for."""

    def __init__(self, network: nn.Module, num_features: int) -> None:
        super().__init__()
        self.network, self.num_features = network, num_features

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels -> features (B, F)."""
        return self.network(pixels)


def distances(
    names: Sequence[str], networks: Mapping[str, str | None], download: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Those of some distances that can be measured, and why the others cannot.

    Raises:
        FileNotFoundError: the file of a network that was named is not there.
        ValueError: it is not TorchScript.
    """
    measured: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            measured[name] = _lpips(download) if name == LPIPS else _frechet(name, networks[name], download)
        except Skipped as reason:
            skipped[name] = str(reason)
    return measured, skipped


def _lpips(download: bool) -> Perceptual:
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import VGG16_Weights

        _require_file(VGG16_Weights.DEFAULT.url, download)
        return Perceptual(LearnedPerceptualImagePatchSimilarity(net_type="vgg"))
    except (ImportError, OSError, RuntimeError) as error:
        raise Skipped(f"LPIPS needs torchmetrics, torchvision and its VGG16 weights: {error}") from error


def _frechet(name: str, file: str | None, download: bool) -> Frechet:
    if file is not None:
        return Frechet(_network(Path(file)))
    if name == RFVD:
        raise Skipped("rFVD needs a network for clips: --fvd-network FILE; torchmetrics brings none")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        _require_file(URL_INCEPTION_V3, download)
        return Frechet(None)
    except (ImportError, OSError, RuntimeError) as error:
        raise Skipped(f"rFID needs torchmetrics, torch-fidelity and its Inception weights: {error}") from error


def _network(file: Path) -> nn.Module:
    if not file.is_file():
        raise FileNotFoundError(f"there is no network {file}")
    try:
        return torch.jit.load(str(file), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{file} is not a TorchScript network: {str(error).splitlines()[0]}") from error


def _require_file(url: str, download: bool) -> None:
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not download and not file.is_file():
        raise OSError(f"{file} is not there; --download fetches it from {url}")
