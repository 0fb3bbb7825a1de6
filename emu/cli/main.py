"""The command `emu`: find the subcommand, load only what it needs, and turn user errors into one line.

With EMU_TRACEBACK=1 in the environment errors keep their traceback.

Exit codes: 0 done; 1 partly done or failed (some lines of a batch were bad, training diverged, the disk is full or read-only); 2 invalid
request; 130 stopped by Ctrl-C and 143 by SIGTERM, with finished work kept.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable, Sequence

from emu.cli.commands import COMMANDS, Command, available
from emu.cli.messages import messages
from emu.configuration import load_extensions
from emu.recipes import did_you_mean
from emu.stopping import exit_code, stopping_at_once

USER_ERRORS = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

DISK_ERRORS = (
    errno.ENOSPC,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
    getattr(errno, "EDQUOT", errno.ENOSPC),
)
"""What the system says where a file cannot be written: the request was right, the machine cannot do it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `emu` with these words, or with the process's.

    Returns:
        The exit code.
    """
    # Threads that spin while they wait take the cores from whoever else wants them, each other included; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and hasattr(sys.stdout, "reconfigure"):
        # What a terminal or a file of another encoding cannot hold is no reason to lose the work; stderr does so by itself.
        sys.stdout.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help"):
        return run("emu", lambda: print_usage(0 if words else 2))
    if words[0] in ("-V", "--version"):
        return run("emu", print_version)
    name, *rest = words
    if name not in COMMANDS:
        load_extensions_or_say_why()
    commands = available()
    if name not in commands:
        print(f"emu: no command {name!r}{did_you_mean(name, 'commands', list(commands))}", file=sys.stderr)
        return 2

    def call() -> int | None:
        if name != "doctor":  # which works where an extension does not
            load_extensions()
        function = commands[name].load()
        with messages(f"emu {name}"):
            return function(rest)

    return run(f"emu {name}", call)


def print_usage(code: int) -> int:
    """Print what `emu --help` says, and return the code."""
    load_extensions_or_say_why()
    print(usage(available()))
    return code


def print_version() -> None:
    """Print the version of the library."""
    from emu import __version__

    print(f"emu {__version__}")


def load_extensions_or_say_why() -> None:
    """Load the extensions, whose commands then are in the table; one that cannot be loaded is a line on stderr."""
    try:
        load_extensions()
    except ValueError as error:
        print(f"emu: {error}", file=sys.stderr)


def run(name: str, function: Callable[[], int | None]) -> int:
    """Call a command; a user's mistake, a disk that cannot be written to and a stop become a line on stderr and an exit code."""
    if os.environ.get("EMU_TRACEBACK"):
        return function() or 0
    try:
        with stopping_at_once():
            return called(function)
    except KeyboardInterrupt as stop:
        said = str(stop) or "what was finished is kept; the same command goes on"
        print(f"{name}: stopped: {said}", file=sys.stderr)
        return exit_code(stop)
    except OSError as error:
        if is_unread(error):
            return 1
        if isinstance(error, USER_ERRORS) and error.errno not in DISK_ERRORS:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"{name}: {where}{error.strerror}", file=sys.stderr)
        return 1
    except USER_ERRORS as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1


def called(function: Callable[[], int | None]) -> int:
    """The exit code of a command, once what it printed is written: an output that is full or closed is told here, not at the very end."""
    try:
        return function() or 0
    finally:
        if sys.stdout is not None and isinstance(sys.exc_info()[1], SystemExit | None):
            try:
                sys.stdout.flush()
            except OSError as error:
                if not isinstance(error, BrokenPipeError):
                    drop_output()
                raise


def is_unread(error: OSError) -> bool:
    """Whether an error says that nobody reads the output any more, as after `| head -1`; what is printed from then on goes nowhere."""
    if not isinstance(error, BrokenPipeError) or sys.stdout is None or not hasattr(select, "poll"):
        return False
    try:
        output = select.poll()
        output.register(sys.stdout, 0)
        found = bool(output.poll(0))  # POLLERR alone is asked for; another pipe may be the broken one
    except (OSError, ValueError):  # an output that is no file
        return False
    if found:
        drop_output()
    return found


def drop_output() -> None:
    """Let what is printed, and what could not be written of it, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def usage(commands: dict[str, Command]) -> str:
    """The text of `emu --help`."""
    width = max(len(name) for name in commands)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    return "\n".join(["usage: emu COMMAND ...", "", *lines, "", "emu COMMAND --help lists the options of a command."])


if __name__ == "__main__":
    sys.exit(main())
