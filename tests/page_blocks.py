"""Examples of the README and of the pages in docs/, for tests that run them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "recipes" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def python_blocks(page: Path) -> list[str]:
    """The Python of a page, block by block."""
    return [block for language, block in FENCE.findall(page.read_text()) if language == "python"]


def command_lines(page: Path) -> list[str]:
    """Every line of a page's shell blocks that runs `emu` or `make`."""
    blocks = [block for language, block in FENCE.findall(page.read_text()) if language in ("sh", "bash", "")]
    return [line for block in blocks for line in block.splitlines() if line.startswith(("emu ", "make "))]


def section(page: Path, title: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    return re.split(r"^## ", page.read_text().split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def commands_of(page: Path, title: str) -> list[list[str]]:
    """The words after `emu` of each command in a section's first shell block."""
    block = next(block for language, block in FENCE.findall(section(page, title)) if language == "sh")
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
