"""Options that the batch commands share, and the model that they name."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from emu.checkpoints.bundled import bundled_models
from emu.cli.batch_outputs import FILES, FORMATS
from emu.cli.line_problems import add_option
from emu.cli.prompts import check_words
from emu.data.tokenizing.ranks import Rank
from emu.pipeline import Emu
from emu.pipeline.requests import Size, sizes_of


def add_model_option(options: argparse.ArgumentParser) -> None:
    """Add the option `--model` of commands that run one."""
    options.add_argument(
        "--model",
        default="digits",
        help=f"folder of a trained model, or a bundled one: {', '.join(bundled_models())} (%(default)s)",
    )


def parser(command: str, description: str, keys: str) -> argparse.ArgumentParser:
    """Options that the commands share; `keys` are those of a line."""
    shared = "Launched by torchrun or srun, each process takes its share of the lines; the last to finish writes the manifest of all."
    options = argparse.ArgumentParser(prog=f"emu {command}", description=description, epilog=shared)
    options.add_argument(
        "prompts",
        nargs="+",
        help=f"prompts, or files of prompts (- is standard input): per line a prompt, or a JSON object with prompt or with the items of a "
        f"document, and optionally seed, {keys}",
    )
    add_model_option(options)
    options.add_argument("--output", type=Path, required=True, help="folder for the outputs and the manifest")
    options.add_argument(
        "--format",
        choices=FORMATS,
        default=FILES,
        help="output format: files, or tar files of samples, each a picture or clip and a JSON file (%(default)s)",
    )
    options.add_argument(
        "--tar-size", type=int, default=1000, metavar="N", help="maximum number of samples per tar file (%(default)s)"
    )
    options.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="size in pixels")
    options.add_argument(
        "--ratio", metavar="WIDTH:HEIGHT", help="aspect ratio instead of --size, e.g. 4:3, at the default size's area"
    )
    options.add_argument("--area", type=int, metavar="PIXELS", help="area, with --ratio")
    options.add_argument("--guidance-scale", type=float, help="guidance scale; 1 turns guidance off")
    options.add_argument("--negative-prompt", help="what guidance moves away from")
    options.add_argument("--temperature", type=float, help="sampling temperature; 0 is greedy")
    options.add_argument("--top-k", type=int, help="sample from the N most likely codes; 0 means all")
    options.add_argument("--top-p", type=float, help="sample from the most likely codes with this total probability")
    options.add_argument(
        "--seed", type=int, default=0, help="seed of the first line, for lines without a seed; it counts up from there"
    )
    options.add_argument(
        "--batch-size",
        type=int,
        default=16,
        help="lines per batch, fewer if memory is short (%(default)s)",
    )
    options.add_argument("--memory", help='memory limit for generation, e.g. "8GB" (most of what is free)')
    options.add_argument("--window", type=int, default=1, help="above 1: exact speculative decoding of N codes at once")
    options.add_argument(
        "--deterministic", action="store_true", help="bit-identical outputs for any batch size; slower"
    )
    options.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    options.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the transformer; by default float32, for released models that of their files",
    )
    add_option(options)
    return options


def load(options: argparse.Namespace) -> Emu:
    """The model that the options name, once the prompts are known to be there.

    Several ranks of a machine with several GPUs take one each.
    """
    check_words(options.prompts)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    device = own_device(options.device, Rank.from_environment())
    return Emu.from_pretrained(options.model, device=device, dtype=dtype, deterministic=options.deterministic)


def own_device(device: str | None, rank: Rank) -> str | None:
    """The device of a rank: the one that the user gave by number, or the rank's own among those of its machine."""
    if rank.size > 1 and device in (None, "cuda") and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return f"cuda:{rank.local % torch.cuda.device_count()}"
    return device


def size_of(options: argparse.Namespace, emu: Emu) -> Size | None:
    """(height, width) of the options --size, or --ratio and --area; None where they say nothing.

    Raises:
        ValueError: both, or an area without a ratio.
    """
    if options.ratio is None:
        if options.area is not None:
            raise ValueError(f"--area {options.area} without --ratio; give both, or --size")
        return options.size and (options.size[0], options.size[1])
    if options.size:
        raise ValueError("--size and --ratio; give one of them")
    ratio = options.ratio if options.area is None else (options.ratio, options.area)
    return sizes_of([ratio], 1, emu.defaults.size, emu.spatial_factor, emu.trained)[0]
