"""Reading a sharded model takes little more memory than the model has."""

import importlib.util
import subprocess
import sys

import pytest

from emu import EmuConfig, EmuForCausalLM

PROGRAM = """
import sys, torch
from emu import EmuConfig, EmuForCausalLM

def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
EmuForCausalLM(EmuConfig(vocab_size=10, pad_token_id=0, bos_token_id=1, eos_token_id=2, **small))
before = memory("VmRSS")
model = EmuForCausalLM.from_pretrained(sys.argv[1], **eval(sys.argv[2]))
touched = [float(parameter.detach().flatten()[::512].float().sum()) for parameter in model.parameters()]
peak = memory("VmHWM") - before
total = sum(float(parameter.detach().float().abs().sum()) for parameter in model.parameters())
assert total == float(sys.argv[3]), total
print(peak)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A bfloat16 model of 200 MiB in eleven shards."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 768, "intermediate_size": 2688, "num_hidden_layers": 10, "num_attention_heads": 6}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = EmuForCausalLM(EmuConfig(vocab_size=15000, num_key_value_heads=2, **sizes, **special)).bfloat16()
    model.save_pretrained(folder, max_shard_size="20MB")
    assert len(list(folder.glob("*.safetensors"))) > 5
    total = sum(float(parameter.detach().float().abs().sum()) for parameter in model.parameters())
    return folder, total, sum(parameter.numel() * 2 for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("options", "times"), [("{}", 1), ("{'device_map': 'cpu'}", 1), ("{'dtype': torch.float32}", 3)]
)
def test_the_peak_is_near_the_size_of_the_model(options, times, saved):
    """In another dtype the mapped files, which the system may drop, count beside the model's own copy of twice their size."""
    if "device_map" in options and importlib.util.find_spec("accelerate") is None:
        pytest.skip("device_map needs accelerate, an extra")
    folder, total, size = saved
    words = [
        sys.executable,
        "-c",
        f"import sys; sys.path[:0] = {sys.path!r}\n{PROGRAM}",
        str(folder),
        options,
        str(total),
    ]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert int(out) < times * size + 60 * 2**20
