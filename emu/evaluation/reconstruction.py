"""What a vision tokenizer keeps of pictures and clips: quality, use of the codebook, bits, speed.

    found, picture = evaluate(tokenizer, picture_sources("photos"), [], TokenizerOptions())

Pictures keep their size (or are brought to one, `TokenizerOptions.size`); those of equal size go through together, none is padded.
Where a side is not a multiple of the tokenizer's factor, its edges are cut evenly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from emu.evaluation.perceptual import LPIPS, RFID, RFVD, Skipped, distances
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.pixels.comparison import side_by_side
from emu_tokenizers.pixels.images import BadPicture
from emu_tokenizers.pixels.metrics import CodeCounter, psnr, ssim
from emu_tokenizers.pixels.sources import Source
from emu_tokenizers.pixels.transforms import to_pixels
from emu_tokenizers.training.pixel_samples import Samples

SSIM_WINDOW = 11


@dataclass(frozen=True)
class TokenizerOptions:
    """How to measure.

    Attributes:
        size: side of the square that every picture is brought to (shorter side resized, then the middle); None keeps sizes.
        frames: of each clip, from its start.
        batch_size: pictures that go through together; clips go through one by one.
        examples: pictures in the side-by-side picture.
        max_bad_share: share of unreadable files that stops the measurement.
        download: whether weights of networks may be downloaded.
        fid_network: TorchScript file to take for rFID instead of Inception.
        fvd_network: TorchScript file for rFVD.
    """

    size: int | None = None
    frames: int = 16
    batch_size: int = 16
    examples: int = 4
    max_bad_share: float = 0.05
    download: bool = False
    fid_network: str | None = None
    fvd_network: str | None = None

    def check(self, factor: int) -> None:
        """Raise ValueError where the numbers cannot work with a tokenizer of this factor."""
        for name in ("frames", "batch_size", "examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.size is not None and (self.size < factor or self.size % factor):
            raise ValueError(f"size is {self.size}; expected a multiple of the tokenizer's factor {factor}")


class Measurement:
    """Sums over pictures, or over clips."""

    def __init__(self, tokenizer: VisionTokenizer, metrics: dict[str, Any]) -> None:
        self.tokenizer, self.metrics = tokenizer, metrics
        self.sums: dict[str, list[float]] = {"psnr": [], "ssim": []}
        self.seconds = {"encode": 0.0, "decode": 0.0}
        self.pixels = self.codes = 0
        self.examples: list[tuple[Tensor, Tensor, str]] = []
        self.skipped: dict[str, str] = {}

    def add(self, pixels: Tensor, counter: CodeCounter, examples: int) -> None:
        """Measure a batch of pictures (B, 3, H, W) or of clips (B, T, 3, H, W)."""
        clip = pixels.ndim == 5
        if not self.pixels:
            # The first call of all sets up what later ones find ready; that is not part of the tokenizer's speed.
            self.tokenizer.encode(pixels[:1])
        start = time.perf_counter()
        codes = self.tokenizer.encode(pixels)
        middle = time.perf_counter()
        found = self.tokenizer.decode(codes, frames=pixels.shape[1]) if clip else self.tokenizer.decode(codes)
        self.seconds["encode"] += middle - start
        self.seconds["decode"] += time.perf_counter() - middle
        counter.add(codes)
        height, width = pixels.shape[-2:]
        self.pixels += pixels.numel() // pixels.shape[-3]
        self.codes += codes.numel() // len(self.tokenizer.codebook_sizes)
        quality = psnr(found, pixels).flatten().tolist()
        self.sums["psnr"] += quality
        if min(height, width) >= SSIM_WINDOW:
            self.sums["ssim"] += ssim(found, pixels).tolist()
        else:
            self.skipped["ssim"] = f"a picture of {width}x{height} pixels is smaller than the window of {SSIM_WINDOW}"
        for name, metric in list(self.metrics.items()):
            try:
                metric.add(found.clamp(-1, 1), pixels)
            except Skipped as reason:
                self.skipped[name] = str(reason)
                del self.metrics[name]
        frames, originals = (x[:, 0] if clip else x for x in (found, pixels))
        for index in range(min(len(frames), examples - len(self.examples))):
            text = (
                f"{quality[index * (pixels.shape[1] if clip else 1)]:.2f} dB, {self.bits_per_pixel:.3f} bits per pixel"
            )
            self.examples.append((originals[index].float(), frames[index].float(), text))

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the codes over pixels of all frames, each code at the logarithm of its codebook's size."""
        return self.codes * sum(math.log2(size) for size in self.tokenizer.codebook_sizes) / max(self.pixels, 1)

    def table(self, count: int, unit: str) -> dict[str, Any]:
        """The figures; those that were skipped are not in it."""
        table: dict[str, Any] = {unit: count, "bits_per_pixel": self.bits_per_pixel}
        table |= {name: sum(values) / len(values) for name, values in self.sums.items() if values}
        for name, metric in self.metrics.items():
            try:
                table[name] = metric.compute()
            except Skipped as reason:
                self.skipped[name] = str(reason)
        table |= {f"{name}_{unit}_per_second": count / max(spent, 1e-9) for name, spent in self.seconds.items()}
        return table


def evaluate(
    tokenizer: VisionTokenizer, images: Sequence[Source], clips: Sequence[Source], options: TokenizerOptions
) -> tuple[dict[str, Any], Image.Image]:
    """Measure a tokenizer.

    Args:
        tokenizer: in evaluation mode.
        images: pictures.
        clips: clips.
        options: how; see `TokenizerOptions.check`.

    Returns:
        The figures (those that could not be measured are named under "skipped", with the reason), and originals and
        reconstructions side by side.

    Raises:
        ValueError: too many files that cannot be read, or nothing left to measure.
    """
    samples = Samples(len(images) + len(clips), options.max_bad_share)
    counter = CodeCounter(tokenizer.codebook_sizes)
    found: dict[str, Any] = {"skipped": {}}
    examples: list[tuple[Tensor, Tensor, str]] = []
    for kind, sources, wanted in (("images", images, (LPIPS, RFID)), ("videos", clips, (LPIPS, RFVD))):
        if not sources:
            continue
        networks = {RFID: options.fid_network, RFVD: options.fvd_network}
        metrics, skipped = distances(wanted, networks, options.download)
        measured, count = Measurement(tokenizer, metrics), 0
        measured.skipped |= skipped
        for batch in batches(sources, samples, tokenizer.spatial_factor, options, clip=kind == "videos"):
            measured.add(batch.to(tokenizer.device), counter, options.examples)
            count += len(batch)
        if not count:
            raise ValueError(f"there are no {kind} to measure: {dict(samples.bad)}")
        found[kind] = measured.table(count, kind)
        found["skipped"] |= {f"{kind}/{name}": reason for name, reason in measured.skipped.items()}
        examples += measured.examples
    if not examples:
        raise ValueError("give pictures, clips or both")
    use = counter.measure()
    sizes = list(tokenizer.codebook_sizes)
    found["codebook"] = {"sizes": sizes, "use": use.use, "perplexity": use.perplexity, "dead": use.dead}
    found["bad_files"] = dict(samples.bad)
    return found, side_by_side(examples)


def batches(
    sources: Sequence[Source], samples: Samples, factor: int, options: TokenizerOptions, clip: bool
) -> Iterator[Tensor]:
    """Pictures of equal size in batches, (B, 3, H, W), in the order in which batches fill; clips one by one."""
    waiting: dict[torch.Size, list[Tensor]] = {}
    for source in sources:
        frames = samples.read(source, options.frames if clip else 1)
        if not frames:
            continue
        try:
            pixels = torch.stack([to_pixels(fit(frame, factor, options.size)) for frame in frames])
        except BadPicture as error:
            samples.leave_out(source, error)
            continue
        if clip:
            yield pixels[None]
            continue
        bucket = waiting.setdefault(pixels.shape, [])
        bucket.append(pixels[0])
        if len(bucket) == options.batch_size:
            yield torch.stack(waiting.pop(pixels.shape))
    for bucket in waiting.values():
        yield torch.stack(bucket)


def fit(image: Image.Image, factor: int, size: int | None) -> Image.Image:
    """The middle of a picture, its sides multiples of the factor, or a square of `size`.

    Raises:
        BadPicture: a side below the factor.
    """
    if min(image.size) < factor:
        raise BadPicture("too small", f"a picture of {image.width}x{image.height} pixels is below the factor {factor}")
    if size is not None:
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    width, height = (size, size) if size is not None else (side - side % factor for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
