"""`emu shards`: inspect folders of token shards, check every byte, merge them into one.

emu shards show FOLDER ...
emu shards verify FOLDER ...
emu shards merge FOLDER ... --output NEW       # also rewrites folders of an earlier format version
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emu.data.shards import MANIFEST, TokenShards, contents, merge
from emu.multimodal_tokenizer import MultimodalTokenizer

SHOWN = 12
"""Kinds of segments and loss weights that are listed, the most frequent ones."""


def main(arguments: Sequence[str]) -> int:
    """Run `emu shards`.

    Returns:
        The exit code: 1 where a folder is damaged, 0 otherwise.

    Raises:
        FileNotFoundError, ValueError: the request is wrong, or a folder cannot be opened.
    """
    options = _parser().parse_args(arguments)
    return options.run(options)


def _show(options: argparse.Namespace) -> int:
    for folder in options.folders:
        print("\n".join(describe(TokenShards(folder))))
    return 0


def describe(shards: TokenShards) -> list[str]:
    """Lines about a folder: documents, tokens, lengths, segments, loss weights.

    Raises:
        DamagedShards: a file does not hold what was written.
    """
    found = contents(shards)
    lengths, manifest = found.lengths, shards.manifest
    lines = [
        f"{shards.folder}: {len(shards):,} documents, {int(lengths.sum()):,} tokens in {len(manifest.shards)} shards (format version "
        f"{manifest.version})",
        f"  vocabulary    {shards.vocabulary.size:,} ids; made by "
        + ", ".join(f"{name} {fingerprint}" for name, fingerprint in shards.fingerprints.items()),
    ]
    if len(lengths):
        low, middle, high = (int(value) for value in np.quantile(lengths, (0.05, 0.5, 0.95)))
        lines.append(
            f"  lengths       {lengths.min()} to {lengths.max()} tokens, mean {lengths.mean():.1f}; 5 % are below {low}, half below "
            f"{middle}, 95 % below {high}"
        )
    ordered = sorted(found.spans.items(), key=lambda item: -item[1][1])
    for words, (number, tokens) in ordered[:SHOWN]:
        lines.append(f"  segments      {number:,} of {words}, {tokens:,} tokens")
    if len(ordered) > SHOWN:
        lines.append(f"  segments      {len(ordered) - SHOWN} more kinds")
    if not found.has_segments:
        lines.append("  segments      not all are known; emu shards merge --tokenizer finds them")
    if found.captions:
        lines.append(f"  captions      {found.captions:,} documents have one that caption_dropout may leave out")
    total = max(1, sum(found.tokens_by_weight.values()))
    for weight, tokens in found.tokens_by_weight.most_common(SHOWN):
        lines.append(f"  loss weight   {weight:g} for {tokens:,} tokens ({100 * tokens / total:.1f} %)")
    return lines


def _verify(options: argparse.Namespace) -> int:
    damaged = 0
    for folder in options.folders:
        try:
            shards = TokenShards(folder)
            found = shards.damage(lambda numbers: tqdm(numbers, unit="shard", dynamic_ncols=True))
        except (ValueError, FileNotFoundError) as error:
            if not (folder / MANIFEST).is_file():  # no folder of shards
                raise
            found = [str(error)]
        for problem in found:
            print(problem, file=sys.stderr)
        damaged += len(found)
        if not found:
            print(f"{folder}: {len(shards):,} documents, every byte is what was written")
    return 1 if damaged else 0


def _merge(options: argparse.Namespace) -> int:
    layout = None if options.tokenizer is None else MultimodalTokenizer.from_pretrained(options.tokenizer).layout

    def bar(items: Any, total: int) -> Any:
        return tqdm(items, total=total, unit="document", dynamic_ncols=True)

    number = merge(options.folders, options.output, shard_size=options.shard_size, layout=layout, progress=bar)
    print(f"{number:,} documents in {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="show, verify or merge")
    for name, run, summary in (
        ("show", _show, "documents, tokens, lengths, segments and loss weights of folders"),
        ("verify", _verify, "check every byte of folders; exit code 1 if one is damaged"),
        ("merge", _merge, "merge the documents of folders into a new one, in the current format"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder written by emu tokenize")
        command.set_defaults(run=run)
        if name == "merge":
            command.add_argument("--output", type=Path, required=True, help="output folder")
            command.add_argument("--shard-size", type=int, default=4096, help="documents per shard (%(default)s)")
            command.add_argument(
                "--tokenizer",
                help="tokenizer that made the shards; finds the segments in folders of an earlier format version",
            )
    return parser
