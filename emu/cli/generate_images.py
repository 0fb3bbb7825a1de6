"""`emu generate-images`: one picture for each line of a file of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from emu.cli.batch import SETTINGS, LineReader, Manifest, Request, load, parser, run
from emu_tokenizers.pixels.images import open_image


def main(arguments: Sequence[str]) -> int:
    """Run `emu generate-images`.

    Returns:
        The exit code: 1 where a line of the file was bad, 0 otherwise.
    """
    options = parser(
        "generate-images",
        "Draw one picture for each line of a file of prompts. Run it again to go on after a stop.",
        "size, guidance_scale, negative_prompt, temperature, top_k, top_p",
    ).parse_args(arguments)
    emu = load(options)
    given = {name: getattr(options, name) for name in SETTINGS}
    defaults = emu.defaults.updated(**{**given, "size": options.size and tuple(options.size)})
    reader = LineReader(defaults, SETTINGS, emu.spatial_factor, options.seed)
    requests, problems = reader.read(options.prompts)
    options.output.mkdir(parents=True, exist_ok=True)

    def make(batch: list[Request]) -> list[list[Path]]:
        settings = batch[0].settings
        results = emu.generate_images(
            [request.prompt for request in batch],
            **{name: getattr(settings, name) for name in SETTINGS},
            seed=[request.seed for request in batch],
            window=options.window,
            batch_size=options.batch_size,
        )
        files = [options.output / f"{request.stem}.png" for request in batch]
        for result, file in zip(results, files, strict=True):
            result.save(file)
        return [[file] for file in files]

    manifest = Manifest(options.output, f"{options.model} {emu.fingerprint}")
    return run(requests, problems, manifest, make, picture, columns=8, batch_size=options.batch_size, unit="image")


def picture(files: list[Path]) -> Image.Image:
    """What the overview shows of a line."""
    return open_image(files[0])
