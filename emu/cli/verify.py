"""`emu verify MODEL`: compare a model's folder with transformers on this machine; for bug reports about released models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

DTYPES = ("float32", "bfloat16", "float16", "float64")
LABEL = 20


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    words = argparse.ArgumentParser(
        prog="emu verify",
        description="Compare ids, logits, greedy codes and reconstructions of a model's folder with transformers on this machine. "
        "The output is for bug reports about released models. A folder in another format than transformers' is converted "
        "temporarily, which takes as much disk space again (TMPDIR).",
    )
    words.add_argument("model", help="folder, bundled model or hub repository")
    words.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of both (default float32, best for comparison)"
    )
    words.add_argument("--device", default="cpu", help='e.g. "cuda" (default cpu)')
    words.add_argument("--vision-tokenizer", help="vision tokenizer folder, if not in or beside the model's")
    words.add_argument("--text-tokenizer", help="text tokenizer folder, likewise")
    words.add_argument("--revision", help="branch, tag or commit, if the model is a hub repository")
    words.add_argument(
        "--allow-pickle", action="append", default=[], metavar="FILE", help="allow reading this pickled file"
    )
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 where all that was compared agrees, 1 where something differs.

    Raises:
        FileNotFoundError, ValueError: the folder cannot be read.
    """
    given = parser().parse_args(arguments)
    import torch
    import transformers

    import emu
    from emu.hub.verification import verify

    try:
        kind = torch.device(given.device).type
    except RuntimeError as error:
        raise ValueError(f"--device is {given.device!r}; expected e.g. cpu or cuda") from error
    places = {"vision_tokenizer": given.vision_tokenizer, "text_tokenizer": given.text_tokenizer}
    options = {**places, "revision": given.revision, "allow_pickle": given.allow_pickle}
    findings = verify(given.model, getattr(torch, given.dtype), given.device, **options)
    versions = f"emu {emu.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(_row("model", given.model))
    print(_row("versions", versions))
    print(_row("computed", f"in {given.dtype} on {kind}"))
    for finding in findings:
        word = {True: "same", False: "DIFFERENT", None: "not compared"}[finding.agrees]
        print(_row(finding.what, f"{word}: {finding.told}"))
    return 1 if any(finding.agrees is False for finding in findings) else 0


def _row(label: str, text: str) -> str:
    return f"{label:<{LABEL}}  {text}"
