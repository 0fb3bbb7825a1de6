"""`emu fit` and `emu fit-tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence


def fit(arguments: Sequence[str]) -> None:
    """Train a transformer."""
    from emu.training import cli

    cli.fit(arguments)


def fit_tokenizer(arguments: Sequence[str]) -> None:
    """Train a vision tokenizer."""
    from emu.training import cli

    cli.fit_tokenizer(arguments)
