"""`emu show-batch`: show a packed row of training data, before you start a run on it.

emu show-batch RECIPE                                  # a row of a recipe's first step: batch.png and text
emu show-batch RECIPE --step 500 --row 3 --data.row_length 256
emu show-batch SHARDS --tokenizer TOKENIZERS           # a row packed from a folder of token shards

The picture shows the row's positions coloured by loss weight (grey 0, green up to 1), red lines where documents begin, and
the documents with their text, and their pictures and clips decoded from their codes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule

from emu.cli.row_parts import RowDocument, documents_of
from emu.cli.row_picture import draw_row
from emu.configuration import search_working_folder
from emu.configuration.problems import Problem, raise_problems
from emu.configuration.resolving import resolve
from emu.data.datamodule import MixtureDataModule
from emu.data.sharded import ShardData
from emu.data.shards import MANIFEST, TokenShards
from emu.media import png_bytes
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.training.words import split_words
from emu_tokenizers.files import write_file

ROW_LENGTH = 2048
"""Positions of a row of a folder of shards, where its longest document is not longer."""
ROWS = 8
"""Rows of a step of a folder of shards."""


def main(arguments: Sequence[str]) -> int:
    """Run `emu show-batch`.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError, ValueError: the request is wrong, or the data cannot be trained on.
    """
    options, over = _parser().parse_known_args(arguments)
    if (Path(options.source) / MANIFEST).is_file():
        if over:
            raise ValueError(f"{over} are options of a recipe, and {options.source} is a folder of token shards")
        data = data_of_shards(options.source, options.row_length)
    else:
        if options.row_length is not None:
            raise ValueError("--row-length is for a folder of token shards; for a recipe give --data.row_length")
        data = data_of_recipe(["--config", options.source, *over])
    _check(data)
    tokenizer = _tokenizer(data, options.tokenizer)
    if options.step < 0:
        raise ValueError(f"--step is {options.step}; steps count from 0")
    packed = data.train_dataloader().batches()[options.step]
    if not 0 <= options.row < len(packed.input_ids):
        raise ValueError(f"--row is {options.row}; step {options.step} has rows 0 to {len(packed.input_ids) - 1}")
    documents = documents_of(packed, options.row, data.vocabulary, tokenizer, data.source_names)
    length = packed.input_ids.shape[1]
    used = sum(document.length for document in documents)
    title = (
        f"step {options.step}, row {options.row} of {len(packed.input_ids)}: {len(documents)} documents on {used} of {length} positions "
        f"({used / length:.1%})"
    )
    print("\n".join([title, *describe(documents)]))
    write_file(options.output, png_bytes(draw_row(title, packed.loss_weights[options.row], documents)))
    print(f"drawn in {options.output}")
    return 0


def data_of_shards(folder: str, row_length: int | None) -> MixtureDataModule:
    """Rows packed from one folder of token shards; errors as of `TokenShards`."""
    longest = TokenShards(folder).max_length
    return ShardData({Path(folder).name: folder}, row_length=row_length or max(ROW_LENGTH, longest), rows_per_step=ROWS)


def data_of_recipe(words: Sequence[str]) -> MixtureDataModule:
    """The data of a recipe, with options over it, and nothing else of it.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: its data is missing, cannot be built, or is not packed into rows.
    """
    search_working_folder()
    split = split_words(words)
    written = split.read()
    resolved = resolve(written)
    problems = [Problem(text, path) for path, text in resolved.problems.items() if path[0] == "data"]
    problems += [Problem(f"{word!r} belongs to no option", ()) for word in split.stray]
    raise_problems(problems, written)
    tree = resolved.of(written.tree).get("data")
    if not isinstance(tree, dict) or "class_path" not in tree:
        raise ValueError(f"{split.run_name} has no data with a class_path; name a recipe of a transformer")
    # What options set without init_args belongs there too.
    given = {key: value for key, value in tree.items() if key not in ("class_path", "init_args")}
    tree = {"class_path": tree["class_path"], "init_args": {**tree.get("init_args", {}), **given}}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        data = parser.instantiate_classes(parser.parse_object({"data": tree})).data
    except ArgumentError as error:
        raise ValueError(f"the data of {split.run_name} cannot be built: {error}") from error
    if not isinstance(data, MixtureDataModule):
        raise ValueError(f"{type(data).__name__} does not pack documents into rows; expected a MixtureDataModule")
    return data


def describe(documents: Sequence[RowDocument]) -> list[str]:
    """Lines about the documents of a row."""
    lines = []
    for number, document in enumerate(documents, 1):
        lines.append(
            f"document {number}, {document.source}: {document.length} tokens from position {document.start} on, {document.weighed} of them "
            "weighed"
        )
        if document.unread:
            lines.append(f"  not read: {document.unread}")
        for part in document.parts:
            told = repr(part.value) if isinstance(part.value, str) else ""
            lines.append(f"  {part.kind}, {part.length} tokens, weight {part.weight:g} {told}".rstrip())
    return lines


def _check(data: MixtureDataModule) -> None:
    found = data.problems(None)
    raise_problems(found)
    data.prepare_data()
    raise_problems(data.source_problems())


def _tokenizer(data: Any, named: str | None) -> MultimodalTokenizer | None:
    """The tokenizer that is named, or the one that the data names or holds."""
    found = named or getattr(data, "tokenizer", None)
    tokenizer = MultimodalTokenizer.from_pretrained(found) if isinstance(found, str) else found
    if tokenizer is not None and tokenizer.vocabulary.fingerprint != data.vocabulary.fingerprint:
        raise ValueError(
            f"the tokenizer's vocabulary is {tokenizer.vocabulary.fingerprint}, that of the data is {data.vocabulary.fingerprint}; name "
            "the tokenizers that made the data"
        )
    return tokenizer


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu show-batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="RECIPE|SHARDS", help="a recipe by name or file, or a folder of token shards")
    parser.add_argument("--step", type=int, default=0, help="number of the batch, from 0")
    parser.add_argument("--row", type=int, default=0, help="number of the row in it, from 0")
    parser.add_argument("--tokenizer", help="folder or name of the tokenizers; by default the recipe's")
    parser.add_argument("--row-length", type=int, help="row length when packing from a folder of shards")
    parser.add_argument("--output", type=Path, default=Path("batch.png"), help="output picture (%(default)s)")
    return parser
