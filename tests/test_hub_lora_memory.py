"""The memory that fine-tuning takes, as it is computed, beside what a step takes in truth and what the recipe says."""

import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("peft", reason="PEFT is an extra: pip install 'emu-tokens[lora]'")

from emu import EmuConfig
from emu.families.emu3.config import ORIGINAL_DEFAULTS, config_from
from emu.recipes import find_recipe
from emu.training.live_bytes import LiveBytes
from emu.training.lora.memory import lora_memory

SMALL = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 4}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 9000}
PROGRAM = f"""
import sys, torch
from emu import EmuConfig, EmuForCausalLM
from emu.training.lora.adapters import PROJECTIONS, add_adapters, checkpoint_blocks, without_dropout

def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

mixed = sys.argv[1] == "mixed"
model = EmuForCausalLM(without_dropout(EmuConfig(**{SMALL!r}))).to(torch.bfloat16 if mixed else torch.float32)
add_adapters(model, 8, 16.0, 0.05, PROJECTIONS, mixed)
checkpoint_blocks(model.train())

def step(tokens):
    ids = torch.randint(0, 1000, (1, tokens))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        model(ids, labels=ids, segment_ids=torch.ones_like(ids)).loss.backward()

step(64)
for tokens in map(int, sys.argv[2:]):
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    step(tokens)
    print(memory("VmHWM") - before)
"""


def measured(kind, *lengths):
    """Bytes that a step adds to the memory of a process, for rows of each length."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROGRAM, kind, *map(str, lengths)]
    path = ":".join(sys.path)
    out = subprocess.run(words, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    return [int(line) for line in out.stdout.split()]


def computed(length, mixed):
    dtype = torch.bfloat16 if mixed else torch.float32
    return lora_memory(EmuConfig(**SMALL), row_length=length, rank=8, dtype=dtype, mixed=mixed).activations


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.slow
def test_a_step_takes_what_is_computed():
    (found,) = measured("plain", 1536)
    assert found == pytest.approx(computed(1536, False), rel=0.12)


@linux
@pytest.mark.slow
def test_autocast_takes_what_is_computed_beside_a_constant():
    """oneDNN keeps kernels and buffers of its own in bfloat16, which do not grow with the row."""
    short, long = measured("mixed", 2048, 4096)
    assert long - short == pytest.approx(computed(4096, True) - computed(2048, True), rel=0.12)


def test_live_bytes_count_what_lives():
    with LiveBytes() as live:
        one = torch.zeros(1000)
        two = one * 2
        view = two[10:]
        del one, two
        assert live.now == 4000 and live.peak == 8000
        del view
    assert live.now == 0


def test_the_recipe_says_what_is_computed():
    """Four blocks and one tell the rest: every further block adds the same."""
    text = find_recipe("lora-emu3", ".yaml").read_text()
    told = [(int(length), float(size)) for length, size in re.findall(r"GB  row_length +(\d+).*? ([\d.]+) GiB", text)]
    told += [(4352, float(re.search(r"row_length 4352: ([\d.]+) GiB", text)[1]))]
    assert [length for length, _ in told] == [8448, 33792, 101376, 4352]
    layers = ORIGINAL_DEFAULTS["num_hidden_layers"]
    for length, size in told[:1] + told[-1:]:
        few, more = (
            lora_memory(config_from({"num_hidden_layers": count}, None), row_length=length).total for count in (2, 4)
        )
        assert size == pytest.approx((more + (layers - 4) * (more - few) / 2) / 2**30, abs=0.1)
    per_token = (told[2][1] - told[1][1]) / (told[2][0] - told[1][0])
    assert told[0][1] + per_token * (told[1][0] - told[0][0]) == pytest.approx(told[1][1], abs=0.3)
