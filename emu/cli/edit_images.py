"""`emu edit-images`: edit pictures according to prompts.

emu edit-images "make it red" --picture cat.png --picture dog.png --output edited
emu edit-images edits.jsonl --output edited        {"picture": "cat.png", "prompt": "make it red", "seed": 3, ...} per line
emu edit-images "a cat in a hat" --picture cat.png --mask head.png --output edited       redrawn where the mask is white
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emu.cli.batch import Batch
from emu.cli.batch_options import load, parser
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
        "Edit pictures according to prompts. Run it again to resume.",
        "picture (a file, or a list of files that the prompt is about), mask (a file, white where to draw anew), size, guidance_scale, "
        "negative_prompt, temperature, top_k, top_p",
    )
    words.add_argument(
        "--picture",
        action="append",
        default=[],
        metavar="FILE",
        help="picture for prompts that name none; repeat the option for several pictures",
    )
    words.add_argument(
        "--mask",
        metavar="FILE",
        help="mask of the picture's size, white where to redraw; prompts are then captions of the whole new picture",
    )
    options = words.parse_args(arguments)
    check_words(options.prompts)
    mask = {} if options.mask is None else {"mask": os.path.abspath(existing_file(options.mask))}
    given = [{"picture": os.path.abspath(existing_file(name)), **mask} for name in options.picture]
    emu = load(options)
    batch = Batch("emu edit-images", options, emu, "image", "image", extra=("picture", "mask"), given=given or [mask])

    def document(request: Request) -> Any:
        if request.items is None and "picture" not in request.extra:
            raise BadLine("wrong value", 'no picture; give --picture FILE, or "picture" in the line')
        if "mask" in request.extra:
            return masked(request)
        if request.items is not None:
            return list(batch.document(request))
        named = request.extra["picture"]
        files = named if isinstance(named, list) else [named]
        return batch.sizing(request).values([*({"image": file} for file in files), request.prompt])

    def generate(requests: list[Request], documents: list[Any]) -> Iterator[ImageResult]:
        pairs = zip(requests, documents, strict=True)
        for has_mask, group in itertools.groupby(pairs, lambda pair: "mask" in pair[0].extra):
            some, written = (list(column) for column in zip(*group, strict=True))
            if has_mask:
                pictures, prompts, masks = (list(column) for column in zip(*written, strict=True))
                yield from emu.edit_images(pictures, prompts, mask=masks, **batch.drawn(some))
            else:
                yield from emu.iter_images(written, **batch.drawn(some))

    return batch.run(document, generate, save, picture)


def masked(request: Request) -> tuple[Path, str, Path]:
    """Picture, caption and mask of a request.

    Raises:
        BadLine: it names several pictures, or no file.
    """
    picture, mask = request.extra.get("picture"), request.extra["mask"]
    if request.items is not None or not isinstance(picture, str) or not isinstance(mask, str):
        raise BadLine("wrong value", "a mask goes with one picture and one prompt; expected the names of two files")
    return request.folder / picture, request.prompt, request.folder / mask
