"""`emu join TEXT VISION --output FOLDER`: combine a text and a vision tokenizer into one document tokenizer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from emu.layouts import LAYOUTS, Emu3Layout
from emu.modalities import MODALITIES
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.tokenizer_folder import VISION
from emu.vocabulary import HOLE, Vocabulary
from emu_tokenizers import TextTokenizer, VisionTokenizer
from emu_tokenizers.files import new_folder


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    words = argparse.ArgumentParser(
        prog="emu join",
        description="Combine a text and a vision tokenizer into one document tokenizer, and print its table of ids. "
        "MultimodalTokenizer.from_pretrained, `emu tokenize` and recipes read the folder.",
    )
    words.add_argument("text", help="folder of a text tokenizer, its file, or a model's folder")
    words.add_argument("vision", help="folder or hub repository of a vision tokenizer, or a model's folder")
    words.add_argument("--output", type=Path, required=True, help="output folder; it appears once it is complete")
    words.add_argument(
        "--layout", choices=sorted(LAYOUTS), default=Emu3Layout.name, help="token layout (default: %(default)s)"
    )
    words.add_argument(
        "--modalities",
        nargs="+",
        choices=sorted(name for name, modality in MODALITIES.items() if modality.codec in (None, VISION)),
        default=["image", "video"],
        help="what documents may hold besides text (default: image video)",
    )
    words.add_argument(
        "--infill", action="store_true", help=f"with the control {HOLE!r}, for models that are to fill in hidden cells"
    )
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0.

    Raises:
        FileExistsError: the output exists.
        FileNotFoundError, ValueError: a tokenizer cannot be read, or they do not go together.
    """
    given = parser().parse_args(arguments)
    if given.output.exists():
        raise FileExistsError(f"{given.output} exists; name a folder that does not")
    text, vision = TextTokenizer.from_pretrained(given.text), VisionTokenizer.from_pretrained(given.vision)
    extra = (HOLE,) if given.infill else ()
    tokenizer = MultimodalTokenizer(
        text, vision, layout=given.layout, modalities=given.modalities, extra_controls=extra
    )
    with new_folder(given.output) as partial:
        tokenizer.save_pretrained(partial)
    print("\n".join(table(tokenizer.vocabulary)))
    for name, fingerprint in tokenizer.fingerprints.items():
        print(f"fingerprint of {name}: {fingerprint}")
    print(f"written to {given.output}: layout {given.layout} with text, {', '.join(given.modalities)}")
    return 0


def table(vocabulary: Vocabulary) -> list[str]:
    """Who owns which ids, as lines in the order of ids."""
    spans = [("text", *vocabulary.text)]
    spans += [(name, index, 1) for name, index in vocabulary.controls.items()]
    spans += [(f"codes of {name}", first, count) for name, (first, count) in vocabulary.ranges.items()]
    spans.sort(key=lambda span: span[1])
    width = max(len(name) for name, *_ in spans)
    lines = [f"{'':<{width}}  {'first id':>9}  {'ids':>9}"]
    lines += [f"{name:<{width}}  {first:>9,}  {count:>9,}" for name, first, count in spans]
    return [*lines, f"{'all':<{width}}  {0:>9,}  {vocabulary.size:>9,}"]
