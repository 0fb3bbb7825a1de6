"""Memory of `emu tokenize` does not grow with the input."""

import json
import random
import subprocess
import sys
import time

import pytest

from emu.data.shards import TokenShards
from tests.tokenizing_toys import environment, proportional_memory, tree_of

SENTENCE = "the red circle moves left of a small blue square while one ball is rolling down"
MOST = 500 << 20
PROCESSES = 4
"""The command, the process that others are started from, and two that encode; a fifth keeps track of them."""


@pytest.mark.skipif(sys.platform != "linux", reason="PSS is read from /proc")
@pytest.mark.parametrize("count", [pytest.param(count, marks=pytest.mark.slow) for count in (10_000, 1_000_000)])
def test_lines_of_text_through_two_processes(shelf, tmp_path, count):
    chance = random.Random(0)
    with (tmp_path / "lines.jsonl").open("w") as file:
        for number in range(count):
            file.write(json.dumps({"items": [f"{number} " + " ".join(chance.choices(SENTENCE.split(), k=50))]}) + "\n")
    words = [
        tmp_path / "lines.jsonl",
        "--tokenizer",
        shelf / "tokenizer",
        "--output",
        tmp_path / "out",
        "--processes",
        "2",
    ]
    command = [sys.executable, "-m", "emu", "tokenize", *map(str, words)]
    start = peak = 0
    begun = time.monotonic()
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    while process.poll() is None:
        pids = tree_of(process.pid)
        found = proportional_memory(pids)
        if len(pids) > PROCESSES:
            start = start or found
            peak = max(peak, found)
        time.sleep(0.1)
    seconds = time.monotonic() - begun
    print(f"{count} lines: {seconds:.0f} s, start {start >> 20} MiB, peak {peak >> 20} MiB")
    assert process.returncode == 0 and len(TokenShards(tmp_path / "out")) == count
    assert start and peak - start < MOST
