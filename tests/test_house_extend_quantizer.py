"""A quantizer of one's own: one class and one call; nothing else in the house knows it, and it trains, is saved and codes pictures."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from emu_kernels import nearest_code
from emu_tokenizers import VisionTokenizer, VisionTokenizerConfig
from emu_tokenizers.quantizers import QUANTIZERS, register
from emu_tokenizers.quantizers.base import Quantizer, straight_through
from emu_tokenizers.training.tokenizer_module import OPTIMIZER, TokenizerModule


class FrozenQuantizer(Quantizer):
    """Random codes that never move: the encoder comes to them, pulled by a loss of this quantizer's own."""

    loss_weights = {"pull": 0.5}
    statistics = ("uses",)
    codes: Tensor
    uses: Tensor

    def __init__(self, embed_dim: int, codebook_size: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim, (codebook_size,))
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("codes", torch.randn(codebook_size, embed_dim, generator=generator))
        self.register_buffer("uses", torch.zeros(codebook_size, dtype=torch.int64))

    def search(self, rows: Tensor) -> Tensor:
        return nearest_code(rows, self.codes.to(rows.dtype))

    def lookup(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.codes)

    def learn(self, rows: Tensor, ids: Tensor, vectors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.training:
            self.uses += torch.bincount(ids, minlength=len(self.uses))
        return straight_through(rows, vectors), {"pull": F.mse_loss(rows, vectors)}


def train(config: VisionTokenizerConfig, pixels: Tensor, folder: Path) -> TokenizerModule:
    """A few steps on the same pictures."""
    torch.manual_seed(0)
    module = TokenizerModule(config, optimizer=replace(OPTIMIZER, warmup_steps=1))
    loader = DataLoader([pixels] * 4, batch_size=None)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(accelerator="cpu", max_steps=4, default_root_dir=folder, **quiet).fit(module, loader)
    return module


def use_frozen(tmp_path: Path) -> None:
    """Train, save, load and code with the quantizer."""
    config = VisionTokenizerConfig.preset(
        "small", base_channels=8, codebook_size=64, quantizer="frozen", quantizer_options={"seed": 3}
    )
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    module = train(config, pixels, tmp_path / "run")
    assert module.losses.weights == {"l2": 1.0, "pull": 0.5}
    tokenizer = module.tokenizer.eval()
    assert int(tokenizer.quantizer.uses.sum()) == 4 * 2 * 4 * 4

    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = VisionTokenizer.from_pretrained(tmp_path / "saved")
    codes = tokenizer.encode(pixels)
    assert codes.shape == (2, 4, 4) and codes.unique().numel() > 1
    assert torch.equal(loaded.encode(pixels), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))

    # What the class calls statistics takes no part in the name of its codes, nor need it be there.
    assert loaded.fingerprint == tokenizer.fingerprint
    tokenizer.quantizer.uses.zero_()
    assert loaded.fingerprint == tokenizer.fingerprint
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    del weights["quantizer.uses"]
    loaded.load_weights(weights)
    tokenizer.quantizer.codes[0] += 1
    assert loaded.fingerprint != tokenizer.fingerprint


def test_a_quantizer_is_added_from_one_file(tmp_path):
    register("frozen", FrozenQuantizer)
    try:
        use_frozen(tmp_path)
    finally:
        QUANTIZERS.unregister("frozen")
    with pytest.raises(ValueError, match="quantizer 'frozen' is not registered"):
        VisionTokenizer.from_pretrained(tmp_path / "saved")
