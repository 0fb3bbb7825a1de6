"""`Emu`: a trained model with its tokenizers, and one method for each job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emu.checkpoints.repositories import push
from emu.generation import Engine, Sampling
from emu.hub.tokenizer import ReleasedTokenizer
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.blocks import Blocks, Clip, as_clips, beginning, free_headers, headers
from emu.pipeline.folder import check_vocabulary, read_parts, write_folder
from emu.pipeline.requests import (
    GenerationDefaults,
    Size,
    batches,
    check_device,
    check_documents,
    check_prompts,
    check_seeds,
    check_size,
    check_whole,
    chosen_top_k,
    text_sampling,
)
from emu.pipeline.results import ImageResult, VideoResult
from emu.trained import UNKNOWN, Trained
from emu_tokenizers import VisionTokenizer


class Emu:
    """Model, tokenizers and generation defaults.

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

    def __init__(
        self,
        model: EmuForCausalLM,
        tokenizer: MultimodalTokenizer,
        defaults: GenerationDefaults | None = None,
        *,
        deterministic: bool = False,
        trained: Trained = UNKNOWN,
    ) -> None:
        check_vocabulary(model, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.trained = trained
        self.defaults = defaults or GenerationDefaults.from_dict({}, self.trained)
        self.deterministic = deterministic
        self._engines: dict[tuple[bool, torch.dtype, torch.device], Engine] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        deterministic: bool = False,
        verify: bool = False,
        **options: Any,
    ) -> Emu:
        """Read a folder that `save_pretrained` wrote, the bundled model of this name ("digits"), or a released Emu3 or Emu3.5.

        Args:
            path: a folder, or the bare name of a bundled model, which wins over a folder of that name (write "./digits" for that one);
                for released models also a hub's repository.
            device: where to generate; by default a GPU where there is one.
            dtype: of the transformer; float32 by default, for released models that of their files.
            deterministic: see `Emu`.
            verify: compare the content of every file with the checksums in `emu.json`; their lengths are compared always.
            options: of transformers (`device_map`, `quantization_config`, which may be "int8", "int4" or "fp8", ...); for released models
                `vision_tokenizer`, `text_tokenizer`, `templates`, `split`, `allow_pickle`; for a hub's repository `revision`, `token`,
                `cache_dir`, `local_files_only`, `force_download` (see `emu.hub.reading.read_released`).

        Raises:
            FileNotFoundError: there is no such folder, or parts of it are missing.
            ValueError: there is no such device, a file is damaged, or model and tokenizers do not belong together (the message names
                both fingerprints).
        """
        target = check_device(device)
        if options.get("quantization_config") is not None and target.type == "cuda":
            options.setdefault("device_map", str(target))  # weights are quantized where they will be
        parts = read_parts(path, dtype, verify, options)
        emu = cls(parts.model, parts.tokenizer, parts.defaults, deterministic=deterministic, trained=parts.trained)
        if device is None and options.get("device_map") is not None:
            return emu
        return emu.to(target)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `from_pretrained` reads; the folder appears when it is complete.

        A model that the folder held is replaced as a whole; files in it that are no part of a model stay.

        Raises:
            ValueError: the folder is the working folder, or one around it.
        """
        write_folder(Path(folder), self.model, self.tokenizer, self.defaults, self.trained)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Put what `save_pretrained` writes into a hub's repository, which is made where there is none.

        Args:
            repository: owner/name, or a name of your own.
            private: of a new repository; by default what the hub does.
            revision: branch, made where there is none; by default the main one.
            token: by default that of `hf auth login` or HF_TOKEN.
            commit_message: by default "Upload Emu".
            create_pr: open a pull request instead.

        Returns:
            The address of the commit.

        Raises:
            ValueError: nobody is logged in, there is no right to write there, or the hub cannot be reached.
        """
        return push(
            repository,
            self.save_pretrained,
            kind="Emu",
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message,
            create_pr=create_pr,
        )

    def to(self, device: str | torch.device) -> Emu:
        """Move model and vision tokenizer; returns itself."""
        self._engines = {}
        self.model.to(device)  # type: ignore[arg-type]
        if self.tokenizer.vision is not None:
            self.tokenizer.vision.to(device)  # type: ignore[arg-type]
        return self

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
        window: int = 1,
        batch_size: int = 32,
        deterministic: bool | None = None,
        progress: bool = False,
    ) -> list[ImageResult]:
        """Draw pictures. Settings that are None are those of `defaults`.

        Args:
            prompts: one or several.
            size: (height, width) in pixels, multiples of the tokenizer's spatial factor.
            guidance_scale: how far to move from the negative prompt towards the prompt; 1 leaves guidance out.
            negative_prompt: what guidance moves away from.
            temperature: 0 is greedy.
            top_k: draw among so many most likely codes; None or 0 means all.
            top_p: draw among the most likely codes that hold this share.
            images_per_prompt: picture k of a prompt draws from stream k of its seed.
            seed: one for all prompts, or one each; equal prompts with equal seeds give equal pictures.
            window: above 1, exact speculative decoding of so many codes at once.
            batch_size: pictures that are drawn at a time.
            deterministic: see `Emu`.
            progress: whether to show a progress bar.

        Returns:
            The pictures of the first prompt, then those of the second, ...

        Raises:
            TypeError, ValueError: an argument cannot be meant; nothing was drawn.
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
        blocks = Blocks(
            "image",
            self._clip_grid(settings)[1:],
            prompts,
            check_seeds(seed, len(prompts)),
            check_whole("images_per_prompt", images_per_prompt, least=1),
        )
        engine = self._engine(deterministic)
        made = blocks.generate(
            engine, self.tokenizer, settings, window=window, batch_size=batch_size, progress=progress
        )
        return [ImageResult(*block) for block in made]

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
        window: int = 1,
        batch_size: int = 16,
        deterministic: bool | None = None,
        progress: bool = False,
    ) -> list[VideoResult]:
        """Make clips from nothing, from a picture, or from the beginning of a clip.

        Args:
            frames: length of the clips, first frames included.
            fps: frames a second.
            first_frames: how every clip begins: a list of PIL images, a uint8 array (T, H, W, 3) or a `Video`; or a list of those, one
                per prompt. One picture is image-to-video, several are continuation. Codes stand for groups of frames (the tokenizer's
                temporal factor): where the frames do not fill the last group, the last one is repeated.
            videos_per_prompt, others: as in `generate_images`.

        Returns:
            The clips of the first prompt, then those of the second, ...

        Raises:
            TypeError, ValueError: an argument cannot be meant; nothing was generated.
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
        clips = as_clips(first_frames, len(prompts), settings.fps)
        if size is None and clips:
            settings = settings.updated(size=clips[0].frames.shape[1:3])
        size = self._size(settings.size)
        blocks = Blocks(
            "video",
            self._clip_grid(settings),
            prompts,
            check_seeds(seed, len(prompts)),
            check_whole("videos_per_prompt", videos_per_prompt, least=1),
            {"frames": settings.frames, "fps": settings.fps},
            [beginning(self.tokenizer, clip, settings.frames, size) for clip in clips],
        )
        engine = self._engine(deterministic)
        made = blocks.generate(
            engine, self.tokenizer, settings, window=window, batch_size=batch_size, progress=progress
        )
        return [VideoResult(clip.images(), codes, settings.fps, prompt, seed) for clip, codes, prompt, seed in made]

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
        progress: bool = False,
    ) -> list[str]:
        """Continue documents with text.

        Args:
            documents: each a list of items in order (`str`, PIL images, `Video`, ...), e.g. `[[image, "Describe it."]]`.
            max_new_tokens: where text ends that does not end by itself.
            temperature: 0 is greedy.
            top_k: draw among so many most likely tokens; None or 0 means all.
            top_p: draw among the most likely tokens that hold this share.
            seed: one for all documents, or one each.
            batch_size, deterministic, progress: as in `generate_images`.

        Returns:
            One text per document, without the document.

        Raises:
            TypeError, ValueError: an argument cannot be meant, or a picture is of a size that the tokenizer refuses.
        """
        settings = GenerationDefaults(temperature=temperature, top_k=top_k or 0, top_p=top_p)
        settings.check()
        max_new_tokens = check_whole("max_new_tokens", max_new_tokens, least=1)
        documents = check_documents(documents)
        seeds = check_seeds(seed, len(documents))
        ids = [self.tokenizer.question(document) for document in documents]
        texts: list[str] = [""] * len(documents)
        engine = self._engine(deterministic)
        with tqdm(total=len(ids), unit="text", disable=not progress, dynamic_ncols=True) as bar:
            for indices in batches(ids, lambda prompt: 0, check_whole("batch_size", batch_size, least=1)):
                written = engine.generate_text(
                    [ids[index] for index in indices],
                    max_new_tokens=max_new_tokens,
                    temperature=settings.temperature,
                    top_k=settings.top_k,
                    top_p=settings.top_p,
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
    ) -> Iterator[Any]:
        """Continue a document with text, pictures and clips in the order that the model chooses.

        Args:
            document: its items so far (`str`, PIL images, `Video`, ...), or a single text.
            size: (height, width) of the pictures and clips that the model may begin, beside the sizes that the document holds; "auto" lets
                the model write the size of its first picture, which the others share (Emu3.5).
            frames, fps: of the clips.
            guidance_scale, temperature, top_k, top_p: how codes are drawn.
            text_temperature, text_top_k, text_top_p: how text is drawn; by default what the model's task says (Emu3.5), else all candidates
                with the temperature and `top_p` of codes.
            max_new_tokens: tokens of text after which the document ends.
            max_blocks: pictures and clips after which none begins.
            seed: of the noise.
            deterministic: see `Emu`.

        Returns:
            An iterator over `str`, PIL images and `Video`, each as soon as it is finished. What Emu3.5 plans before it writes comes as
            `emu.documents.Plan`, a `str` with a `scope`, "document" or "image".

        Raises:
            TypeError, ValueError: an argument cannot be meant; nothing was generated.
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
        known = self.tokenizer if isinstance(self.tokenizer, ReleasedTokenizer) else None
        text = text_sampling(
            settings,
            known.templates.settings if known else {},
            {"text_temperature": text_temperature, "text_top_k": text_top_k, "text_top_p": text_top_p},
        )
        negative = known.unconditional(items) if known else None
        prompt = self.tokenizer.question(items)
        segments = self._engine(deterministic).generate(
            prompt,
            headers=free_headers(self.tokenizer, prompt) if size == "auto" else self._headers(prompt, settings),
            one_size=size == "auto",
            text=text,
            negative_ids=negative,
            codes=Sampling(settings.guidance_scale, settings.temperature, settings.top_k, settings.top_p),
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
    def fingerprint(self) -> str:
        """Names vocabulary and tokenizers."""
        return "-".join(self.tokenizer.fingerprints.values())

    @property
    def _vision(self) -> VisionTokenizer:
        if self.tokenizer.vision is None:
            raise ValueError("this model has no vision tokenizer, so it neither draws nor sees")
        return self.tokenizer.vision

    def _size(self, size: Size | None) -> Size:
        if size is None:
            raise ValueError("no size: the model has no default, so give size=(height, width) in pixels")
        return check_size(size, self._vision.spatial_factor)

    def _clip_grid(self, settings: GenerationDefaults) -> tuple[int, int, int]:
        """(time, height, width) in codes; a picture has the last two."""
        (height, width), vision = self._size(settings.size), self._vision
        time = -(-settings.frames // vision.temporal_factor)
        return time, height // vision.spatial_factor, width // vision.spatial_factor

    def _headers(self, prompt: Tensor, settings: GenerationDefaults) -> list[list[int]]:
        """Headers of the blocks that may stand behind a prompt, for a given size."""
        clip = self._clip_grid(settings)
        offered = {"image": (clip[1:], {}), "video": (clip, {"frames": settings.frames, "fps": settings.fps})}
        return headers(self.tokenizer, prompt, offered)

    def _engine(self, deterministic: bool | None) -> Engine:
        wanted = self.deterministic if deterministic is None else deterministic
        if wanted and any(type(parameter) is not nn.Parameter for parameter in self.model.parameters()):
            raise ValueError("deterministic=True works on plain weights, and these are quantized; leave it out")
        model, layout = self.model, self.tokenizer.layout
        key = (wanted, model.dtype, model.device)
        engine = self._engines.get(key)
        if engine is None or engine.model is not model or engine.layout is not layout:
            # One at a time: it may hold a copy of the weights, laid out for its products; it looks itself whether they changed.
            self._engines = {key: Engine(model, layout, deterministic=wanted)}
        return self._engines[key]
