"""`emu evaluate`: measure a trained model where the right answers are known exactly, or a vision tokenizer on pictures and clips.

emu evaluate runs/shapes/model --suite calibration
emu evaluate runs/shapes/model --suite shapes --guidance-scale 2
emu evaluate tokenizer runs/vision-tokenizer/model --images photographs
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer"
MODEL_FILES = ("config.json", "multimodal_tokenizer.json", "emu.json")
"""A folder that holds one of these is a model's, and nothing else is written into it."""
SUITE_NAMES = ("calibration", "shapes", "video")


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    found = argparse.ArgumentParser(
        "emu evaluate",
        description="Measure a model that was trained on worlds with known answers. "
        "`emu evaluate tokenizer --help` tells how a vision tokenizer is measured.",
    )
    found.add_argument("model", help="folder of the model, e.g. runs/shapes/model")
    found.add_argument(
        "--suite", choices=SUITE_NAMES, default="calibration", help="what to measure (default: %(default)s)"
    )
    found.add_argument("--documents", type=int, default=500, help="documents scored per task (default: %(default)s)")
    found.add_argument("--samples", type=int, default=2000, help="samples per test and skill (default: %(default)s)")
    found.add_argument("--guidance-scale", type=float, default=1.0, help="of the skills (default: %(default)s)")
    found.add_argument("--seed", type=int, default=0, help="of documents, prompts and samples (default: %(default)s)")
    found.add_argument(
        "--output",
        type=Path,
        help="folder for <suite>.json, <suite>.png and metrics.json (default: the folder above the model)",
    )
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write. The word "tokenizer" in front measures a vision tokenizer (a model in a folder of that name is ./tokenizer).

    Returns:
        0, or 1 where the model's bits lie below what is possible.

    Raises:
        FileNotFoundError, ValueError: the model is missing or of another world, or too few documents or samples; before any work.
    """
    if arguments and arguments[0] == TOKENIZER:
        return tokenizer_main(arguments[1:])
    options = parser().parse_args(arguments)
    from emu.evaluation.suites import SUITES, Options, trained_worlds
    from emu.evaluation.summary import add_to_metrics
    from emu.generation import Engine
    from emu.pipeline import Emu
    from emu_tokenizers.files import holding

    amounts = Options(options.documents, options.samples, options.guidance_scale, options.seed)
    amounts.check()
    emu = Emu.from_pretrained(options.model)
    documents = trained_worlds(Path(options.model), emu.tokenizer)
    folder = options.output or report_folder(options.model)
    engine = Engine(emu.model, emu.tokenizer.layout)
    found = SUITES[options.suite](emu.model, engine, documents, amounts, print)
    with holding(folder, "emu evaluate"):  # metrics.json is read and written again
        write(folder, options.suite, found)
        add_to_metrics(folder, found)
    print(f"written to {folder / options.suite}.json; the figures are in {folder / 'metrics.json'} too")
    return int(any(score["impossible"] for score in found.get("scores", [])))


def report_folder(measured: str) -> Path:
    """Where figures go when nothing is said: above what was measured, but never into a model's folder; here for hubs and bundled names."""
    if not Path(measured).exists():
        return Path.cwd()
    folder = Path(measured).resolve().parent
    while any((folder / name).is_file() for name in MODEL_FILES):
        folder = folder.parent
    return folder


def write(folder: Path, suite: str, found: Mapping[str, Any]) -> None:
    """Write `<suite>.json`, and `<suite>.png` where there is something to draw and matplotlib is installed."""
    from emu_tokenizers.files import write_json

    write_json(folder / f"{suite}.json", found)
    from importlib.util import find_spec

    if find_spec("matplotlib") is not None:
        from emu.evaluation.plots import plot_suite

        plot_suite(suite, found, folder / f"{suite}.png")


def tokenizer_parser() -> argparse.ArgumentParser:
    """Options of `emu evaluate tokenizer`."""
    found = argparse.ArgumentParser(
        "emu evaluate tokenizer",
        description="Measure what a vision tokenizer keeps of pictures and clips: PSNR, SSIM, LPIPS, rFID, rFVD, use of the "
        "codebook, bits per pixel, speed. What needs weights that are not there is skipped by name.",
    )
    found.add_argument("tokenizer", help="folder or repository of the tokenizer, e.g. runs/vision-tokenizer/model")
    found.add_argument("--images", help='folder or file, "photographs", "dataset:NAME" or "webdataset:PATTERN"')
    found.add_argument("--videos", help="folder of video files, GIFs or folders of frames, likewise")
    found.add_argument(
        "--output",
        type=Path,
        help="folder for tokenizer.json and tokenizer.png (default: above the tokenizer or its model)",
    )
    found.add_argument("--size", type=int, help="bring every picture to a square of this side (default: sizes stay)")
    found.add_argument("--frames", type=int, default=16, help="of each clip, from its start (default: %(default)s)")
    found.add_argument(
        "--batch-size", type=int, default=16, help="pictures that go through together (default: %(default)s)"
    )
    found.add_argument(
        "--examples", type=int, default=4, help="rows of the side-by-side picture (default: %(default)s)"
    )
    found.add_argument(
        "--max-bad-share", type=float, default=0.05, help="share of bad files that stops it (default: %(default)s)"
    )
    found.add_argument(
        "--download", action="store_true", help="fetch the weights of LPIPS and rFID where they are missing"
    )
    found.add_argument("--fid-network", metavar="FILE", help="TorchScript for rFID in place of Inception")
    found.add_argument(
        "--fvd-network", metavar="FILE", help="TorchScript for rFVD, clips (B, 3, T, H, W) to features (B, F)"
    )
    return found


def tokenizer_main(arguments: Sequence[str]) -> int:
    """Measure a vision tokenizer, print, write.

    Returns:
        The exit code: 1 where a file could not be read, 0 otherwise.

    Raises:
        FileNotFoundError, ValueError: no such tokenizer, pictures or clips, or nothing to measure.
    """
    options = tokenizer_parser().parse_args(arguments)
    if options.images is None and options.videos is None:
        raise ValueError("give --images, --videos or both")
    from emu.evaluation.reconstruction import Options, evaluate
    from emu.media import png_bytes
    from emu.tokenizers import VisionTokenizer
    from emu_tokenizers.files import holding, write_file, write_json
    from emu_tokenizers.pixels.sources import clip_sources, picture_sources

    names = ("size", "frames", "batch_size", "examples", "max_bad_share", "download", "fid_network", "fvd_network")
    settings = Options(**{name: getattr(options, name) for name in names})
    images = [] if options.images is None else picture_sources(options.images)
    clips = [] if options.videos is None else clip_sources(options.videos)
    tokenizer = VisionTokenizer.from_pretrained(options.tokenizer)
    folder = options.output or report_folder(options.tokenizer)
    found, picture = evaluate(tokenizer, images, clips, settings)
    with holding(folder, "emu evaluate tokenizer"):
        table = {"tokenizer": options.tokenizer, "images_from": options.images, "videos_from": options.videos, **found}
        write_json(folder / "tokenizer.json", table)
        write_file(folder / "tokenizer.png", png_bytes(picture))
    for line in tokenizer_lines(found):
        print(line)
    print(f"written to {folder / 'tokenizer.json'} and {folder / 'tokenizer.png'}")
    return 1 if found["bad_files"] else 0


def tokenizer_lines(found: Mapping[str, Any]) -> list[str]:
    """What was found, a line for each part."""
    lines = []
    for kind in ("images", "videos"):
        if kind in found:
            lines.append(", ".join(f"{name} {value:.4g}" for name, value in found[kind].items()))
    book = found["codebook"]
    lines.append(f"codebook: use {book['use']:.3f}, perplexity {book['perplexity']:.1f}, dead codes {book['dead']}")
    lines += [f"skipped {name}: {reason}" for name, reason in found["skipped"].items()]
    lines += [f"left out {count}: {reason}" for reason, count in found["bad_files"].items()]
    return lines
