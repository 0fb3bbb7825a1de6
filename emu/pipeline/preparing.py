"""The first half of generating pictures and clips: a request is checked and encoded, and becomes blocks to generate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from emu.generation import Batcher
from emu.generation.limits import check_whole
from emu.generation.window_choice import Window, check_window
from emu.pipeline.drawing_memory import memory_budget
from emu.pipeline.first_frames import Clip, each_clip
from emu.pipeline.grid_drawing import GridDrawing
from emu.pipeline.grid_requests import PreparedBlock, RequestReader, with_streams
from emu.pipeline.long_clips import ClipParts
from emu.pipeline.prepared_drawings import PreparedImages, PreparedVideos
from emu.pipeline.prompt_documents import PromptDocument, read_prompts
from emu.pipeline.requests import GenerationDefaults, Size, SizeLike, check_seeds, chosen_top_k, sizes_of
from emu.pipeline.stored import StoredEmu
from emu.pipeline.trained_limits import beyond_training
from emu_tokenizers import VisionTokenizer

SAMPLING = ("guidance_scale", "negative_prompt", "temperature", "top_k", "top_p")
Prompts = str | Sequence[str | Sequence[Any]]


class DrawingOptions(TypedDict, total=False):
    """Options of every call that generates pictures or clips."""

    size: SizeLike | Sequence[SizeLike] | None
    guidance_scale: float | None
    negative_prompt: str | None
    temperature: float | None
    top_k: int | None | Literal["default"]
    top_p: float | None
    seed: int | Sequence[int]
    window: Window
    batch_size: int
    memory: int | str | None
    deterministic: bool | None
    strict: bool


class PreparedImageOptions(DrawingOptions, total=False):
    """Options of `Emu.prepare_images`."""

    images_per_prompt: int


class ImageOptions(PreparedImageOptions, total=False):
    """Options of `Emu.iter_images`."""

    progress: bool


class PreparedVideoOptions(DrawingOptions, total=False):
    """Options of `Emu.prepare_videos`."""

    frames: int | None
    fps: float | None
    first_frames: Clip | Sequence[Clip] | None
    last_frames: Clip | Sequence[Clip] | None
    overlap: int | None
    videos_per_prompt: int


class VideoOptions(PreparedVideoOptions, total=False):
    """Options of `Emu.iter_videos`."""

    progress: bool


class PreparingEmu(StoredEmu):
    """Prepares pictures and clips; `DrawingEmu`, which documents the arguments, generates them."""

    def prepare_images(
        self,
        prompts: Prompts,
        *,
        size: SizeLike | Sequence[SizeLike] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        temperature: float | None = None,
        top_k: int | None | Literal["default"] = "default",
        top_p: float | None = None,
        images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        window: Window = 1,
        batch_size: int = 32,
        memory: int | str | None = None,
        deterministic: bool | None = None,
        strict: bool = False,
    ) -> PreparedImages:
        """Prepare the pictures that `iter_images` generates with these arguments; raises the same errors."""
        documents = read_prompts(prompts)
        settings = self.defaults.updated(
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            temperature=temperature,
            top_k=chosen_top_k(top_k),
            top_p=top_p,
        )
        streams = check_whole("images_per_prompt", images_per_prompt, least=1)
        blocks, beyond = self._blocks("image", documents, size, seed, settings, strict=strict)
        drawing = self._drawing(settings, window, batch_size, memory, deterministic)
        about = self._about(drawing, settings, SAMPLING)
        return PreparedImages(drawing, with_streams(blocks, streams), about, self.model_name, beyond)

    def prepare_videos(
        self,
        prompts: Prompts,
        *,
        size: SizeLike | Sequence[SizeLike] | None = None,
        frames: int | None = None,
        fps: float | None = None,
        first_frames: Clip | Sequence[Clip] | None = None,
        last_frames: Clip | Sequence[Clip] | None = None,
        overlap: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        temperature: float | None = None,
        top_k: int | None | Literal["default"] = "default",
        top_p: float | None = None,
        videos_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        window: Window = 1,
        batch_size: int = 16,
        memory: int | str | None = None,
        deterministic: bool | None = None,
        strict: bool = False,
    ) -> PreparedVideos:
        """Prepare the clips that `iter_videos` generates with these arguments; raises the same errors."""
        documents = read_prompts(prompts)
        settings = self.defaults.updated(
            frames=frames,
            fps=fps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            temperature=temperature,
            top_k=chosen_top_k(top_k),
            top_p=top_p,
        )
        streams = check_whole("videos_per_prompt", videos_per_prompt, least=1)
        parts, given = self._parts(settings.frames, overlap), (first_frames, last_frames)
        if parts.overlap and last_frames is not None:
            raise ValueError(
                f"overlap is {overlap} and last_frames are given; a clip in parts has no given end, leave one of them out"
            )
        blocks, beyond = self._blocks("video", documents, size, seed, settings, parts=parts, given=given, strict=strict)
        drawing = self._drawing(settings, window, batch_size, memory, deterministic)
        about = self._about(drawing, settings, ("frames", "fps", *SAMPLING))
        about |= {} if overlap is None else {"overlap": overlap}
        prepared = with_streams(blocks, streams)
        return PreparedVideos(drawing, prepared, about, self.model_name, beyond, settings.fps)

    def batcher(self, slots: int | None = None, memory: int | str | None = None) -> Batcher:
        """Return a continuous batch of this model, which requests join and leave.

        Args:
            slots: concurrent requests, None for as many as fit in memory.
            memory: memory limit in bytes, or text such as "8GB"; by default most of what is free.

        Raises:
            TypeError, ValueError: a number is invalid.
        """
        engine, budget = self._engine(None), memory_budget(memory, self.model.device)
        if memory is None and budget is not None:
            budget = max(1, budget - engine.bytes_to_copy)  # what is free now holds copies of the weights too
        return Batcher(engine, slots, budget)

    @property
    def spatial_factor(self) -> int:
        """Pixels per code along each side; sides of pictures are multiples of it."""
        return self._vision.spatial_factor

    @property
    def _vision(self) -> VisionTokenizer:
        if self.tokenizer.vision is None:
            raise ValueError("this model has no vision tokenizer, so it neither draws nor sees")
        return self.tokenizer.vision

    def _sizes(self, size: Any, count: int) -> list[Size]:
        return sizes_of(size, count, self.defaults.size, self.spatial_factor, self.trained)

    def _parts(self, frames: int, overlap: int | None) -> ClipParts:
        return ClipParts.of(self._vision, frames, overlap, self.trained.frames or (self.defaults.frames,))

    def _blocks(
        self,
        modality: str,
        documents: Sequence[PromptDocument],
        size: Any,
        seed: int | Sequence[int],
        settings: GenerationDefaults,
        *,
        parts: ClipParts | None = None,
        given: tuple[Any, Any] = (None, None),
        strict: bool,
    ) -> tuple[list[PreparedBlock], str]:
        """A block after each document, between given frames where there are any, and what of it lies outside of training.

        What is wrong with a call is found here, before work.
        """
        count = len(documents)
        seeds = check_seeds(seed, count)
        beginnings, endings = (
            each_clip(*one, count) for one in zip(("first_frames", "last_frames"), given, strict=True)
        )
        positions = self.model.config.max_position_embeddings
        reader = RequestReader(self.tokenizer, self.trained, positions, modality, settings, parts)
        bare = [one is None and other is None for one, other in zip(beginnings, endings, strict=True)]
        # Clips have the size of their frames where none is asked for; those without frames have the usual one.
        own: list[Any] = self._sizes(size, count) if size is not None or any(bare) else [None] * count
        sizes = [one if size is not None or is_bare else None for one, is_bare in zip(own, bare, strict=True)]
        reader.check_tasks([document for document, is_bare in zip(documents, bare, strict=True) if is_bare])
        asked = zip(documents, sizes, seeds, beginnings, endings, strict=True)
        blocks = [reader.read(*one) for one in asked]
        beyond = beyond_training(
            self.trained,
            positions,
            strict=strict,
            sizes=[block.size for block in blocks],
            frames=None if parts is None else parts.frames,
            rate=None if parts is None else settings.fps,
            tokens=max(block.tokens for block in blocks),
        )
        return blocks, beyond

    def _drawing(
        self,
        settings: GenerationDefaults,
        window: Window,
        batch_size: int,
        memory: int | str | None,
        deterministic: bool | None,
    ) -> GridDrawing:
        """How blocks are drawn."""
        return GridDrawing(
            self._engine(deterministic),
            self.tokenizer,
            settings.sampling(),
            check_window(window),
            check_whole("batch_size", batch_size, least=1),
            memory_budget(memory, self.model.device),
        )

    def _about(self, drawing: GridDrawing, settings: GenerationDefaults, names: Sequence[str]) -> dict[str, Any]:
        """What results depend on besides prompt, size and noise: the settings of these names and the machine's."""
        table = settings.to_dict()
        about = {name: table[name] for name in names}
        about |= {"window": drawing.window, "deterministic": drawing.engine.deterministic}
        return about | {"dtype": str(self.model.dtype).removeprefix("torch."), "device": self.model.device.type}
