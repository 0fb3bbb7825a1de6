"""`emu serve`: a model behind OpenAI's interface, with a page to try it.

emu serve digits
EMU_API_KEY=... emu serve runs/mine/model --host 0.0.0.0 --port 80
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch

from emu.pipeline import Emu
from emu.pipeline.drawing_memory import memory_budget

MISSING = "emu serve needs FastAPI and uvicorn: pip install 'emu-tokens[serve]' ({})"


def main(arguments: Sequence[str]) -> int:
    """Run `emu serve`.

    Returns:
        The exit code; a signal, which ends it, has its own.

    Raises:
        ValueError: an option is invalid, or a package is missing.
    """
    given = _parser().parse_args(arguments)
    try:
        from emu.serving.http_server import bound, serve
        from emu.serving.serving_options import ServingOptions, load_check
    except ModuleNotFoundError as error:
        raise ValueError(MISSING.format(error)) from error
    keys = [*given.api_key, *os.environ.get("EMU_API_KEY", "").split()]
    options = ServingOptions(
        host=given.host,
        port=given.port,
        api_keys=tuple(keys),
        slots=given.slots,
        queue=given.queue,
        timeout=given.timeout,
        memory=given.memory,
        max_body=int(given.max_body * (1 << 20)),
        max_pixels=int(given.max_pixels * 1_000_000),
        allow_remote=tuple(given.allow_remote),
        check_prompt=load_check("--check-prompt", given.check_prompt),
        check_image=load_check("--check-image", given.check_image),
        examples=tuple(given.example),
        log_prompts=given.log_prompts,
    )
    options.check()
    memory_budget(given.memory, torch.device("cpu"))
    dtype = getattr(torch, given.dtype) if given.dtype else None
    with bound(options) as listener:
        emu = Emu.from_pretrained(given.model, device=given.device, dtype=dtype)
        on_cpu = emu.model.device.type == "cpu"
        emu.deterministic = on_cpu if given.deterministic is None else given.deterministic
        serve(emu, options, listener)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emu serve", description="Serve a model through OpenAI's interface, with a page to try it."
    )
    parser.add_argument("model", help="folder of a trained model, or a bundled one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than this need a key (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="what clients must send; give it several times for several; EMU_API_KEY, which other users cannot see, does too",
    )
    parser.add_argument("--slots", type=int, help="pictures, clips and texts at a time (what memory holds)")
    parser.add_argument("--queue", type=int, default=64, help="those that may wait beside them (%(default)s)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that a request may take (%(default)s)")
    parser.add_argument("--memory", help='what drawing may take, e.g. "8GB" (most of what is free)')
    parser.add_argument("--max-body", type=float, default=32, metavar="MIB", help="of a request (%(default)s)")
    parser.add_argument("--max-pixels", type=float, default=16, metavar="MILLIONS", help="of a picture (%(default)s)")
    parser.add_argument(
        "--allow-remote",
        action="append",
        default=[],
        metavar="HOST",
        help="host from which pictures of a conversation may be fetched; give it several times for several (none)",
    )
    parser.add_argument(
        "--check-prompt",
        metavar="CLASS_PATH",
        help="function that gets each prompt; returns why it is refused, or None",
    )
    parser.add_argument(
        "--check-image", metavar="CLASS_PATH", help="function that gets each picture, given or drawn, likewise"
    )
    parser.add_argument("--example", action="append", default=[], metavar="PROMPT", help="prompt to try, for the page")
    parser.add_argument("--log-prompts", action="store_true", help="write what is asked for into the log")
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="bit for bit the same result for the same request and seed, whatever runs beside it; slower (on a CPU)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the transformer; by default float32, for released models that of their files",
    )
    return parser
