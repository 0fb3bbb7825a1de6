"""Held-out pictures and clips, and what a vision tokenizer in training decodes from their codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from emu.training.loggers import Sample
from emu.training.samples import SampleCallback
from emu_tokenizers.pixels.transforms import to_frames
from emu_tokenizers.training.tokenizer_module import TokenizerModule, parts_of


class Reconstructions(SampleCallback):
    """Shows pictures and clips of the first validation batch, each above what is decoded from its codes.

    Args:
        every_n_steps: steps between two sets of samples.
        count: of pictures, and of clips.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(self, every_n_steps: int = 500, count: int = 4) -> None:
        super().__init__(every_n_steps)
        if count < 1:
            raise ValueError(f"count is {count}; expected 1 or more")
        self.count = count

    def draw(self, trainer: Trainer, module: LightningModule) -> Sequence[Sample]:
        """See `SampleCallback`."""
        assert isinstance(module, TokenizerModule)
        batch = next(iter(trainer.datamodule.val_dataloader()))  # type: ignore[attr-defined]
        model, samples = module.tokenizer, list[Sample]()
        for kind, pixels in parts_of(batch).items():
            some = pixels[: self.count].to(module.device)
            found = model(some, quantize=model.quantizer.started).reconstruction
            both = torch.cat([some, found], dim=-2)  # one above the other
            samples += [Sample(f"{kind}-{number}", "", frames_of(one), 8.0) for number, one in enumerate(both)]
        return samples


def frames_of(pixels: Tensor) -> tuple[Image.Image, ...]:
    """A picture (3, H, W) or a clip (T, 3, H, W) in [-1, 1] as its frames."""
    return tuple(map(Image.fromarray, to_frames(pixels[None] if pixels.ndim == 3 else pixels)))
