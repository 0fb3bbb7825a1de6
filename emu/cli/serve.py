"""`emu serve`: serve a model through an OpenAI-compatible API, with a web page.

emu serve digits
EMU_API_KEY=... emu serve runs/mine/model --host 0.0.0.0 --port 80
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch

from emu.generation.limits import check_number
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
        max_body=int(check_number("max_body", given.max_body) * (1 << 20)),
        max_pixels=int(check_number("max_pixels", given.max_pixels) * 1_000_000),
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
        prog="emu serve", description="Serve a model through an OpenAI-compatible API, with a web page."
    )
    parser.add_argument("model", help="folder of a trained model, or name of a bundled one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; any but this machine's own needs a key (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port; 0 picks a free one (%(default)s)")
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="key that clients must send; may be repeated; or set EMU_API_KEY, which other users cannot see",
    )
    parser.add_argument(
        "--slots", type=int, help="pictures, clips and texts generated concurrently (as many as fit in memory)"
    )
    parser.add_argument("--queue", type=int, default=64, help="how many more may wait (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds per request, including its wait (%(default)s)"
    )
    parser.add_argument("--memory", help='memory limit for generation, e.g. "8GB" (most of what is free)')
    parser.add_argument("--max-body", type=float, default=32, metavar="MIB", help="maximum request size (%(default)s)")
    parser.add_argument(
        "--max-pixels", type=float, default=16, metavar="MILLIONS", help="maximum picture size (%(default)s)"
    )
    parser.add_argument(
        "--allow-remote",
        action="append",
        default=[],
        metavar="HOST",
        help="host from which a conversation's pictures may be fetched; may be repeated (none)",
    )
    parser.add_argument(
        "--check-prompt",
        metavar="CLASS_PATH",
        help="function called with each prompt; returns the reason to refuse it, or None",
    )
    parser.add_argument(
        "--check-image", metavar="CLASS_PATH", help="function called with each picture, input or output, likewise"
    )
    parser.add_argument(
        "--example", action="append", default=[], metavar="PROMPT", help="example prompt for the web page"
    )
    parser.add_argument("--log-prompts", action="store_true", help="log the prompts")
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="bit-identical results for the same request and seed under any load; slower (default on a CPU)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the transformer; by default float32, for released models that of their files",
    )
    return parser
