"""The jobs of an `Emu` that draw: pictures and clips after any document, and pictures that are edited."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from emu.generation.limits import check_whole
from emu.generation.window_choice import Window, check_window
from emu.pipeline.drawing_memory import DrawingMemory, memory_budget
from emu.pipeline.first_frames import Clip, each_clip
from emu.pipeline.grid_drawing import GridDrawing, told_of
from emu.pipeline.grid_requests import GridRequest, RequestReader, clip_grid, with_streams
from emu.pipeline.long_clips import ClipParts
from emu.pipeline.prompt_documents import PromptDocument, read_prompts
from emu.pipeline.requests import GenerationDefaults, Size, SizeLike, check_seeds, chosen_top_k, sizes_of
from emu.pipeline.results import ImageResult, VideoResult
from emu.pipeline.stored import StoredEmu
from emu.pipeline.trained_limits import warn_beyond_training
from emu_tokenizers import VisionTokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

SAMPLING = ("guidance_scale", "negative_prompt", "temperature", "top_k", "top_p")
FEW_WORDS = 64
"""Tokens of words, where nobody has read them yet."""
Prompts = str | Sequence[str | Sequence[Any]]


class DrawingOptions(TypedDict, total=False):
    """What `Emu.iter_images` and `Emu.iter_videos` take beside prompts, and so whatever is built on them."""

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
    progress: bool


class ImageOptions(DrawingOptions, total=False):
    """Options of `Emu.iter_images`."""

    images_per_prompt: int


class VideoOptions(DrawingOptions, total=False):
    """Options of `Emu.iter_videos`."""

    frames: int | None
    fps: float | None
    first_frames: Clip | Sequence[Clip] | None
    last_frames: Clip | Sequence[Clip] | None
    overlap: int | None
    videos_per_prompt: int


class DrawingEmu(StoredEmu):
    """The jobs that draw; `Emu` adds those that write."""

    def generate_images(self, prompts: Prompts, **options: Unpack[ImageOptions]) -> list[ImageResult]:
        """Draw pictures: `emu.generate_images("a red circle", size=(64, 64), guidance_scale=3.0, seed=0)`.

        Arguments and errors are those of `iter_images`, which hands out each picture when it is done.

        Returns:
            The pictures of the first prompt, then those of the second, ...
        """
        return list(self.iter_images(prompts, **options))

    def iter_images(
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
        progress: bool = False,
    ) -> Iterator[ImageResult]:
        """Draw pictures, one after another; memory does not grow with their number. Settings that are None are those of `defaults`.

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
        documents = read_prompts(prompts)
        settings = self.defaults.updated(
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            temperature=temperature,
            top_k=chosen_top_k(top_k),
            top_p=top_p,
        )
        streams = check_whole("images_per_prompt", images_per_prompt, least=1)
        requests = self._requests("image", documents, size, seed, settings, strict=strict)
        drawing = self._drawing(requests, settings, window, batch_size, memory, deterministic)
        about, model = self._about(drawing, settings, SAMPLING), self.model_name
        made = drawing.made(with_streams(requests, streams), progress=progress)
        return (ImageResult(block.value, block.codes, *told_of(block, about), model) for block in made)

    def generate_videos(self, prompts: Prompts, **options: Unpack[VideoOptions]) -> list[VideoResult]:
        """Make clips from words, from pictures, or from the beginning of a clip: `emu.generate_videos("a ball", frames=16, fps=8)`.

        Arguments and errors are those of `iter_videos`, which hands out each clip when it is done.

        Returns:
            The clips of the first prompt, then those of the second, ...
        """
        return list(self.iter_videos(prompts, **options))

    def iter_videos(
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
        progress: bool = False,
    ) -> Iterator[VideoResult]:
        """Make clips, one after another; memory does not grow with their number.

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
        requests = self._requests("video", documents, size, seed, settings, parts=parts, given=given, strict=strict)
        drawing = self._drawing(requests, settings, window, batch_size, memory, deterministic)
        about, model = self._about(drawing, settings, ("frames", "fps", *SAMPLING)), self.model_name
        about |= {} if overlap is None else {"overlap": overlap}
        made = drawing.made(with_streams(requests, streams), progress=progress)
        return (
            VideoResult(block.value.images(), block.codes, settings.fps, *told_of(block, about), model)
            for block in made
        )

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
        drawing = self._drawing([], settings, window, 1, None, None)
        return drawing.memory_of(
            modality, grid, FEW_WORDS + blocks_before * len(self.tokenizer.layout.block(modality, grid))
        )

    @property
    def spatial_factor(self) -> int:
        """Sides of pictures are multiples of it."""
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

    def _requests(
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
    ) -> list[GridRequest]:
        """A block after each document, between given frames where there are any; what is wrong with a call is found here, before work."""
        count, sizes = len(documents), list[Size | None]()
        seeds = check_seeds(seed, count)
        beginnings, endings = (
            each_clip(*one, count) for one in zip(("first_frames", "last_frames"), given, strict=True)
        )
        positions = self.model.config.max_position_embeddings
        reader = RequestReader(self.tokenizer, self.trained, positions, modality, settings, parts)
        if all(frames is None for frames in given):
            sizes += self._sizes(size, count)
            reader.check_tasks(documents)
        else:
            sizes += [None] * count if size is None else self._sizes(size, count)
        asked = zip(documents, sizes, seeds, beginnings, endings, strict=True)
        requests = [reader.read(*one) for one in asked]
        warn_beyond_training(
            self.trained,
            positions,
            strict=strict,
            sizes=[request.size for request in requests],
            frames=None if parts is None else parts.frames,
            rate=None if parts is None else settings.fps,
            tokens=max(request.tokens for request in requests),
        )
        return requests

    def _drawing(
        self,
        requests: Sequence[GridRequest],
        settings: GenerationDefaults,
        window: Window,
        batch_size: int,
        memory: int | str | None,
        deterministic: bool | None,
    ) -> GridDrawing:
        """How these blocks are drawn; raises ValueError where the memory does not hold one of them."""
        drawing = GridDrawing(
            self._engine(deterministic),
            self.tokenizer,
            settings.sampling(),
            check_window(window),
            check_whole("batch_size", batch_size, least=1),
            memory_budget(memory, self.model.device),
        )
        drawing.check(requests)
        return drawing

    def _about(self, drawing: GridDrawing, settings: GenerationDefaults, names: Sequence[str]) -> dict[str, Any]:
        """What results depend on besides prompt, size and noise: the settings of these names and the machine's."""
        table = settings.to_dict()
        about = {name: table[name] for name in names}
        about |= {"window": drawing.window, "deterministic": drawing.engine.deterministic}
        return about | {"dtype": str(self.model.dtype).removeprefix("torch."), "device": self.model.device.type}
