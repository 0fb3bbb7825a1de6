"""The methods of `Emu` that generate pictures and clips after any document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from emu.pipeline.drawing_memory import DrawingMemory
from emu.pipeline.grid_requests import clip_grid
from emu.pipeline.preparing import (
    ImageOptions,
    PreparedImageOptions,
    PreparedVideoOptions,
    PreparingEmu,
    Prompts,
    VideoOptions,
)
from emu.pipeline.requests import Size
from emu.pipeline.results import ImageResult, VideoResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

FEW_WORDS = 64
"""Tokens of words, where nobody has read them yet."""


class DrawingEmu(PreparingEmu):
    """Methods that generate pictures and clips; `Emu` adds those that write text."""

    def generate_images(self, prompts: Prompts, **options: Unpack[ImageOptions]) -> list[ImageResult]:
        """Generate pictures: `emu.generate_images("a red circle", size=(64, 64), guidance_scale=3.0, seed=0)`.

        Arguments and errors are those of `iter_images`, which yields each picture as soon as it is done.

        Returns:
            The pictures of the first prompt, then those of the second, ...
        """
        return list(self.iter_images(prompts, **options))

    def iter_images(
        self, prompts: Prompts, *, progress: bool = False, **options: Unpack[PreparedImageOptions]
    ) -> Iterator[ImageResult]:
        """Generate pictures one after another; memory does not grow with their number. Settings that are None are taken from `defaults`.

        `prepare_images` has the arguments besides `progress`, with their defaults.

        Args:
            prompts: one text, or a list of texts and documents: `[[picture, "make it red"], "a ball", [a, a_red, b]]`. A document is a list
                of texts, pictures (PIL images, paths, uint8 arrays (H, W, 3)), clips and other values; the output follows its
                last item.
            size: (height, width) in pixels, multiples of the tokenizer's spatial factor; or a ratio "width:height", at the default size's
                area or with an area in pixels, `("4:3", 262144)`; or a list with one size per prompt.
            guidance_scale: how far to move from the negative prompt towards the prompt; 1 turns guidance off.
            negative_prompt: what guidance moves away from; it replaces the words of a document, whose pictures stay.
            temperature: 0 is greedy.
            top_k: sample from the N most likely codes; None or 0 means all.
            top_p: sample from the most likely codes with this total probability.
            images_per_prompt: picture k of a prompt uses random stream k of its seed.
            seed: one for all prompts, or one each; equal prompts with equal seeds give equal pictures.
            window: above 1, exact speculative decoding of N codes at once; "auto" times 1 and 16 on the first batches and keeps
                the faster one.
            batch_size: pictures per batch; fewer if they do not fit in memory.
            memory: memory limit in bytes, or text such as "8GB"; by default most of what is free.
            deterministic: see `Emu`.
            strict: raise ValueError instead of warning if the request is outside what the model was trained for (size, length).
            progress: whether to show a progress bar.

        Returns:
            An iterator over the pictures of the first prompt, then those of the second, ...

        Raises:
            FileNotFoundError: there is no such picture.
            TypeError, ValueError: an argument is invalid, a picture has a size that the tokenizer rejects, a document leaves no room for
                the output, or the model was not trained for this; nothing was generated.
            FloatingPointError: the model's logits hold NaN or infinity.
            torch.OutOfMemoryError: a single picture does not fit in memory.
        """
        return self.prepare_images(prompts, **options).results(progress)

    def generate_videos(self, prompts: Prompts, **options: Unpack[VideoOptions]) -> list[VideoResult]:
        """Generate clips from words, from pictures, or from the beginning of a clip: `emu.generate_videos("a ball", frames=16, fps=8)`.

        Arguments and errors are those of `iter_videos`, which yields each clip as soon as it is done.

        Returns:
            The clips of the first prompt, then those of the second, ...
        """
        return list(self.iter_videos(prompts, **options))

    def iter_videos(
        self, prompts: Prompts, *, progress: bool = False, **options: Unpack[PreparedVideoOptions]
    ) -> Iterator[VideoResult]:
        """Generate clips one after another; memory does not grow with their number.

        `prepare_videos` has the arguments besides `progress`, with their defaults.

        Args:
            frames: length of the clips, including first and last frames.
            fps: frames per second.
            first_frames: the start of every clip: a list of PIL images, a uint8 array (T, H, W, 3), a `Video`, or the path of a video, a
                picture or a folder of frames (resampled to the rate and size of the clip); or a list of those, one per prompt. One picture
                is image-to-video, several are continuation. Codes cover groups of frames (the tokenizer's temporal factor): if the
                frames do not fill the last group, the last one is repeated.
            last_frames: the end of every clip, likewise, for models trained to fill in; the frames in between are generated.
            overlap: generate clips longer than the longest seen in training in parts of that length, each starting from this many
                of the frames before it, in whole groups; None generates them in one piece.
            videos_per_prompt, others: as in `iter_images`.

        Returns:
            An iterator over the clips of the first prompt, then those of the second, ...

        Raises:
            FileNotFoundError: there is no such file of first or last frames, or no such picture.
            TypeError, ValueError: an argument is invalid, or the model was not trained for this; nothing was generated.
            FloatingPointError: the model's logits hold NaN or infinity.
            torch.OutOfMemoryError: a single clip does not fit in memory.
        """
        return self.prepare_videos(prompts, **options).results(progress)

    def memory_of(
        self,
        modality: str,
        *,
        size: Size | None = None,
        frames: int | None = None,
        overlap: int | None = None,
        guidance_scale: float | None = None,
        blocks_before: int = 0,
        window: int = 1,
    ) -> DrawingMemory:
        """Compute the bytes that a picture or clip takes on top of the weights, before it is generated; `peak(n)` for a batch of n.

        Args:
            modality: "image" or "video".
            size, frames, overlap, guidance_scale, window: as in `iter_videos`.
            blocks_before: pictures or clips in the prompt, assumed to be of the same size; words are assumed to be few.

        Raises:
            TypeError, ValueError: an argument is invalid.
        """
        settings = self.defaults.updated(frames=frames, guidance_scale=guidance_scale)
        (height_width,) = self._sizes(size, 1)
        rank = self.tokenizer.layout.modality(modality).rank
        grid = clip_grid(self._vision, height_width, self._parts(settings.frames, overlap).frames)[-rank:]
        drawing = self._drawing(settings, window, 1, None, None)
        return drawing.memory_of(
            modality, grid, FEW_WORDS + blocks_before * len(self.tokenizer.layout.block(modality, grid))
        )
