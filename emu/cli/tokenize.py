"""`emu tokenize`: a file of documents becomes a folder of token shards, which `emu fit` trains on.

A line of the file is a document, {"items": [...]}, whose items are, in order:

    "text", or {"text": "Describe it.", "weight": 0}     weight of its loss; 0 for prompts
    {"caption": "a red circle", "weight": 0.1}           text that training may leave out, for guidance; one a document
    {"image": "cat.png"}                                 a picture file, named from where the document file lies
    {"frames": ["0.png", "1.png"], "fps": 8}             a clip; one file is a whole video or animation, or a folder of frames

Bad lines are reported with their number and left out. A run that was stopped goes on with the shard that it was at.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from emu.data.shards import TokenizedDocument, read_entry, write_manifest, write_shard
from emu.documents import Text, Video
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu_tokenizers.pixels.images import open_image

KINDS = {"text": {"weight"}, "caption": {"weight"}, "image": {"weight"}, "frames": {"fps"}}
"""What an item is told by, and the keys that it may have besides."""


def main(arguments: Sequence[str]) -> int:
    """Run `emu tokenize`.

    Returns:
        The exit code: 1 where a line was bad, 0 otherwise.
    """
    options = _parser().parse_args(arguments)
    if not options.documents.is_file():
        raise FileNotFoundError(
            f'no file {options.documents}; expected one JSON object a line, e.g. {{"items": ["a cat", {{"image": "cat.png"}}]}}'
        )
    if options.shard_size < 1:
        raise ValueError(f"--shard-size is {options.shard_size}; expected 1 or more")
    lines = [line for line in enumerate(options.documents.read_bytes().splitlines(), start=1) if line[1].strip()]
    if not lines:
        raise ValueError(f"{options.documents} has no documents")
    tokenizer = MultimodalTokenizer.from_pretrained(options.tokenizer)
    if tokenizer.vision is not None:
        tokenizer.vision.eval()
    reader = DocumentReader(tokenizer, options.documents.parent, tuple(options.size) if options.size else None)
    num_bad = _write(lines, reader, options.output, options.shard_size)
    print(f"{len(lines) - num_bad} documents in {options.output}, {num_bad} bad lines")
    return 1 if num_bad else 0


def _write(lines: Sequence[tuple[int, bytes]], reader: DocumentReader, output: Path, shard_size: int) -> int:
    """Write the shards that are not there yet; returns the number of bad lines in all of them."""
    tokenizer, remaining, num_bad, number = reader.tokenizer, iter(lines), 0, 0
    with tqdm(total=len(lines), unit="document", dynamic_ncols=True) as bar:
        while block := list(islice(remaining, shard_size)):
            about: dict[str, Any] = {"input": _digest(block, reader), "problems": {}}
            entry = read_entry(output, number)
            if entry is None or entry["about"]["input"] != about["input"]:
                documents = []
                for line, text in block:
                    try:
                        documents.append(reader.read(text))
                    except (ValueError, TypeError, FileNotFoundError) as error:
                        about["problems"][line] = str(error)
                    bar.update()
                write_shard(output, number, documents, tokenizer.vocabulary, about)
            else:
                about = entry["about"]
                bar.update(len(block))
            for line, problem in about["problems"].items():
                tqdm.write(f"line {line}: {problem}", file=sys.stderr)
            num_bad += len(about["problems"])
            number += 1
    write_manifest(output, number, tokenizer.vocabulary, tokenizer.fingerprints)
    return num_bad


def _digest(block: Sequence[tuple[int, bytes]], reader: DocumentReader) -> str:
    """What a shard is made from: its lines, the tokenizers, the size of pictures."""
    told = json.dumps(
        [reader.tokenizer.fingerprints, reader.tokenizer.layout.name, reader.size, str(reader.folder.resolve())]
    )
    return hashlib.sha256(told.encode() + b"\n".join(b"%d %s" % line for line in block)).hexdigest()


class DocumentReader:
    """Reads lines of a document file.

    Args:
        tokenizer: of the documents.
        folder: that file names start from.
        size: (height, width) that pictures are cropped and resized to; None takes them as they are.
    """

    def __init__(self, tokenizer: MultimodalTokenizer, folder: Path, size: tuple[int, int] | None = None) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.size = size

    @torch.no_grad()
    def read(self, line: bytes) -> TokenizedDocument:
        """The document of a line.

        Raises:
            ValueError, TypeError, FileNotFoundError: what is wrong with it.
        """
        try:
            table = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"no JSON: {error}") from error
        if (
            not isinstance(table, dict)
            or set(table) != {"items"}
            or not isinstance(table["items"], list)
            or not table["items"]
        ):
            raise ValueError('expected {"items": [...]} with one item or more')
        segments = [self.tokenizer.segments([self.item(item)])[0] for item in table["items"]]
        document = self.tokenizer.layout.build(segments)
        captions = [i for i, item in enumerate(table["items"]) if isinstance(item, dict) and "caption" in item]
        if len(captions) > 1:
            raise ValueError(f"{len(captions)} captions; a document has at most one")
        if not captions or len(segments) == 1:
            return TokenizedDocument(document)
        span = document.spans[captions[0]]
        return TokenizedDocument(document, caption=(span.start, span.length))

    def item(self, item: Any) -> Any:
        """An item as the tokenizer takes it."""
        if isinstance(item, str):
            return Text(item)
        kinds = set(item) & set(KINDS) if isinstance(item, dict) else set()
        if len(kinds) != 1 or set(item) - kinds - KINDS[next(iter(kinds))]:
            raise ValueError(f"an item is a text or an object with one of {list(KINDS)}, got {json.dumps(item)[:80]}")
        (kind,) = kinds
        if kind in ("text", "caption"):
            return Text(item[kind], float(item.get("weight", 1.0)))
        if kind == "image":
            return self.picture(item[kind])
        names = [item[kind]] if isinstance(item[kind], str) else item[kind]
        return Video.open([self.folder / name for name in names], fps=item.get("fps"), size=self.size)

    def picture(self, name: str) -> Image.Image:
        """A picture file, fitted to the size."""
        image = open_image(self.folder / name)
        if self.size is None:
            return image
        return ImageOps.fit(image, (self.size[1], self.size[0]), Image.Resampling.LANCZOS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu tokenize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=Path, help="file with one document a line")
    parser.add_argument(
        "--tokenizer", default="digits", help="folder of a model or of its tokenizers, or a bundled model (%(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="crop and resize pictures to this"
    )
    parser.add_argument("--shard-size", type=int, default=4096, help="documents a shard (%(default)s)")
    return parser
