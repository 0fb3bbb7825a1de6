"""Pictures to token shards: `emu tokenize` in two processes beside one process that encodes a picture at a time, as Emu did before.

OMP_WAIT_POLICY=PASSIVE python benchmarks/data_tokenizing.py
OMP_WAIT_POLICY=PASSIVE python benchmarks/data_tokenizing.py --peer "OTHER/.venv/bin/python -m emu"     # the command of another checkout

The latter from a folder outside of both checkouts: Python's -m prefers what lies in the working folder.

Two thousand captioned pictures of 64x64 and the bundled digits tokenizer. Times are of whole commands, from the start of Python to the
last file, and the processor time is that of all their processes; the two run in turns, each first in every other round. Then all codes
are compared. Where two differ, the latents of that cell are computed both ways, and what is printed is by how much the one code is nearer
than the other, beside how far the two latents lie apart: convolutions of 32 pictures add up in another order than those of one, so that
a code that is nearer by less than that may fall either way. The share of codes for which that is expected is printed too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emu.data.shards import TokenizedDocument, TokenShards, write_manifest, write_shard
from emu.documents import CodeSegment, Text
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu_tokenizers.pixels.transforms import to_pixels

PICTURES, SIDE = 2000, 64
LOOKED_AT = 128
"""Pictures from which the share of ties is estimated."""
SHARD = 4096
ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER: processes whose parent has ended become ours, so that their time is counted."""


def write_pictures(folder: Path, count: int) -> Path:
    """Smooth coloured pictures with a disc each, and the file of their documents."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    lines = []
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        pixels = np.array(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        y, x = draw.integers(12, SIDE - 12, 2)
        pixels[(rows - y) ** 2 + (columns - x) ** 2 < draw.integers(20, 144)] = draw.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(json.dumps({"items": [f"picture {number}", {"image": f"{number}.png"}]}) + "\n")
    (folder / "documents.jsonl").write_text("".join(lines))
    return folder / "documents.jsonl"


def one_at_a_time(source: Path, output: Path) -> None:
    """What the command did before: a line, its picture, its codes, then the next line."""
    tokenizer = MultimodalTokenizer.from_pretrained("digits")
    documents = []
    for line in source.read_text().splitlines():
        caption, picture = json.loads(line)["items"]
        items = [Text(caption), Image.open(source.parent / picture["image"]).convert("RGB")]
        document = tokenizer.document(items)
        span = document.spans[0]
        documents.append(TokenizedDocument(document, caption=(span.start, span.length)))
    output.mkdir()
    for number, start in enumerate(range(0, len(documents), SHARD)):
        write_shard(output, number, documents[start : start + SHARD], tokenizer.vocabulary, {})
    write_manifest(output, -(-len(documents) // SHARD), tokenizer.vocabulary, tokenizer.fingerprints)


def seconds(command: list[str]) -> tuple[float, float]:
    """(wall, processor) seconds of a command and of all processes that it starts."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - start
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def codes_of(folder: Path, tokenizer: MultimodalTokenizer) -> torch.Tensor:
    """Codes of the picture of each document, (documents, h, w)."""
    shards = TokenShards(folder)
    found = []
    for number in range(len(shards)):
        segments = tokenizer.layout.parse(shards.document(number, 0).ids.tolist())
        found += [segment.codes for segment in segments if isinstance(segment, CodeSegment)]
    return torch.stack(found)


def compare(ours: torch.Tensor, theirs: torch.Tensor, pictures: Path, vision: torch.nn.Module) -> None:
    """Print the share of codes that differ, and for each of them how near a tie it is."""
    differing = (ours != theirs).nonzero().tolist()
    print(f"{len(differing)} of {ours.numel()} codes differ ({len(differing) / ours.numel():.2e})")
    codes = vision.quantizer.weight.double()
    for number, row, column in differing:
        first = number // 32 * 32
        batch = torch.stack([to_pixels(Image.open(pictures / f"{n}.png")) for n in range(first, first + 32)])
        batch = batch.contiguous(memory_format=torch.channels_last)
        latents = [
            vision.latents(some)[at, :, 0, row, column].double()
            for some, at in ((batch, number - first), (batch[number - first :][:1].contiguous(), 0))
        ]
        pair = codes[[ours[number, row, column], theirs[number, row, column]]]
        near, far = ((latents[1] - pair) ** 2).sum(1).sqrt().tolist()
        print(
            f"picture {number}, cell {row},{column}: distances {near:.9g} and {far:.9g}, {abs(near - far):.1e} apart; "
            f"latents of a batch and of the picture alone {float((latents[0] - latents[1]).norm()):.1e} apart"
        )


def expect(pictures: Path, vision: torch.nn.Module) -> None:
    """Print the share of codes that rounding alone is expected to change, from some batches of pictures.

    A code changes where the next best one is farther by less than rounding moves that difference, in the half of the cases in which it
    moves towards the other. Such cells are too rare to be counted; they are counted at a thousand times the difference, since differences
    are spread evenly that near to 0.
    """
    codes, moved, margins = vision.quantizer.weight.double(), [], []
    for first in range(0, LOOKED_AT, 32):
        batch = torch.stack([to_pixels(Image.open(pictures / f"{n}.png")) for n in range(first, first + 32)])
        together = vision.latents(batch.contiguous(memory_format=torch.channels_last))
        alone = torch.cat([vision.latents(picture[None]) for picture in batch])
        distances = [torch.cdist(x.double().movedim(1, -1).flatten(0, -2), codes) for x in (alone, together)]
        best = distances[0].topk(2, dim=1, largest=False).indices
        margin, margin_together = (found.gather(1, best).diff(dim=1)[:, 0] for found in distances)
        moved.append((margin_together - margin).abs())
        margins.append(margin)
    step = float(torch.cat(moved).mean())
    near = float((torch.cat(margins) < 1000 * step).double().mean())
    print(
        f"differences of distances move by {step:.1e} on average: about {near / 2000:.1e} of all codes are expected to differ"
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--peer", help="command that is measured in place of one picture at a time")
    parser.add_argument("--one-at-a-time", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_at_a_time:
        one_at_a_time(*arguments.one_at_a_time)
        return
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source, outputs = write_pictures(folder, arguments.pictures), (folder / "ours", folder / "theirs")
        words = ["tokenize", str(source), "--tokenizer", "digits", "--output"]
        theirs = [sys.executable, __file__, "--one-at-a-time", str(source), str(outputs[1])]
        if arguments.peer:
            theirs = [*shlex.split(arguments.peer), *words, str(outputs[1])]
        commands = ([sys.executable, "-m", "emu", *words, str(outputs[0]), "--processes", "2"], theirs)
        ratios = []
        for number in range(arguments.rounds):
            times = {}
            for which in (0, 1) if number % 2 else (1, 0):
                shutil.rmtree(outputs[which], ignore_errors=True)
                times[which] = seconds(commands[which])
            ratios.append([theirs / ours for ours, theirs in zip(times[0], times[1], strict=True)])
            (wall, processor), (their_wall, their_processor) = times[0], times[1]
            print(f"wall {wall:.1f} and {their_wall:.1f} s, processor {processor:.1f} and {their_processor:.1f} s")
        wall, processor = (statistics.median(values) for values in zip(*ratios, strict=True))
        print(f"times faster, median of {arguments.rounds}: {wall:.2f} in wall, {processor:.2f} in processor time")
        tokenizer = MultimodalTokenizer.from_pretrained("digits")
        compare(codes_of(outputs[0], tokenizer), codes_of(outputs[1], tokenizer), folder, tokenizer.codecs["vision"])
        expect(folder, tokenizer.codecs["vision"])


if __name__ == "__main__":
    main()
