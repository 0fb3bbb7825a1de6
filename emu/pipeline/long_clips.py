"""Clips longer than those seen in training, in parts: each further one begins with the last latent frames, with the same prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generation.limits import check_whole
from emu.randomness import derive_key
from emu_tokenizers import VisionTokenizer


@dataclass(frozen=True)
class ClipParts:
    """A clip as one part or several.

    Attributes:
        frames: of a part, as in its header.
        part_latents: its latent frames.
        latents: latent frames of the whole clip.
        overlap: latent frames that a further part begins with; 0 for a clip of one part.
    """

    frames: int
    part_latents: int
    latents: int
    overlap: int

    @classmethod
    def of(cls, vision: VisionTokenizer, frames: int, overlap: int | None, trained: Sequence[int]) -> ClipParts:
        """Split a clip into parts.

        Args:
            vision: tokenizer of the model.
            frames: length of the clip.
            overlap: frames that a further part begins with, None for a clip in one piece.
            trained: lengths of the clips seen in training.

        Raises:
            TypeError, ValueError: the overlap is not a whole number, or leaves nothing to generate in a part.
        """
        factor, longest = vision.temporal_factor, max(trained)
        latents, kept = -(-frames // factor), 0
        if overlap is not None:
            kept = -(-check_whole("overlap", overlap, least=1) // factor)
            if kept >= longest // factor:
                raise ValueError(
                    f"overlap is {overlap} frames, and a part has {longest} (the longest clip that the model was trained on), in groups of "
                    f"{factor}; expected at most {max(0, (longest // factor - 1) * factor)}"
                )
        if not kept or frames <= longest:
            return cls(frames, latents, latents, 0)
        return cls(longest // factor * factor, longest // factor, latents, kept)

    def drawn(self, beginning: Tensor | None, part: Callable[[Tensor | None, int], Tensor]) -> Tensor:
        """Generate whole clips: codes (B, t, ...).

        Args:
            beginning: (B, k, ...) codes that the clips begin with, None if nothing is given.
            part: generates a part: codes that it begins with and its number -> its codes (B, t, ...), the given ones first.
        """
        if not self.overlap:
            return part(beginning, 0)
        codes, number = beginning, 0
        if codes is None or codes.shape[1] < self.part_latents:  # more may be given than a part holds
            codes = part(codes, 0)
        while codes.shape[1] < self.latents:
            number += 1
            made = part(codes[:, -self.overlap :], number)
            codes = torch.cat([codes, made[:, self.overlap :]], 1)
        return codes[:, : self.latents]


def part_seed(seed: int, number: int) -> int:
    """Return the seed of a part of a clip: the clip's own for the first, others for later ones, so that noise does not repeat."""
    return derive_key("part", seed, number) if number else seed
