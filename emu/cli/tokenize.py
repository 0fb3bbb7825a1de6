"""`emu tokenize`: documents become a folder of token shards, which `emu fit` trains on.

Tables are read as lines are (see `emu.cli.documents`): a .csv, .tsv, .parquet or .arrow file, or dataset:NAME (a folder of
save_to_disk, a folder of pictures, a builder or a repository of the datasets library). --caption and --image name its columns.

Bad lines are reported and left out. A run that was stopped goes on with the shard that it was at; lines and files that changed are read
again.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emu.cli.problems import PROBLEMS, Problems, TooManyBad, add_option
from emu.data.shards import TokenizedDocument, read_entry, write_manifest, write_shard
from emu.data.shards.writing import MANIFEST
from emu.data.tokenizing import document_reader as documents
from emu.data.tokenizing.document_reader import DocumentEntry, DocumentReader, digest, line_entry
from emu.data.tokenizing.table_source import ORDERS, Columns, TableReader, is_table
from emu.lines import BadLine, LineProblem, Place, count_lines, read_lines
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu_tokenizers.files import holding

MAX_WEIGHTS = 256
"""Different loss weights of a shard, which stores one byte a token."""
MAX_SHARD_TEXT = 1 << 28
"""Bytes of lines after which a shard ends even though it has room for more documents."""


def main(arguments: Sequence[str]) -> int:
    """Run `emu tokenize`.

    Returns:
        The exit code: 0 where every line became a document, 1 where some did not.

    Raises:
        FileNotFoundError, ValueError: the request is wrong; nothing was written.
    """
    options = _parser().parse_args(arguments)
    if options.shard_size < 1:
        raise ValueError(f"--shard-size is {options.shard_size}; expected 1 or more")
    problems = Problems(options.max_bad)
    entries, folder, total = _entries(options)
    first = next(entries, None)
    if first is None:
        raise ValueError(f"{options.documents} has no documents")
    tokenizer = MultimodalTokenizer.from_pretrained(options.tokenizer)
    if tokenizer.vision is not None:
        tokenizer.vision.eval()
    reader = DocumentReader(tokenizer, folder, tuple(options.size) if options.size else None, options.loss_on)
    with holding(options.output, "emu tokenize"):
        writer = _Writer(options.output, reader, problems)
        try:
            writer.write(itertools.chain([first], entries), options.shard_size, total)
        except TooManyBad as error:
            print(error, file=sys.stderr)
        finally:
            problems.write(options.output)
    seen = f"; see {options.output / PROBLEMS}" if problems.num_bad else ""
    print(f"{writer.num_documents} documents in {options.output}, {problems.num_bad} bad lines{seen}")
    return 1 if problems.num_bad else 0


def _entries(options: argparse.Namespace) -> tuple[Iterator[DocumentEntry], Path, int | None]:
    """The documents to be, the folder that their files are named from, and their number where it is known."""
    if is_table(options.documents):
        table = TableReader(options.documents, Columns(options.caption, options.image, options.order))
        return table.entries(), table.folder, len(table)
    if options.caption or options.image:
        raise ValueError("--caption and --image name columns of a table; lines say themselves what they hold")
    folder = Path(options.documents).parent if Path(options.documents).is_file() else Path()
    lines = (line_entry(line, folder) for line in read_lines(options.documents))
    return lines, folder, count_lines(options.documents)


class _Writer:
    """Writes shards, and leaves those as they are that are finished and whose lines and files have not changed."""

    def __init__(self, output: Path, reader: DocumentReader, problems: Problems) -> None:
        self.output, self.reader, self.problems = output, reader, problems
        self.num_documents = 0

    def write(self, entries: Iterator[DocumentEntry], shard_size: int, total: int | None) -> None:
        """Write the shards that are not there yet, and close the folder where there are documents.

        Raises:
            TooManyBad: see `Problems.read`; finished shards stay, and the folder is not closed.
        """
        tokenizer, number = self.reader.tokenizer, 0
        with tqdm(total=total, unit="document", dynamic_ncols=True) as bar:
            for number, block in enumerate(_blocks(entries, shard_size), start=1):
                self._shard(number - 1, block, bar)
        if self.num_documents:
            write_manifest(self.output, number, tokenizer.vocabulary, tokenizer.fingerprints)
        else:
            (self.output / MANIFEST).unlink(missing_ok=True)

    def _shard(self, number: int, block: Sequence[DocumentEntry], bar: tqdm) -> None:
        source = digest(block, self.reader)
        finished = read_entry(self.output, number)
        if finished is not None and finished["about"].get("input") == source:
            for file, line, unit, reason, message in finished["about"]["problems"]:
                self.problems.add(LineProblem(Place(file, line, unit), reason, message))
            self.problems.read(len(block))
            self.num_documents += finished["documents"]
            bar.update(len(block))
            return
        (self.output / MANIFEST).unlink(
            missing_ok=True
        )  # a folder is finished only with the shards that its manifest describes
        made: list[TokenizedDocument] = []
        found: list[Any] = []
        weights: set[float] = set()
        for entry in block:
            with self.problems.containing(entry.place, found):
                document = self.reader.read(entry)
                weights = _with_weights(weights, document)
                made.append(document)
            self.problems.read()
            bar.update()
        about = {"input": source, "problems": [[*problem.place, problem.reason, problem.message] for problem in found]}
        write_shard(self.output, number, made, self.reader.tokenizer.vocabulary, about)
        self.num_documents += len(made)


def _with_weights(known: set[float], document: TokenizedDocument) -> set[float]:
    """The loss weights of a shard with those of another document.

    Raises:
        BadLine: they are more than a shard holds.
    """
    together = known | set(document.document.weights.unique().tolist())
    if len(together) > MAX_WEIGHTS:
        raise BadLine(
            "too many weights",
            f"the shard has {MAX_WEIGHTS} other loss weights already; round them, or lower --shard-size",
        )
    return together


def _blocks(entries: Iterator[DocumentEntry], size: int) -> Iterator[list[DocumentEntry]]:
    """Entries in groups of `size`, fewer where their lines are very long."""
    block: list[DocumentEntry] = []
    length = 0
    for entry in entries:
        block.append(entry)
        length += len(entry.state)
        if len(block) == size or length > MAX_SHARD_TEXT:
            yield block
            block, length = [], 0
    if block:
        yield block


def _parser() -> argparse.ArgumentParser:
    first, _, others = (__doc__ or "").partition("\n\n")
    lines = (documents.__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(
        prog="emu tokenize",
        description=f"{first}\n\n{lines}\n{others.replace(' (see `emu.cli.documents`)', '')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("documents", help="file with one document a line, - for standard input, or a table")
    parser.add_argument(
        "--tokenizer", default="digits", help="folder of a model or of its tokenizers, or a bundled model (%(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="crop and resize pictures and frames to this"
    )
    parser.add_argument("--shard-size", type=int, default=4096, help="documents a shard (%(default)s)")
    parser.add_argument("--caption", metavar="COLUMN", help="of a table: the column of texts")
    parser.add_argument("--image", metavar="COLUMN", help="of a table: the column of pictures")
    parser.add_argument(
        "--order",
        choices=ORDERS,
        default=ORDERS[0],
        metavar="ORDER",
        help=f"of a table's documents: {' or '.join(ORDERS)}",
    )
    parser.add_argument(
        "--loss-on", choices=("assistant", "all"), default="assistant", help="which messages are learned (%(default)s)"
    )
    add_option(parser)
    return parser
