"""Convergence: the small preset on drawn shapes, minutes on a CPU."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from emu_tokenizers.metrics import CodeCounter, psnr
from emu_tokenizers.training import TokenizerModule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))


@pytest.mark.slow
def test_the_small_preset_learns_drawn_shapes_and_uses_its_codebook():
    from vision_quantizers import Batches, draw_shapes

    pictures, held_out = draw_shapes(6000, seed=0), draw_shapes(512, seed=1)
    torch.manual_seed(0)
    module = TokenizerModule("small", average_decay=0.98)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(
            max_steps=1000, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu",
        ).fit(module, Batches(pictures, 1000))  # fmt: skip
    codes = module.tokenizer.encode(held_out)
    counter = CodeCounter(module.tokenizer.codebook_sizes)
    counter.add(codes)
    quality, use = psnr(module.tokenizer.decode(codes), held_out).mean().item(), counter.measure()
    assert quality >= 26  # after 1,000 steps of 16 pictures; still rising
    assert use.use >= 0.95
