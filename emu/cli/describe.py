"""`emu describe`: text about pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from emu.pipeline import Emu
from emu_tokenizers.pixels.images import open_image


def main(arguments: Sequence[str]) -> int:
    """Run `emu describe`.

    Returns:
        The exit code: 1 where a picture could not be read, 0 otherwise.
    """
    options = _parser().parse_args(arguments)
    emu = Emu.from_pretrained(options.model, device=options.device)
    size = tuple(options.size) if options.size else emu.defaults.size
    pictures: dict[Path, Image.Image] = {}
    bad = 0
    for file in options.images:
        try:
            pictures[file] = _fitted(open_image(file), size)
        except (ValueError, FileNotFoundError) as error:
            print(error, file=sys.stderr)
            bad += 1
    files = list(pictures)
    with tqdm(total=len(files), unit="image", disable=len(files) <= options.batch_size, dynamic_ncols=True) as bar:
        for start in range(0, len(files), options.batch_size):
            batch = files[start : start + options.batch_size]
            question = [options.prompt] if options.prompt else []
            texts = emu.generate_text(
                [[pictures[file], *question] for file in batch],
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                seed=options.seed,
            )
            for file, text in zip(batch, texts, strict=True):
                line = (
                    json.dumps({"image": str(file), "text": text}, ensure_ascii=False)
                    if options.json
                    else f"{file}: {text}"
                )
                tqdm.write(line)
            bar.update(len(batch))
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="emu describe", description="Write text about pictures.")
    parser.add_argument("images", type=Path, nargs="+", help="picture files")
    parser.add_argument("--model", default="digits", help="folder of a trained model, or a bundled one (%(default)s)")
    parser.add_argument("--prompt", default="Describe it.", help="question behind the picture (%(default)s)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="what pictures are resized to (the model's own)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at a time (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of plain text")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    return parser


def _fitted(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """The picture at (height, width), or as it is where no size is known."""
    if size is None or image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
