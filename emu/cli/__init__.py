"""The command line."""

from __future__ import annotations

from emu.cli.commands import COMMANDS, Command, register

__all__ = ["COMMANDS", "Command", "register"]
