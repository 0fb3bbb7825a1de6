"""The demo's data under Lightning: packed documents for the transformer, pictures and clips for the vision tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from emu.data.datamodule import MixtureDataModule
from emu.data.document_sources import DocumentSource
from emu.demo.digits import DIRECTIONS, REST, SHIFTS, Digits, draw, draw_clips, draw_stills, load_digits, to_rgb_pixels
from emu.demo.tasks import TASKS, encode_digits
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.randomness import derive_key
from emu.vocabulary import Vocabulary
from emu_tokenizers.training.pixel_loader import PixelLoader, Places

DOCUMENTS_PER_STEP = {
    "text_to_image": 8,
    "image_to_text": 14,
    "text_to_video": 9,
    "video_continuation": 6,
    "image_to_video": 4,
}
VALIDATION_DIGITS = 50


class DigitsData(MixtureDataModule):
    """Handwritten digits as token documents of five tasks, packed into rows.

    Args:
        tokenizer: folder of a `MultimodalTokenizer`, or the name of a bundled model.
        documents_per_step: how many documents of each task a step holds.
        row_length: positions of a packed row.
        num_digits: use only the first N digits; None for all.
        seed, steps_per_epoch, validation_documents, num_workers: see `MixtureDataModule`.
    """

    sources_take_long = True

    def __init__(
        self,
        tokenizer: str = "digits",
        documents_per_step: dict[str, int] = DOCUMENTS_PER_STEP,
        row_length: int = 256,
        *,
        num_digits: int | None = None,
        seed: int = 0,
        steps_per_epoch: int = 1000,
        validation_documents: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            documents_per_step,
            row_length,
            seed=seed,
            steps_per_epoch=steps_per_epoch,
            validation_documents=validation_documents,
            num_workers=num_workers,
        )
        self.tokenizer_name = tokenizer
        self.num_digits = num_digits
        self._tokenizer: MultimodalTokenizer | None = None

    @property
    def tokenizer(self) -> MultimodalTokenizer:
        """The tokenizers, read when they are first asked for."""
        if self._tokenizer is None:
            self._tokenizer = MultimodalTokenizer.from_pretrained(self.tokenizer_name)
        return self._tokenizer

    @property
    def document_tokenizer(self) -> MultimodalTokenizer:
        """See `MixtureDataModule`."""
        return self.tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """See `MixtureDataModule`."""
        return self.tokenizer.vocabulary

    def training_sources(self) -> Mapping[str, DocumentSource]:
        """The training digits in all poses, encoded once."""
        digits, _ = load_digits()
        return self._sources(digits if self.num_digits is None else digits.first(self.num_digits), SHIFTS)

    def validation_sources(self) -> Mapping[str, DocumentSource]:
        """Some of the held-out digits, centred."""
        return self._sources(
            load_digits()[1].first(min(VALIDATION_DIGITS, self.num_digits or VALIDATION_DIGITS)), SHIFTS[:1]
        )

    def _sources(self, digits: Digits, shifts: Sequence[tuple[int, int]]) -> Mapping[str, DocumentSource]:
        assert self.tokenizer.vision is not None
        encoded = encode_digits(self.tokenizer.vision.eval(), digits, self.seed, shifts)
        return {name: task(encoded, self.tokenizer) for name, task in TASKS.items()}

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizers beside the exported model."""
        self.tokenizer.save_pretrained(folder)


class DigitBatches(PixelLoader):
    """Batches of `DigitsPixels`; a run may go on to more steps than it was begun with, so its length decides nothing."""

    data: DigitsPixels

    @property
    def identity(self) -> dict[str, int]:
        """What decides which samples a step holds."""
        return {
            "seed": self.seed,
            "images": self.data.images,
            "clips": self.data.clips,
            "digits": len(self.data.digits),
        }


class DigitsPixels(LightningDataModule):
    """Pictures and clips of handwritten digits, shifted by up to a pixel, for the vision tokenizer.

    Args:
        images: pictures a step, over all ranks.
        clips: clips a step, over all ranks; every other one begins at rest.
        seed: of digits, shifts and directions.
    """

    def __init__(self, images: int = 16, clips: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.images, self.clips, self.seed = images, clips, seed

    @cached_property
    def digits(self) -> Digits:
        """The digits to draw from."""
        return load_digits()[0]

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each kind in a step, over all ranks."""
        return {"image": self.images, "video": self.clips}

    def draw(self, seed: int, step: int, places: Places) -> dict[str, Tensor]:
        """Pixels "image" (n, 3, H, W) and "video" (n, T, 3, H, W) at places of a step; see `StepSource`."""
        # One generator chooses for the whole step, as for every bundled tokenizer so far: each rank chooses all and draws its own.
        generator = torch.Generator().manual_seed(derive_key("pixels", seed, step))
        images, shifts = self._choose(self.images, generator)
        moved, offsets = self._choose(self.clips, generator)
        ways = torch.randint(len(DIRECTIONS), (self.clips,), generator=generator)
        some, at = list(places["image"]), list(places["video"])
        clips = draw_clips(moved[at], ways[at], offsets[at])
        resting = [place for place, clip in enumerate(at) if clip % 2]
        chosen = [at[place] for place in resting]
        clips[resting] = draw_clips(moved[chosen], ways[chosen], offsets[chosen], REST)
        return {
            "image": to_rgb_pixels(draw(images[some], shifts[some, 0], shifts[some, 1])),
            "video": to_rgb_pixels(clips),
        }

    def _choose(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Digits (count, 8, 8) and shifts (count, 2) of -1, 0 or 1 pixels."""
        chosen = torch.randint(len(self.digits), (count,), generator=generator)
        return self.digits.images[chosen], torch.randint(-1, 2, (count, 2), generator=generator).float()

    def train_dataloader(self) -> DigitBatches:
        """Batches drawn anew for every step."""
        steps = self.trainer.max_steps if self.trainer is not None and self.trainer.max_steps > 0 else 1000
        return DigitBatches(self, steps, self.seed)

    def val_dataloader(self) -> DataLoader:
        """The held-out digits once, as pictures and as clips."""
        return DataLoader(held_out_batches(), batch_size=None)  # type: ignore[arg-type]


def held_out_batches(size: int = 50) -> list[dict[str, Tensor]]:
    """Held-out digits as pictures and as clips in all directions, `size` at a time."""
    _, digits = load_digits()
    stills = draw_stills(digits.images)
    clips = draw_clips(digits.images, torch.arange(len(digits)) % len(DIRECTIONS), torch.zeros(len(digits), 2))
    return [
        {"image": to_rgb_pixels(some), "video": to_rgb_pixels(moving)}
        for some, moving in zip(stills.split(size), clips.split(size), strict=True)
    ]
