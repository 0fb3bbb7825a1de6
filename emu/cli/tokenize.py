"""`emu tokenize SOURCE --output SHARDS`: raw documents become a folder of token shards, which `emu fit` trains on.

A source is
    documents.jsonl, -                  one document or conversation a line (below), from a file, a pipe or standard input
    notes.txt                           plain text, a document a line
    photos/, clip.mp4                   a folder of pictures, animations and video files, or one of them; captions stand in cat.txt or
                                        cat.json beside cat.png, or in metadata.jsonl, metadata.csv or metadata.parquet of the folder
    shards.tar, webdataset:PATTERN      WebDataset tar files
    pairs.csv, .tsv, .parquet, .arrow   tables
    dataset:NAME                        whatever the datasets library opens: a folder of save_to_disk, a builder, a repository
KIND:NAME says which of lines, text, folder, webdataset or dataset it is.

Bad records are reported and left out. A run that was stopped goes on with the shard that it was at; records and files that changed are
read again. Started by torchrun or srun, each process makes its share of the shards. The shards are the same for any number of processes.
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
    parser.add_argument("source", help="what is read, see above")
    parser.add_argument(
        "--caption", metavar="COLUMN", help="of a table, metadata or JSON captions: the column, or key, of texts"
    )
    parser.add_argument("--image", metavar="COLUMN", help="of a table: the column of pictures")
    parser.add_argument(
        "--order",
        default=ORDERS[0],
        metavar="ORDER",
        help=f"of captioned pictures: {' or '.join(ORDERS)} (%(default)s)",
    )
    parser.add_argument("--split", help="of a dataset (train)")
    parser.add_argument(
        "--streaming", action="store_true", help="read a dataset as it comes, without a copy on the disk"
    )
    parser.add_argument("--fps", type=float, help="frames a second of clips (the file's own)")
    parser.add_argument(
        "--clip-frames", type=int, metavar="N", help="frames of a clip; longer files become several clips"
    )
    parser.add_argument(
        "--stride", type=float, metavar="SECONDS", help="between the starts of two clips of a file (their length)"
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
        "--tokenizer", default="digits", help="folder of a model or of its tokenizers, or a bundled model (%(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--size",
        metavar="SIZE",
        help="of pictures and frames: own (rounded to the tokenizer's factor, the default), HEIGHT,WIDTH (or HEIGHT WIDTH), area=PIXELS, "
        "or area=LEAST:MOST as Emu3",
    )
    parser.add_argument("--shard-size", type=int, default=4096, help="documents a shard (%(default)s)")
    parser.add_argument("--processes", type=int, metavar="N", help="that read and encode (one for each processor)")
    parser.add_argument("--device", default="cpu", help="that pictures are encoded on, e.g. cuda (%(default)s)")
    parser.add_argument(
        "--loss-on", choices=("assistant", "all"), default="assistant", help="which messages are learned (%(default)s)"
    )
    add_option(parser)
    return parser
