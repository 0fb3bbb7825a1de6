"""`emu edit-images`: pictures drawn anew as words say.

emu edit-images "make it red" --picture cat.png --picture dog.png --output edited
emu edit-images edits.jsonl --output edited        {"picture": "cat.png", "prompt": "make it red", "seed": 3, ...} a line
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from emu.cli.batch import Batch, load, parser
from emu.cli.generate_images import picture, save
from emu.cli.prompts import Request, check_words
from emu.lines import BadLine
from emu.pipeline import ImageResult
from emu_tokenizers.pixels.images import existing_file


def main(arguments: Sequence[str]) -> int:
    """Run `emu edit-images`.

    Returns:
        The exit code: 1 where a line of a file was bad, 0 otherwise.
    """
    words = parser(
        "edit-images",
        "Draw pictures anew as prompts say. Run it again to go on after a stop.",
        "picture (a file, or a list of files that the prompt is about), size, guidance_scale, negative_prompt, temperature, top_k, top_p",
    )
    words.add_argument(
        "--picture",
        action="append",
        default=[],
        metavar="FILE",
        help="what every prompt is about that names no picture of its own; give it several times for several pictures",
    )
    options = words.parse_args(arguments)
    check_words(options.prompts)
    given = [{"picture": os.path.abspath(existing_file(name))} for name in options.picture]
    emu = load(options)
    batch = Batch("emu edit-images", options, emu, "image", "image", extra=("picture",), given=given or [{}])

    def document(request: Request) -> list[Any]:
        if request.items is not None:
            return list(batch.document(request))
        if "picture" not in request.extra:
            raise BadLine("wrong value", 'no picture; give --picture FILE, or "picture" in the line')
        named = request.extra["picture"]
        files = named if isinstance(named, list) else [named]
        return batch.sizing(request).values([*({"image": file} for file in files), request.prompt])

    def generate(requests: list[Request], documents: list[Any]) -> Iterator[ImageResult]:
        return emu.iter_images(documents, **batch.drawn(requests))

    return batch.run(document, generate, save, picture)
