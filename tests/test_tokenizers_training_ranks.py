"""Tokenizer training on two processes: every rank ends with the same weights and the same codes; losses that need weights."""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from emu_tokenizers import VisionTokenizerConfig
from emu_tokenizers.training.losses import TokenizerLosses
from emu_tokenizers.training.pixel_loader import PixelLoader
from emu_tokenizers.training.shapes_data import ShapesData
from emu_tokenizers.training.tokenizer_module import OPTIMIZER, TokenizerModule

TINY = {"base_channels": 8, "channel_multiplier": (1, 1), "norm_groups": 4, "codebook_size": 16}


class SaveRank(Callback):
    """Saves what each rank ends with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer, module) -> None:
        torch.save(module.model.state_dict(), self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["vq", "fsq", "bsq", "ibq", "simvq"])
def test_two_ranks_end_with_the_same_weights_and_codes(tmp_path, quantizer):
    torch.manual_seed(0)
    options = {"levels": (4, 4)} if quantizer == "fsq" else {}
    config = VisionTokenizerConfig.preset("small", **TINY, quantizer=quantizer, quantizer_options=options)
    module = TokenizerModule(config, quantizer_warmup_steps=3, optimizer=replace(OPTIMIZER, warmup_steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_steps=8, strategy="ddp_fork", devices=2, accelerator="cpu", callbacks=[SaveRank(tmp_path)],
            logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            default_root_dir=tmp_path, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, PixelLoader(ShapesData(pictures=40, images_per_step=4), length=8, seed=0))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    # Running statistics of batch norms are those of rank 0 at the start of each step; a run saves rank 0's.
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    assert [name for name in differing if "running_" not in name] == []
    start = {"vq": "quantizer.codebook.initted"}.get(quantizer, "quantizer.initted")
    assert bool(first[start])


def test_lpips_without_its_packages_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    with pytest.raises(ValueError, match=r"'lpips' needs torchmetrics, torchvision .*use the loss 'features'"):
        TokenizerLosses({"lpips": 1.0})


def test_lpips_without_its_weights_says_what_to_do(monkeypatch):
    import torchmetrics.image.lpip as lpip

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", offline)
    with pytest.raises(ValueError, match=r"VGG16 weights: no route to host; .*'features'"):
        TokenizerLosses({"lpips": 1.0})
