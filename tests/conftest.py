"""Settings that every test shares."""

import ast
import os
import shutil
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

ROOT = Path(__file__).parents[1]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is imported: a process forked from one with OpenMP threads waits for them forever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell hands an ignored Ctrl-C on to what it starts in the background, and commands leave ignored signals ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _modules_are_parsed_once():
    """Let a process parse each module that hides imports under TYPE_CHECKING, such as Lightning's, once.

    jsonargparse does it again for every command line that it reads, which takes half the time of a test that trains for some steps.
    """
    from jsonargparse import _postponed_annotations

    whole = lru_cache(ast.parse)

    def parse(source):
        return whole(source) if len(source) > 1000 else ast.parse(source)  # what it goes on to change is a line

    with patch.object(_postponed_annotations, "ast", SimpleNamespace(**vars(ast) | {"parse": parse})):
        yield


@pytest.fixture(scope="session")
def tiny_emu():
    """An untrained `Emu` of the demo's shape in small: factor 4, temporal factor 4, 16 codes, 8x8 pictures and clips of 8 frames."""
    import torch

    from emu import Emu, EmuConfig, EmuForCausalLM, MultimodalTokenizer
    from emu.pipeline import GenerationDefaults
    from emu.tokenizers import TextTokenizer, VisionTokenizer, VisionTokenizerConfig

    torch.manual_seed(0)
    corpus = ["a red circle", "a ball rolling left", "1*2*3 4f 5fps 6.789s 0"]
    text = TextTokenizer.train(corpus, 290)
    vision = VisionTokenizer(
        VisionTokenizerConfig(
            spatial_factor=4,
            channel_multiplier=(1, 2),
            base_channels=8,
            num_res_blocks=1,
            attn_resolutions=(),
            latent_channels=4,
            embed_dim=4,
            codebook_size=16,
            norm_groups=4,
        )
    ).eval()
    tokenizer = MultimodalTokenizer(text, vision)
    vocabulary = tokenizer.vocabulary
    config = EmuConfig(
        vocab_size=vocabulary.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        vocabulary=vocabulary.to_dict(),
        pad_token_id=vocabulary.control("pad"),
        bos_token_id=vocabulary.control("bos"),
        eos_token_id=vocabulary.control("eos"),
    )
    defaults = GenerationDefaults(size=(8, 8), frames=8, fps=4, guidance_scale=2.0)
    return Emu(EmuForCausalLM(config).eval(), tokenizer, defaults)


@pytest.fixture(scope="session")
def filling_emu(tiny_emu):
    """`tiny_emu` with a vocabulary that has holes, so that it fills in."""
    import torch

    from emu import Emu, EmuConfig, EmuForCausalLM, MultimodalTokenizer

    ours = tiny_emu.tokenizer
    tokenizer = MultimodalTokenizer(ours.text, ours.vision, extra_controls=("hole",))
    vocabulary = tokenizer.vocabulary
    table = tiny_emu.model.config.to_dict() | {"vocab_size": vocabulary.size, "vocabulary": vocabulary.to_dict()}
    ids = {f"{name}_token_id": vocabulary.control(name) for name in ("pad", "bos", "eos")}
    torch.manual_seed(0)
    return Emu(EmuForCausalLM(EmuConfig(**table | ids)).eval(), tokenizer, tiny_emu.defaults)


@pytest.fixture(scope="module")
def shelf(tiny_emu, tmp_path_factory):
    """A folder with tokenizers, pictures and an animation, for files of lines."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("shelf")
    tiny_emu.tokenizer.save_pretrained(folder / "tokenizer")
    generator = np.random.default_rng(0)
    frames = [Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(4)]
    for number, frame in enumerate(frames):
        frame.save(folder / f"{number}.png")
    frames[0].save(folder / "anim.gif", save_all=True, append_images=frames[1:], duration=250, loop=0)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout so that neither leaves traces in the other."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("emu", "kernels", "tokenizers", "recipes", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(target), "."]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def interpreter():
    """A process that runs kernels in Triton's interpreter, which has to be chosen before triton is imported."""
    triton = pytest.importorskip("triton")
    import numpy as np

    from emu_kernels.testing import Interpreter

    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("the interpreter of triton 3.6 fails with numpy 2.4 and later")
    process = Interpreter()
    yield process
    process.close()
