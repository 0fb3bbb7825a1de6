"""What `emu tokenize` loads, and when: its processes load what they need while the command loads the same."""

from __future__ import annotations

import subprocess
import sys

import torch

from emu_tokenizers import VisionTokenizer
from emu_tokenizers.vision.coder import VisionCoder
from tests.tokenizing_toys import environment

HEAVY = {"lightning", "datasets", "vector_quantize_pytorch", "torch._dynamo", "transformers.modeling_utils"}


def loaded_by(code: str) -> set[str]:
    """Modules that a new process has after running this."""
    command = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    return set(subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout.split())


def test_the_number_of_processes_is_known_before_torch_is_loaded():
    assert "torch" not in loaded_by("import emu.cli.tokenize")


def test_what_encodes_loads_no_more_than_that_needs():
    loading = (
        "import torch, emu.data.tokenizing.encoding_processes; from emu_tokenizers.vision.coder import VisionCoder"
    )
    coding = "coder = VisionCoder.from_pretrained('digits'); coder.decode(coder.encode(torch.zeros(1, 3, 24, 24)))"
    assert not HEAVY & loaded_by(f"{loading}; {coding}")


def test_the_coder_has_the_codes_the_pictures_and_the_fingerprint_of_the_tokenizer(shelf):
    folder = shelf / "tokenizer" / "vision_tokenizer"
    full, light = VisionTokenizer.from_pretrained(folder), VisionCoder.from_pretrained(folder)
    assert light.fingerprint == full.fingerprint and light.codebook_sizes == full.codebook_sizes
    for shape in ((3, 3, 8, 12), (1, 5, 3, 8, 8)):
        pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        codes = full.encode(pixels)
        assert torch.equal(light.encode(pixels), codes) and torch.equal(light.decode(codes), full.decode(codes))
