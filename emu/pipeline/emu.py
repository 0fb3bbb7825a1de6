"""`Emu`: a trained model with its tokenizers, and one method for each job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor
from tqdm import tqdm

from emu.generation import Sampling
from emu.generation.limits import check_whole, room_for_text
from emu.generation.window_choice import Window
from emu.pipeline.grid_requests import (
    Clip,
    GridRequests,
    Made,
    as_clips,
    beginning,
    cells_of,
    headers_after,
    vision_threads,
)
from emu.pipeline.requests import (
    GenerationDefaults,
    Size,
    batches,
    check_documents,
    check_prompts,
    check_seeds,
    check_size,
    chosen_top_k,
    text_sampling,
)
from emu.pipeline.results import ImageResult, VideoResult
from emu.pipeline.stored import StoredEmu
from emu.pipeline.trained_limits import block_tasks, kinds_of, next_tasks, warn_beyond_training
from emu.trained import task_name
from emu_tokenizers import VisionTokenizer

SAMPLING = ("guidance_scale", "negative_prompt", "temperature", "top_k", "top_p")


class Emu(StoredEmu):
    """Model, tokenizers and generation defaults, with a method for each job.

    Args:
        model: the transformer.
        tokenizer: of the documents that it was trained on.
        defaults: settings where a call says nothing; by default the library's, with the size, length and rate of the clips that the
            model was trained on where there is only one.
        deterministic: bit for bit the same results in any batch, at the cost of speed; calls may ask otherwise.
        trained: what the model was trained for, where that is known; see `emu.trained`.

    Raises:
        ValueError: model and tokenizer speak of different ids.
    """

    def generate_images(
        self,
        prompts: str | Sequence[str],
        *,
        size: Size | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        temperature: float | None = None,
        top_k: int | None | Literal["default"] = "default",
        top_p: float | None = None,
        images_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        window: Window = 1,
        batch_size: int = 32,
        deterministic: bool | None = None,
        strict: bool = False,
        progress: bool = False,
    ) -> list[ImageResult]:
        """Draw pictures. Settings that are None are those of `defaults`.

        Args:
            prompts: one or several.
            size: (height, width) in pixels, multiples of the tokenizer's spatial factor.
            guidance_scale: how far to move from the negative prompt towards the prompt; 1 leaves guidance out.
            negative_prompt: what guidance moves away from.
            temperature: 0 is greedy.
            top_k: draw among the N most likely codes; None or 0 means all.
            top_p: draw among the most likely codes that hold this share.
            images_per_prompt: picture k of a prompt draws from stream k of its seed.
            seed: one for all prompts, or one each; equal prompts with equal seeds give equal pictures.
            window: above 1, exact speculative decoding of N codes at once; "auto" times 1 and 16 on the first batches and keeps
                the faster.
            batch_size: pictures that are drawn at a time.
            deterministic: see `Emu`.
            strict: raise ValueError where the request lies outside of what the model was trained for (size, length), instead of a warning.
            progress: whether to show a progress bar.

        Returns:
            The pictures of the first prompt, then those of the second, ...

        Raises:
            TypeError, ValueError: an argument is invalid, or the model was not trained to draw; nothing was drawn.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        settings = self.defaults.updated(
            size=size,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            temperature=temperature,
            top_k=chosen_top_k(top_k),
            top_p=top_p,
        )
        prompts = check_prompts(prompts)
        requests = GridRequests.of(
            self.tokenizer,
            "image",
            self._clip_grid(settings)[1:],
            prompts,
            check_seeds(seed, len(prompts)),
            check_whole("images_per_prompt", images_per_prompt, least=1),
            negative_prompt=settings.negative_prompt,
        )
        self._check_trained("image", prompts, 0)
        self._warn_beyond_training(strict, requests.tokens, size=settings.size)
        options = {"window": window, "batch_size": batch_size, "progress": progress}
        made, about = self._made(requests, settings, ("size", *SAMPLING), deterministic, **options)
        model = self.model_name
        return [ImageResult(*block[:4], {**about, "stream": block.stream}, model) for block in made]

    def generate_videos(
        self,
        prompts: str | Sequence[str],
        *,
        size: Size | None = None,
        frames: int | None = None,
        fps: float | None = None,
        first_frames: Clip | Sequence[Clip] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        temperature: float | None = None,
        top_k: int | None | Literal["default"] = "default",
        top_p: float | None = None,
        videos_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        window: Window = 1,
        batch_size: int = 16,
        deterministic: bool | None = None,
        strict: bool = False,
        progress: bool = False,
    ) -> list[VideoResult]:
        """Make clips from nothing, from a picture, or from the beginning of a clip.

        Args:
            frames: length of the clips, first frames included.
            fps: frames a second.
            first_frames: how every clip begins: a list of PIL images, a uint8 array (T, H, W, 3), a `Video`, or the path of a video, a
                picture or a folder of frames (brought to the rate and size of the clip); or a list of those, one per prompt. One picture
                is image-to-video, several are continuation. Codes stand for groups of frames (the tokenizer's temporal factor): where the
                frames do not fill the last group, the last one is repeated.
            videos_per_prompt, others: as in `generate_images`.

        Returns:
            The clips of the first prompt, then those of the second, ...

        Raises:
            FileNotFoundError: there is no such file of first frames.
            TypeError, ValueError: an argument is invalid, or the model was not trained for this; nothing was generated.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        settings = self.defaults.updated(
            size=size,
            frames=frames,
            fps=fps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            temperature=temperature,
            top_k=chosen_top_k(top_k),
            top_p=top_p,
        )
        prompts = check_prompts(prompts)
        clips = as_clips(first_frames, len(prompts), settings)
        if size is None and clips:
            settings = settings.updated(size=clips[0].frames.shape[1:3])
        size = self._size(settings.size)
        self._check_trained("video", prompts, len(clips[0]) if clips else 0)
        requests = GridRequests.of(
            self.tokenizer,
            "video",
            self._clip_grid(settings),
            prompts,
            check_seeds(seed, len(prompts)),
            check_whole("videos_per_prompt", videos_per_prompt, least=1),
            negative_prompt=settings.negative_prompt,
            meta={"frames": settings.frames, "fps": settings.fps},
            given=[beginning(self.tokenizer, clip, settings.frames, size) for clip in clips],
        )
        self._warn_beyond_training(strict, requests.tokens, size=size, frames=settings.frames, rate=settings.fps)
        options = {"window": window, "batch_size": batch_size, "progress": progress}
        made, about = self._made(requests, settings, ("size", "frames", "fps", *SAMPLING), deterministic, **options)
        about |= {"first_frames": len(clips[0])} if clips else {}
        model = self.model_name
        return [
            VideoResult(clip.images(), codes, settings.fps, prompt, seed, {**about, "stream": stream}, model)
            for clip, codes, prompt, seed, stream in made
        ]

    def generate_text(
        self,
        documents: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        batch_size: int = 32,
        deterministic: bool | None = None,
        strict: bool = False,
        progress: bool = False,
    ) -> list[str]:
        """Continue documents with text.

        Args:
            documents: each a list of items in order (`str`, PIL images, `Video`, ...), e.g. `[[image, "Describe it."]]`.
            max_new_tokens: where text ends that does not end by itself; it also ends at the model's positions.
            temperature: 0 is greedy.
            top_k: draw among the N most likely tokens; None or 0 means all.
            top_p: draw among the most likely tokens that hold this share.
            seed: one for all documents, or one each.
            batch_size, deterministic, strict, progress: as in `generate_images`.

        Returns:
            One text per document, without the document.

        Raises:
            TypeError, ValueError: an argument is invalid, a picture is of a size that the tokenizer refuses, a document fills the model's
                positions, or the model was not trained for this; nothing was written.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        max_new_tokens = check_whole("max_new_tokens", max_new_tokens, least=1)
        documents = check_documents(documents)
        seeds = check_seeds(seed, len(documents))
        for document in documents:
            self.trained.check_task(task_name(kinds_of(self.tokenizer, document), "text"))
        ids = [self._question(document) for document in documents]
        self._warn_beyond_training(strict, max(map(len, ids)))
        texts: list[str] = [""] * len(documents)
        engine = self._engine(deterministic)
        with tqdm(total=len(ids), unit="text", disable=not progress, dynamic_ncols=True) as bar:
            for indices in batches(ids, lambda prompt: 0, check_whole("batch_size", batch_size, least=1)):
                written = engine.continue_texts(
                    [ids[index] for index in indices],
                    sampling,
                    max_new_tokens=max_new_tokens,
                    seed=[seeds[index] for index in indices],
                )
                for index, text_ids in zip(indices, written, strict=True):
                    texts[index] = self.tokenizer.layout.decode_text(text_ids.tolist())
                bar.update(len(indices))
        return texts

    def generate(
        self,
        document: Sequence[Any] | str,
        *,
        size: Size | Literal["auto"] | None = None,
        frames: int | None = None,
        fps: float | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None | Literal["default"] = "default",
        top_p: float | None = None,
        text_temperature: float | None = None,
        text_top_k: int | None = None,
        text_top_p: float | None = None,
        max_new_tokens: int = 256,
        max_blocks: int = 4,
        seed: int = 0,
        deterministic: bool | None = None,
        strict: bool = False,
    ) -> Iterator[Any]:
        """Continue a document with text, pictures and clips in the order that the model chooses.

        Args:
            document: its items so far (`str`, PIL images, `Video`, ...), or a single text.
            size: (height, width) of the pictures and clips that the model may begin, besides the sizes that the document holds; "auto" lets
                the model write the size of its first picture, which the others share (Emu3.5).
            frames, fps: of the clips.
            guidance_scale, temperature, top_k, top_p: how codes are drawn.
            text_temperature, text_top_k, text_top_p: how text is drawn; by default what the model's task says (Emu3.5), else all candidates
                with the temperature and `top_p` of codes.
            max_new_tokens: tokens of text after which the document ends; it also ends at the model's positions.
            max_blocks: pictures and clips after which none begins.
            seed: of the noise.
            deterministic: see `Emu`.
            strict: as in `generate_images`.

        Returns:
            An iterator over `str`, PIL images and `Video`, each as soon as it is finished. What Emu3.5 plans before it writes comes as
            `emu.documents.Plan`, a `str` with a `scope`, "document" or "image".

        Raises:
            TypeError, ValueError: an argument is invalid, or the model was not trained to go on from such a document; nothing was made.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        settings = self.defaults.updated(
            size=None if size == "auto" else size,
            frames=frames,
            fps=fps,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=chosen_top_k(top_k),
            top_p=top_p,
        )
        items = [document] if isinstance(document, str) else document
        (items,) = check_documents([items])
        self.trained.check_task(*next_tasks(self.tokenizer, kinds_of(self.tokenizer, items)))
        given = {"text_temperature": text_temperature, "text_top_k": text_top_k, "text_top_p": text_top_p}
        text = text_sampling(settings, self.tokenizer.templates.settings, given)
        prompt = self._question(items)
        self._warn_beyond_training(
            strict, len(prompt), size=None if size == "auto" else settings.size, frames=frames, rate=fps
        )
        clip = None if size == "auto" or self.tokenizer.vision is None else self._clip_grid(settings)
        segments = self._engine(deterministic).generate(
            prompt,
            headers=headers_after(self.tokenizer, prompt, clip, settings),
            one_size=size == "auto",
            text=text,
            negative_ids=self.tokenizer.unconditional(items),
            codes=settings.sampling(),
            max_text_tokens=check_whole("max_new_tokens", max_new_tokens, least=1),
            max_blocks=check_whole("max_blocks", max_blocks, least=1),
            seed=check_seeds(seed, 1)[0],
        )
        return map(self.tokenizer.decode_segment, segments)

    @property
    def spatial_factor(self) -> int:
        """Sides of pictures are multiples of it."""
        return self._vision.spatial_factor

    @property
    def _vision(self) -> VisionTokenizer:
        if self.tokenizer.vision is None:
            raise ValueError("this model has no vision tokenizer, so it neither draws nor sees")
        return self.tokenizer.vision

    def _check_trained(self, modality: str, prompts: Sequence[str], given_frames: int) -> None:
        for prompt in prompts:
            self.trained.check_task(*block_tasks(prompt, modality, given_frames))

    def _warn_beyond_training(self, strict: bool, tokens: int, **shape: Any) -> None:
        warn_beyond_training(
            self.trained, self.model.config.max_position_embeddings, strict=strict, tokens=tokens, **shape
        )

    def _question(self, items: Sequence[Any]) -> Tensor:
        """Ids of a document that text follows."""
        with vision_threads(self.tokenizer, cells_of(self.tokenizer, items)):
            ids = self.tokenizer.question(items)
        room_for_text([ids], self.model.config.max_position_embeddings, 1)
        return ids

    def _made(
        self,
        requests: GridRequests,
        settings: GenerationDefaults,
        names: Sequence[str],
        deterministic: bool | None,
        **options: Any,
    ) -> tuple[list[Made], dict[str, Any]]:
        """Generated blocks, and what each depends on besides prompt and noise: the settings of these names and the machine's."""
        engine, table = self._engine(deterministic), settings.to_dict()
        made = requests.generate(engine, self.tokenizer, settings.sampling(), **options)
        about = {name: table[name] for name in names}
        about |= {"window": options["window"], "deterministic": engine.deterministic}
        return made, about | {"dtype": str(self.model.dtype).removeprefix("torch."), "device": self.model.device.type}

    def _size(self, size: Size | None) -> Size:
        if size is None:
            seen = ", ".join(f"({height}, {width})" for height, width in self.trained.sizes[:8])
            hint = f"; it was trained on {seen}" if seen else ""
            raise ValueError(f"no size: the model has no default, so give size=(height, width) in pixels{hint}")
        return check_size(size, self._vision.spatial_factor)

    def _clip_grid(self, settings: GenerationDefaults) -> tuple[int, int, int]:
        """(time, height, width) in codes; a picture has the last two."""
        (height, width), vision = self._size(settings.size), self._vision
        time = -(-settings.frames // vision.temporal_factor)
        return time, height // vision.spatial_factor, width // vision.spatial_factor
