"""`python -m emu` is the command `emu`."""

import sys

from emu.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
