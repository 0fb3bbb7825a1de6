"""The jobs of an `Emu` that draw: pictures and clips after any document, and pictures that are edited."""

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
    """The jobs that draw; `Emu` adds those that write."""

    def generate_images(self, prompts: Prompts, **options: Unpack[ImageOptions]) -> list[ImageResult]:
        """Draw pictures: `emu.generate_images("a red circle", size=(64, 64), guidance_scale=3.0, seed=0)`.

        Arguments and errors are those of `iter_images`, which hands out each picture when it is done.

        Returns:
            The pictures of the first prompt, then those of the second, ...
        """
        return list(self.iter_images(prompts, **options))

    def iter_images(
        self, prompts: Prompts, *, progress: bool = False, **options: Unpack[PreparedImageOptions]
    ) -> Iterator[ImageResult]:
        """Draw pictures, one after another; memory does not grow with their number. Settings that are None are those of `defaults`.

        `prepare_images` has the arguments beside `progress`, with their defaults.

        Args:
            prompts: one text, or a list of texts and documents: `[[picture, "make it red"], "a ball", [a, a_red, b]]`. A document is a list
                of texts, pictures (PIL images, paths, uint8 arrays (H, W, 3)), clips and other values; what is drawn comes after its
                last item.
            size: (height, width) in pixels, multiples of the tokenizer's spatial factor; or a ratio "width:height", of the default size's
                area or with an area in pixels, `("4:3", 262144)`; or a list of one size for each prompt.
            guidance_scale: how far to move from the negative prompt towards the prompt; 1 leaves guidance out.
            negative_prompt: what guidance moves away from: the words of a document are left out for it, and pictures stay.
            temperature: 0 is greedy.
            top_k: draw among the N most likely codes; None or 0 means all.
            top_p: draw among the most likely codes that hold this share.
            images_per_prompt: picture k of a prompt draws from stream k of its seed.
            seed: one for all prompts, or one each; equal prompts with equal seeds give equal pictures.
            window: above 1, exact speculative decoding of N codes at once; "auto" times 1 and 16 on the first batches and keeps
                the faster.
            batch_size: pictures that are drawn at a time; fewer where the memory does not hold so many.
            memory: bytes that drawing may take, or text such as "8GB"; by default most of what is free.
            deterministic: see `Emu`.
            strict: raise ValueError where the request lies outside of what the model was trained for (size, length), instead of a warning.
            progress: whether to show a progress bar.

        Returns:
            An iterator over the pictures of the first prompt, then those of the second, ...

        Raises:
            FileNotFoundError: there is no such picture.
            TypeError, ValueError: an argument is invalid, a picture is of a size that the tokenizer refuses, a document leaves no room for
                what is to be drawn, or the model was not trained for this; nothing was drawn.
            FloatingPointError: the model's logits hold NaN or infinity.
            torch.OutOfMemoryError: the memory does not hold a single picture.
        """
        return self.prepare_images(prompts, **options).results(progress)

    def generate_videos(self, prompts: Prompts, **options: Unpack[VideoOptions]) -> list[VideoResult]:
        """Make clips from words, from pictures, or from the beginning of a clip: `emu.generate_videos("a ball", frames=16, fps=8)`.

        Arguments and errors are those of `iter_videos`, which hands out each clip when it is done.

        Returns:
            The clips of the first prompt, then those of the second, ...
        """
        return list(self.iter_videos(prompts, **options))

    def iter_videos(
        self, prompts: Prompts, *, progress: bool = False, **options: Unpack[PreparedVideoOptions]
    ) -> Iterator[VideoResult]:
        """Make clips, one after another; memory does not grow with their number.

        `prepare_videos` has the arguments beside `progress`, with their defaults.

        Args:
            frames: length of the clips, first and last frames included.
            fps: frames a second.
            first_frames: how every clip begins: a list of PIL images, a uint8 array (T, H, W, 3), a `Video`, or the path of a video, a
                picture or a folder of frames (brought to the rate and size of the clip); or a list of those, one per prompt. One picture
                is image-to-video, several are continuation. Codes stand for groups of frames (the tokenizer's temporal factor): where the
                frames do not fill the last group, the last one is repeated.
            last_frames: how every clip ends, given likewise, for models that were trained to fill in; what lies between is drawn.
            overlap: clips longer than the longest that the model was trained on are made in parts of that length, each of which begins
                with so many of the last frames there are, in whole groups; None makes them in one piece.
            videos_per_prompt, others: as in `iter_images`.

        Returns:
            An iterator over the clips of the first prompt, then those of the second, ...

        Raises:
            FileNotFoundError: there is no such file of first or last frames, or no such picture.
            TypeError, ValueError: an argument is invalid, or the model was not trained for this; nothing was generated.
            FloatingPointError: the model's logits hold NaN or infinity.
            torch.OutOfMemoryError: the memory does not hold a single clip.
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
        """Bytes that drawing a picture or a clip takes beside the weights, before it is drawn; `peak(n)` for N at a time.

        Args:
            modality: "image" or "video".
            size, frames, overlap, guidance_scale, window: of it, as of `iter_videos`.
            blocks_before: pictures or clips in its document, taken to be of its own size; words are taken to be few.

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
