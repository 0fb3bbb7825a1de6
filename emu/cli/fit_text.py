"""`emu fit-text SOURCE --output FOLDER --vocab-size N`: a text tokenizer, trained on the captions or texts of a source."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from emu.cli.line_problems import Problems, TooManyBad, add_option
from emu.cli.tokenize import add_source_options, source_options
from emu.data.tokenizing import open_source
from emu.data.tokenizing.text_sample import TextSample, texts_of
from emu_tokenizers import TextTokenizer
from emu_tokenizers.files import new_folder


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        The exit code: 1 where some records could not be read, 0 otherwise.

    Raises:
        FileExistsError: the output exists.
        FileNotFoundError, ValueError: the source cannot be read, or its texts do not make a vocabulary of that size.
    """
    options = _parser().parse_args(arguments)
    if options.output.exists():
        raise FileExistsError(f"{options.output} exists; name a folder that does not")
    problems, sample = Problems(options.max_bad), TextSample(options.sample_mib << 20)
    source = open_source(options.source, source_options(options))
    try:
        for record in tqdm(source.records(), total=source.length, unit="record", dynamic_ncols=True):
            with problems.containing(record.place):
                for number, text in enumerate(texts_of(source.read(record))):
                    sample.add(f"{record.key} {number}", text)
            problems.read()
    except TooManyBad as error:
        raise ValueError(f"{error}; nothing was written") from error
    texts = sample.texts()
    if not texts:
        raise ValueError(f"{options.source} has no texts and no captions to train on")
    tokenizer = TextTokenizer.train(texts, options.vocab_size, model_type=options.model_type)
    with new_folder(options.output) as partial:
        tokenizer.save_pretrained(partial)
    kept = f"{len(texts):,} of " if len(texts) < sample.num_seen else ""
    ids = sum(len(tokenizer.encode(text)) for text in texts[:1000])
    letters = sum(map(len, texts[:1000]))
    print(f"{tokenizer.size} ids from {kept}{sample.num_seen:,} texts, {letters / max(1, ids):.2f} characters an id")
    print(f"written to {options.output}: emu join {options.output} VISION --output FOLDER goes on")
    return 1 if problems.num_bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu fit-text",
        description="Train a SentencePiece model with byte fallback on the captions or texts of a source; equal sources give equal "
        "models. Sources are those of `emu tokenize`.",
    )
    add_source_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="output folder; it appears once it is complete")
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="vocabulary size, including 256 bytes"
    )
    parser.add_argument(
        "--model-type", choices=("bpe", "unigram"), default="bpe", help="SentencePiece model type (%(default)s)"
    )
    parser.add_argument(
        "--sample-mib",
        type=int,
        default=32,
        metavar="MIB",
        help="sample texts uniformly if there are more than this (%(default)s)",
    )
    add_option(parser)
    return parser
