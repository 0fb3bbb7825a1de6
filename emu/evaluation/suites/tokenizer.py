"""The suite "tokenizer": what a vision tokenizer keeps of pictures and clips."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from emu.evaluation.reconstruction import TokenizerOptions, evaluate
from emu.evaluation.suites.base import Log, Report, Unsuited
from emu.media import png_bytes
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.pixels.sources import Source, clip_sources, picture_sources


@dataclass(frozen=True)
class TokenizerSubject:
    """A tokenizer and what it is measured on.

    Attributes:
        tokenizer: in evaluation mode.
        images: pictures.
        clips: clips.
        options: how.
        named: what the user called the three, for the table.
    """

    tokenizer: VisionTokenizer
    images: list[Source]
    clips: list[Source]
    options: TokenizerOptions
    named: Mapping[str, str | None]


class TokenizerSuite:
    """Quality of reconstructions, use of the codebook, bits, speed; what needs weights that are not there is skipped by name."""

    summary = (
        "what a vision tokenizer keeps of pictures and clips: PSNR, SSIM, LPIPS, rFID, rFVD, use of the codebook, speed"
    )

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """See `Suite`."""
        add, usual = parser.add_argument, TokenizerOptions()
        add("--images", help='folder or file, "photographs", "dataset:NAME" or "webdataset:PATTERN"')
        add("--videos", help="folder of video files, GIFs or folders of frames, likewise")
        add("--size", type=int, help="bring every picture to a square of this side (default: sizes stay)")
        add("--frames", type=int, default=usual.frames, help="of each clip, from its start (default: %(default)s)")
        whole = "pictures that go through together (default: %(default)s)"
        add("--batch-size", type=int, default=usual.batch_size, help=whole)
        rows = "rows of the side-by-side picture (default: %(default)s)"
        add("--examples", type=int, default=usual.examples, help=rows)
        bad = "share of bad files that stops it (default: %(default)s)"
        add("--max-bad-share", type=float, default=usual.max_bad_share, help=bad)
        add("--download", action="store_true", help="fetch the weights of LPIPS and rFID where they are missing")
        add("--fid-network", metavar="FILE", help="TorchScript for rFID in place of Inception")
        add("--fvd-network", metavar="FILE", help="TorchScript for rFVD, clips (B, 3, T, H, W) to features (B, F)")

    def prepare(self, request: argparse.Namespace) -> TokenizerSubject:
        """Find pictures and clips, and read the tokenizer.

        Raises:
            FileNotFoundError, ValueError: no such tokenizer, pictures or clips, none of both given, or options that cannot work.
        """
        if request.images is None and request.videos is None:
            raise Unsuited("give --images, --videos or both")
        options = TokenizerOptions(**{field.name: getattr(request, field.name) for field in fields(TokenizerOptions)})
        images = [] if request.images is None else picture_sources(request.images)
        clips = [] if request.videos is None else clip_sources(request.videos)
        tokenizer = VisionTokenizer.from_pretrained(request.model)
        options.check(tokenizer.spatial_factor)
        named = {"tokenizer": request.model, "images_from": request.images, "videos_from": request.videos}
        return TokenizerSubject(tokenizer, images, clips, options, named)

    def run(self, subject: TokenizerSubject, log: Log) -> Report:
        """See `Suite`; the exit code is 1 where a file could not be read."""
        found, picture = evaluate(subject.tokenizer, subject.images, subject.clips, subject.options)
        for line in describe(found):
            log(line)
        return Report({**subject.named, **found}, picture=png_bytes(picture), exit_code=int(bool(found["bad_files"])))


def describe(found: Mapping[str, Any]) -> list[str]:
    """What was found, a line for each part."""
    lines = []
    for kind in ("images", "videos"):
        if kind in found:
            lines.append(", ".join(f"{name} {value:.4g}" for name, value in found[kind].items()))
    book = found["codebook"]
    lines.append(f"codebook: use {book['use']:.3f}, perplexity {book['perplexity']:.1f}, dead codes {book['dead']}")
    lines += [f"skipped {name}: {reason}" for name, reason in found["skipped"].items()]
    lines += [f"left out {count}: {reason}" for reason, count in found["bad_files"].items()]
    return lines
