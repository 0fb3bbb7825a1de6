"""`emu tokenize SOURCE --output SHARDS`: raw documents become a folder of token shards, which `emu fit` trains on.

A source is
    documents.jsonl, -                  one document or conversation per line (below), from a file, a pipe or standard input
    notes.txt                           plain text, one document per line
    photos/, clip.mp4                   a folder of pictures, animations and video files, or one such file; captions are in cat.txt or
                                        cat.json beside cat.png, or in metadata.jsonl, metadata.csv or metadata.parquet of the folder
    shards.tar, webdataset:PATTERN      WebDataset tar files
    pairs.csv, .tsv, .parquet, .arrow   tables
    dataset:NAME                        anything the datasets library opens: a save_to_disk folder, a builder, a repository
KIND:NAME forces one of lines, text, folder, webdataset or dataset.

Bad records are reported and skipped. An interrupted run resumes with the shard it was working on; records and files that changed are
read again. Launched by torchrun or srun, each process writes its share of the shards. The shards are the same for any number of processes.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from emu.cli.line_problems import add_option
from emu.data.tokenizing import SourceOptions, line_source, open_source
from emu.data.tokenizing.encoder_start import begin_loading, usual_processes
from emu.data.tokenizing.source_options import ORDERS


def main(arguments: Sequence[str]) -> int:
    """Run `emu tokenize`.

    Returns:
        The exit code: 0 where every record became a document, 1 where some did not.

    Raises:
        FileNotFoundError, ValueError: the request is wrong; nothing was written.
    """
    options = _parser().parse_args(_with_joined_size(arguments))
    if options.shard_size < 1:
        raise ValueError(f"--shard-size is {options.shard_size}; expected 1 or more")
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"--processes is {options.processes}; expected 1 or more")
    source = open_source(options.source, source_options(options))
    records = source.records()
    first = next(records, None)
    if first is None:
        raise ValueError(f"{options.source} has no documents")
    processes = options.processes or usual_processes(source.length, options.device)
    if processes > 1:
        begin_loading()
    # From here on torch is needed, which takes longer to load than many a source to encode: those processes load it meanwhile.
    from emu.cli.tokenize_shards import write_shards

    return write_shards(options, source, itertools.chain([first], records), processes)


def source_options(options: argparse.Namespace) -> SourceOptions:
    """The options of a source among those of a command."""
    return SourceOptions(
        options.caption,
        options.image,
        options.order,
        options.split,
        options.streaming,
        options.fps,
        options.clip_frames,
        options.stride,
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """The argument `source` and the options that go with it."""
    parser.add_argument("source", help="input, see above")
    parser.add_argument(
        "--caption", metavar="COLUMN", help="text column of a table or metadata, or key of JSON captions"
    )
    parser.add_argument("--image", metavar="COLUMN", help="picture column of a table")
    parser.add_argument(
        "--order",
        default=ORDERS[0],
        metavar="ORDER",
        help=f"order for captioned pictures: {' or '.join(ORDERS)} (%(default)s)",
    )
    parser.add_argument("--split", help="split of a dataset (train)")
    parser.add_argument("--streaming", action="store_true", help="stream a dataset, without a copy on disk")
    parser.add_argument("--fps", type=float, help="frames per second of clips (the file's own)")
    parser.add_argument(
        "--clip-frames", type=int, metavar="N", help="frames per clip; longer files become several clips"
    )
    parser.add_argument(
        "--stride",
        type=float,
        metavar="SECONDS",
        help="frames between the starts of two clips from one file (the clip length)",
    )


def _with_joined_size(words: Sequence[str]) -> list[str]:
    """The words with `--size 64 64` as `--size 64,64`."""
    joined = re.sub(r"(^|\0)--size[\0=](\d+)\0(\d+)(?=\0|$)", r"\1--size\0\2,\3", "\0".join(words))
    return joined.split("\0") if words else []


def _parser() -> argparse.ArgumentParser:
    lines = (line_source.__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(
        prog="emu tokenize",
        description=f"{__doc__}\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_options(parser)
    parser.add_argument(
        "--tokenizer",
        default="digits",
        help="folder of a model or of its tokenizers, or name of a bundled model (%(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, help="output folder for the shards")
    parser.add_argument(
        "--size",
        metavar="SIZE",
        help="size of pictures and frames: own (rounded to the tokenizer's factor, the default), HEIGHT,WIDTH (or HEIGHT WIDTH), "
        "area=PIXELS, or area=LEAST:MOST as in Emu3",
    )
    parser.add_argument("--shard-size", type=int, default=4096, help="documents per shard (%(default)s)")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="worker processes that read and encode (one per CPU)"
    )
    parser.add_argument("--device", default="cpu", help="device for encoding pictures, e.g. cuda (%(default)s)")
    parser.add_argument(
        "--loss-on", choices=("assistant", "all"), default="assistant", help="which messages have loss (%(default)s)"
    )
    add_option(parser)
    return parser
