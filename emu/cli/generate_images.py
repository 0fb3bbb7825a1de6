"""`emu generate-images`: generate one picture per prompt or document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from emu.cli.batch import Batch
from emu.cli.batch_options import load, parser
from emu.cli.prompts import Request
from emu.generation.limits import check_whole
from emu.pipeline import ImageResult
from emu_tokenizers.pixels.images import open_image


def main(arguments: Sequence[str]) -> int:
    """Run `emu generate-images`.

    Returns:
        The exit code: 1 where a line of a file was bad, 0 otherwise.
    """
    words = parser(
        "generate-images",
        "Generate one picture per prompt. Run it again to resume.",
        "size, guidance_scale, negative_prompt, temperature, top_k, top_p",
    )
    words.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="generate N pictures per line, with seeds counting up from --seed for every line, and record their codes in the manifest, "
        "for emu rank",
    )
    options = words.parse_args(arguments)
    candidates = options.candidates
    seeds = () if candidates is None else range(check_whole("--candidates", candidates, least=1))
    emu = load(options)
    given = [{"seed": options.seed + number} for number in seeds] or [{}]
    note = None if candidates is None else codes
    batch = Batch("emu generate-images", options, emu, "image", "image", given=given, note=note)

    def generate(requests: list[Request], documents: list[Any]) -> Iterator[ImageResult]:
        return emu.iter_images(documents, **batch.drawn(requests))

    return batch.run(batch.document, generate, save, picture)


def codes(result: ImageResult) -> dict[str, Any]:
    """What the manifest holds of a candidate: the codes that were drawn."""
    return {"codes": result.codes.tolist()}


def save(result: ImageResult, stem: Path) -> list[Path]:
    """Write a picture; returns its file."""
    file = stem.with_name(f"{stem.name}.png")
    result.save(file)
    return [file]


def picture(files: list[Path]) -> Image.Image:
    """What the overview shows of a request."""
    return open_image(files[0])
