"""Convergence on drawn shapes, minutes on a CPU; and the data of that run, in seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from emu_tokenizers import VisionTokenizer
from emu_tokenizers.pixels.metrics import CodeCounter, psnr
from emu_tokenizers.training.shapes_data import ShapesData, draw_shapes

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "shapes_tokenizer.yaml"


def test_shapes_are_a_function_of_their_seed():
    pictures = draw_shapes(3, seed=5)
    assert pictures.shape == (3, 3, 32, 32) and pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1
    assert torch.equal(pictures, draw_shapes(3, seed=5))
    assert not torch.equal(pictures, draw_shapes(3, seed=6))
    with pytest.raises(ValueError, match="17x17"):
        draw_shapes(1, seed=0, size=16)


def test_batches_of_shapes_go_on_where_their_loader_stands():
    data = ShapesData(pictures=40, held_out=70, images_per_step=3, steps_per_epoch=4)
    straight = [batch["image"] for batch in data.train_dataloader()]
    loader = data.train_dataloader()
    loader.load_state_dict({**loader.state_dict(), "step": 2})
    assert all(torch.equal(a, b["image"]) for a, b in zip(straight[2:], loader, strict=True))
    held_out = torch.cat([batch["image"] for batch in data.val_dataloader()])
    assert len(held_out) == 70
    assert torch.equal(held_out, data.held_out())
    assert not any(torch.equal(picture, other) for picture in held_out for other in straight[0])
    with pytest.raises(ValueError, match="at least 1"):
        ShapesData(pictures=0)


@pytest.mark.slow
def test_the_recipe_reaches_30_db_and_uses_its_codebook(tmp_path):
    from emu.training.cli import fit_tokenizer

    fit_tokenizer(["--config", str(RECIPE), "--trainer.default_root_dir", str(tmp_path / "run")])
    tokenizer = VisionTokenizer.from_pretrained(tmp_path / "run" / "model")
    held_out = ShapesData().held_out()
    codes = tokenizer.encode(held_out)
    counter = CodeCounter(tokenizer.codebook_sizes)
    counter.add(codes)
    quality, use = psnr(tokenizer.decode(codes), held_out).mean().item(), counter.measure()
    np.testing.assert_array_less([30.0, 0.95], [quality, use.use])
