"""The demo's data under Lightning: packed documents for the transformer, pictures and clips for the vision tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from emu.data import derive_key
from emu.data.datamodule import MixtureDataModule
from emu.data.document_sources import DocumentSource
from emu.demo.digits import DIRECTIONS, REST, SHIFTS, Digits, draw, draw_clips, draw_stills, load_digits, to_rgb_pixels
from emu.demo.tasks import TASKS, encode_digits
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.vocabulary import Vocabulary
from emu_tokenizers.resuming import check_identity

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
        num_digits: use only the first so many digits; None for all.
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


class StepBatches:
    """Batches by number of the step: an endless loader whose position is one integer.

    Args:
        digits: to draw from.
        images: pictures a step.
        clips: clips a step; every other one begins at rest.
        seed: together with the number of a step, all there is to know about its batch.
        num_steps: length of a pass.
    """

    def __init__(self, digits: Digits, images: int, clips: int, seed: int, num_steps: int) -> None:
        self.digits, self.images, self.clips, self.seed, self.num_steps = digits, images, clips, seed, num_steps
        self.step = 0

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.num_steps):
            self.step += 1
            yield self.batch(self.step - 1)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Pixels "image" (B, 3, H, W) and "video" (B, T, 3, H, W) of a step, shifted by up to a pixel."""
        generator = torch.Generator().manual_seed(derive_key("pixels", self.seed, step))

        def pick(count: int) -> tuple[Tensor, Tensor]:
            chosen = torch.randint(len(self.digits), (count,), generator=generator)
            return self.digits.images[chosen], torch.randint(-1, 2, (count, 2), generator=generator).float()

        images, shifts = pick(self.images)
        stills = draw(images, shifts[:, 0], shifts[:, 1])
        moved, offsets = pick(self.clips)
        ways = torch.randint(len(DIRECTIONS), (self.clips,), generator=generator)
        clips = draw_clips(moved, ways, offsets)
        clips[1::2] = draw_clips(moved[1::2], ways[1::2], offsets[1::2], REST)
        return {"image": to_rgb_pixels(stills), "video": to_rgb_pixels(clips)}

    def state_dict(self) -> dict[str, Any]:
        """The position, and what the batches are drawn from."""
        return {"step": self.step, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            ValueError: it is one in other batches.
        """
        check_identity(state, self._identity)
        self.step = int(state["step"])

    @property
    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "images": self.images, "clips": self.clips, "digits": len(self.digits)}


class DigitsPixels(LightningDataModule):
    """Pictures and clips of handwritten digits, for the vision tokenizer.

    Args:
        images: pictures a step.
        clips: clips a step.
        seed: of digits, shifts and directions.
    """

    def __init__(self, images: int = 16, clips: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.images, self.clips, self.seed = images, clips, seed

    def train_dataloader(self) -> StepBatches:
        """Batches drawn anew for every step."""
        steps = self.trainer.max_steps if self.trainer is not None and self.trainer.max_steps > 0 else 1000
        return StepBatches(load_digits()[0], self.images, self.clips, self.seed, steps)

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
