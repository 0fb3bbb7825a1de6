"""`Emu`: a trained model with its tokenizers, and one method per task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from tqdm import tqdm

from emu.generation import Sampling
from emu.generation.limits import check_whole, room_for_text, warn_caller
from emu.pipeline.editing_jobs import EditingEmu
from emu.pipeline.grid_requests import clip_grid, headers_after
from emu.pipeline.prepared_texts import DocumentOptions, PreparedDocument, PreparedTexts
from emu.pipeline.prompt_documents import read_prompts
from emu.pipeline.requests import Size, check_documents, check_seeds, chosen_top_k, text_sampling
from emu.pipeline.trained_limits import beyond_training, next_tasks
from emu.trained import task_name

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Emu(EditingEmu):
    """A model, its tokenizers and generation defaults, with one method per task.

    Args:
        model: the transformer.
        tokenizer: the document tokenizer that it was trained with.
        defaults: settings for calls that do not give them; by default the library's, with the size, length and frame rate that the
            model was trained on if there is only one.
        deterministic: bit-identical results in any batch, at the cost of speed; calls can override it.
        trained: what the model was trained for, if known; see `emu.trained`.

    Raises:
        ValueError: model and tokenizer have different vocabularies.
    """

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
            documents: each a list of items in order, as in `iter_images`: `[[image, "Describe it."], [Path("clip.mp4"), "What happens?"]]`.
            max_new_tokens: maximum length of the text; it is also limited by the model's positions.
            temperature: 0 is greedy.
            top_k: sample from the N most likely tokens; None or 0 means all.
            top_p: sample from the most likely tokens with this total probability.
            seed: one for all documents, or one each.
            batch_size, deterministic, strict, progress: as in `iter_images`.

        Returns:
            One text per document, without the document.

        Raises:
            TypeError, ValueError: an argument is invalid, a picture has a size that the tokenizer rejects, a document fills the model's
                positions, or the model was not trained for this; nothing was generated.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        prepared = self.prepare_texts(
            documents,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            strict=strict,
        )
        if prepared.beyond:
            warn_caller(f"{prepared.beyond}; expect poor results")
        limit, count = check_whole("batch_size", batch_size, least=1), len(prepared.prompts)
        engine, texts = self._engine(deterministic), list[str]()
        with tqdm(total=count, unit="text", disable=not progress, dynamic_ncols=True) as bar:
            for start in range(0, count, limit):
                written = engine.continue_texts(
                    prepared.prompts[start : start + limit],
                    prepared.sampling,
                    max_new_tokens=prepared.max_new_tokens,
                    seed=prepared.seeds[start : start + limit],
                )
                texts += map(prepared.finish, written)
                bar.update(len(written))
        return texts

    def prepare_texts(
        self,
        documents: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        strict: bool = False,
    ) -> PreparedTexts:
        """Prepare the prompts that `generate_text` continues with these arguments; raises the same errors."""
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        max_new_tokens = check_whole("max_new_tokens", max_new_tokens, least=1)
        asked = read_prompts(check_documents(documents))
        seeds = check_seeds(seed, len(asked))
        for document in asked:
            document.check_whole()
            self.trained.check_task(task_name(document.kinds(self.tokenizer), "text"))
        prompts = [self._question(document.segments(self.tokenizer, self.defaults)) for document in asked]
        beyond = self._beyond_training(strict, max(map(len, prompts)))
        return PreparedTexts(self.tokenizer, prompts, sampling, seeds, max_new_tokens, beyond)

    def generate(
        self, document: Sequence[Any] | str, *, deterministic: bool | None = None, **options: Unpack[DocumentOptions]
    ) -> Iterator[Any]:
        """Continue a document with text, pictures and clips in an order chosen by the model.

        Args:
            document: its items so far (`str`, PIL images, `Video`, ...), or a single text.
            size: (height, width) of the pictures and clips that the model may generate, besides the sizes in the document; "auto" lets
                the model write the size of its first picture, which the others share (Emu3.5).
            frames, fps: of the clips.
            guidance_scale, temperature, top_k, top_p: sampling of codes.
            text_temperature, text_top_k, text_top_p: sampling of text; by default that of the model's task (Emu3.5), else all candidates
                with the temperature and `top_p` of codes.
            max_new_tokens: text tokens after which the document ends; it is also limited by the model's positions.
            max_blocks: maximum number of pictures and clips.
            seed: of the noise.
            deterministic: see `Emu`.
            strict: as in `iter_images`.

        Returns:
            An iterator over `str`, PIL images and `Video`, each as soon as it is finished. What Emu3.5 plans before it writes comes as
            `emu.documents.Plan`, a `str` with a `scope`, "document" or "image".

        Raises:
            TypeError, ValueError: an argument is invalid, or the model was not trained to continue such a document; nothing was generated.
            FloatingPointError: the model's logits hold NaN or infinity.
        """
        prepared = self.prepare_document(document, **options)
        if prepared.beyond:
            warn_caller(f"{prepared.beyond}; expect poor results")
        return map(prepared.finish, self._engine(deterministic).written(prepared.writer))

    def prepare_document(
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
        strict: bool = False,
    ) -> PreparedDocument:
        """Do everything in `generate` that comes before the model: check and encode the document.

        Args:
            document, others: as for `generate`.

        Raises:
            TypeError, ValueError: an argument is invalid, or the model was not trained to continue such a document.
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
        (asked,) = read_prompts(check_documents([[document] if isinstance(document, str) else document]))
        asked.check_whole()
        self.trained.check_task(*next_tasks(self.tokenizer, asked.kinds(self.tokenizer)))
        given = {"text_temperature": text_temperature, "text_top_k": text_top_k, "text_top_p": text_top_p}
        text = text_sampling(settings, self.tokenizer.templates.settings, given)
        items = asked.segments(self.tokenizer, settings)
        prompt = self._question(items)
        sizes = [settings.size] if size != "auto" and settings.size else []
        beyond = self._beyond_training(strict, len(prompt), sizes=sizes, frames=frames, rate=fps)
        clip = None
        if size != "auto" and self.tokenizer.vision is not None:
            (shown,) = self._sizes(settings.size, 1)
            clip = clip_grid(self.tokenizer.vision, shown, settings.frames)
        writer = self._engine(None).writer(
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
        return PreparedDocument(self.tokenizer, writer, beyond)

    def _beyond_training(self, strict: bool, tokens: int, **shape: Any) -> str:
        positions = self.model.config.max_position_embeddings
        return beyond_training(self.trained, positions, strict=strict, tokens=tokens, **shape)

    def _question(self, items: Sequence[Any]) -> Tensor:
        """Ids of a document that text follows."""
        ids = self.tokenizer.question(items)
        room_for_text([ids], self.model.config.max_position_embeddings, 1)
        return ids
