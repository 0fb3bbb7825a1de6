"""Controls of Emu3.5 beyond those of Emu3."""

from __future__ import annotations

EXTRA_CONTROLS = {"tms": 202, "bss": 100, "ess": 101, "bog": 60, "eog": 61, "boc": 50, "eoc": 51}
"""Control -> n of its word `<|extra_n|>` (`configs/config.py` of baaivision/Emu3.5): time stamp, begin and end of the answer, of the
plan for a whole document and of the plan for one image."""

RELEASED_SIZE = 282926
"""Size of the released vocabulary, whose table is known without tokenizer files."""
