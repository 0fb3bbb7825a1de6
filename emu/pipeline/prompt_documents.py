"""Prompts: any document, as users write it.

    "a red circle"                       words
    [picture, "make it red"]             a picture and words; several pictures; a clip
    [a, a_red, b]                        by example, without words: apply to b what was done to a
    ["a red circle", segment]            a `CodeSegment` with hidden cells, in last place: they are generated, given what comes before it

Items are what training documents hold (`str`, PIL images, `Video`, segments, values of other modalities), and for convenience paths of
pictures and clips and uint8 arrays. Their ids are those of a training document with this beginning.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from emu.data.tokenizing.named_files import is_clip, read_picture
from emu.data.tokenizing.picture_sizes import Sizing
from emu.documents import CodeSegment, Plan, Segment, Text, TextSegment, Video
from emu.modalities import Grid
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline.requests import GenerationDefaults
from emu.pipeline.vision_work import cells_of, vision_threads
from emu_tokenizers.pixels.images import existing_file, to_rgb

WORDS = (str, Text, Plan, TextSegment)
FORM = 'expected a text or a list of items, e.g. [[picture, "make it red"]]'


@dataclass(frozen=True)
class PromptDocument:
    """A document after which something is generated.

    Attributes:
        items: its items in order, without empty texts; none if a picture is generated unconditionally.
        number: its position among those of a call, for messages.
    """

    items: tuple[Any, ...]
    number: int = 0

    @property
    def words(self) -> str:
        """Its texts, joined by spaces: what results and files call the prompt."""
        texts = (item.text if isinstance(item, Text) else item for item in self.items)
        return " ".join(text for text in texts if isinstance(text, str))

    @property
    def is_text(self) -> bool:
        """Whether it holds only words."""
        return all(isinstance(item, WORDS) for item in self.items)

    @property
    def partial(self) -> CodeSegment | None:
        """The block whose hidden cells are generated, if the document ends in one."""
        last = self.items[-1] if self.items else None
        return last if isinstance(last, CodeSegment) and last.hidden is not None else None

    @property
    def before(self) -> tuple[Any, ...]:
        """The items before what is generated."""
        return self.items if self.partial is None else self.items[:-1]

    def check_whole(self) -> None:
        """Raise ValueError if the document ends in a block with hidden cells, after which nothing can be written."""
        if self.partial is not None:
            raise ValueError(
                f"prompt {self.number} ends in a block with hidden cells; generate_images and generate_videos fill it in"
            )

    def kinds(self, tokenizer: MultimodalTokenizer) -> list[str]:
        """Return the kind of each item before what is generated, named as in `emu.trained`; the tokenizer rejects unknown ones."""
        kinds = []
        for item in self.before:
            if isinstance(item, WORDS):
                kinds.append("text")
            elif isinstance(item, CodeSegment):
                kinds.append(item.modality)
            elif isinstance(item, Path):
                kinds.append("video" if is_clip(item) else "image")
            else:
                kinds += [name for name, modality in tokenizer.layout.modalities.items() if modality.accepts(item)][:1]
        return kinds

    def segments(self, tokenizer: MultimodalTokenizer, settings: GenerationDefaults) -> list[str | Segment]:
        """Return the items before what is generated, ready for rendering: words as they are, pictures and clips as codes.

        Args:
            tokenizer: of the model.
            settings: size and rate at which files are read.

        Raises:
            ValueError: a picture cannot be read, or has a size that the tokenizer rejects.
            TypeError: an item has an unknown type.
        """
        found: list[str | Segment] = []
        for place, item in enumerate(self.before):
            if isinstance(item, WORDS):
                found.append(item.text if isinstance(item, Text) else item)
                continue
            with self.naming(place):
                value = _opened(item, tokenizer, settings) if isinstance(item, Path) else item
                if tokenizer.resize is not None and isinstance(value, Image.Image):
                    value = tokenizer.resize(value)
                with vision_threads(tokenizer, cells_of(tokenizer, [value])):
                    found += tokenizer.segments([value])
        return found

    @contextmanager
    def naming(self, place: int) -> Iterator[None]:
        """Prefix error messages with the document and the item that they are about."""
        try:
            yield
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"prompt {self.number}, item {place + 1}: {error}") from error

    def told(self) -> list[Any] | None:
        """Return the document as recorded in generated files, as JSON types: pictures and clips by their content. None for words only."""
        return None if self.is_text else [_told(item) for item in self.items]


def read_prompts(prompts: Any) -> list[PromptDocument]:
    """Read the documents of a call.

    Args:
        prompts: one text, or a list whose entries are texts or lists of items.

    Raises:
        FileNotFoundError: there is no such picture or clip.
        TypeError: anything else.
        ValueError: there are no prompts, or one is an empty list.
    """
    if isinstance(prompts, WORDS):
        prompts = [prompts]
    if not isinstance(prompts, list | tuple):
        raise TypeError(f"prompts are {type(prompts).__name__}; {FORM}")
    if not prompts:
        raise ValueError("no prompts; expected at least one")
    return [_read_prompt(prompt, number) for number, prompt in enumerate(prompts)]


def _read_prompt(prompt: Any, number: int) -> PromptDocument:
    if isinstance(prompt, WORDS):
        prompt = [prompt]
    elif not isinstance(prompt, list | tuple):
        raise TypeError(f"prompt {number} is {type(prompt).__name__}; {FORM}")
    elif not prompt:
        raise ValueError(f'prompt {number} is an empty document; give it an item, or write "" to draw from nothing')
    document = PromptDocument(tuple(prompt), number)
    items = []
    for place, item in enumerate(prompt):
        with document.naming(place):
            items.append(_read_item(item))
    return PromptDocument(tuple(item for item in items if not (isinstance(item, str) and not item)), number)


def _read_item(item: Any) -> Any:
    if isinstance(item, os.PathLike):
        path = Path(item)
        return path if path.is_dir() else existing_file(path)
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim not in (3, 4) or item.shape[-1] != 3 or 0 in item.shape:
            raise ValueError(
                f"an array of {item.dtype} {item.shape}; expected uint8 (H, W, 3) for a picture or (T, H, W, 3) for a clip"
            )
        return Image.fromarray(item) if item.ndim == 3 else Video(item)
    return item


def _opened(path: Path, tokenizer: MultimodalTokenizer, settings: GenerationDefaults) -> Image.Image | Video:
    """A file at the size and rate of what is drawn; a picture where the tokenizer has a rule of its own, by that rule."""
    if is_clip(path):
        return Video.open(path, fps=settings.fps, frames=settings.frames, size=settings.size)
    image = read_picture(path)
    factor = 1 if tokenizer.vision is None else tokenizer.vision.spatial_factor
    return image if tokenizer.resize is not None else Sizing(factor, settings.size).picture(image)


def prompt_ids(
    tokenizer: MultimodalTokenizer,
    items: Sequence[Any],
    negative_prompt: str,
    modality: str,
    grid: Grid,
    meta: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Return ids (n,) of a document with the header of the block after it, and of the negative prompt.

    Guidance acts on words, as in Emu3.5 and OmniGen, and as models learn it from documents with a dropped caption: the negative branch
    keeps pictures and clips and loses all words; the negative prompt takes the place of the last of them. A document without words is its
    own negative branch unless there is a negative prompt.
    """
    last = max((place for place, item in enumerate(items) if isinstance(item, WORDS)), default=len(items))
    other = [item for item in items if not isinstance(item, WORDS)]
    if negative_prompt:
        other.insert(sum(not isinstance(item, WORDS) for item in items[:last]), negative_prompt)
    return tokenizer.prompt(list(items), modality, grid, meta), tokenizer.prompt(other, modality, grid, meta)


def _told(item: Any) -> Any:
    if isinstance(item, Text):
        return item.text
    if isinstance(item, str):
        return str(item)
    if isinstance(item, Path):
        return {"file": str(item)}
    if isinstance(item, Image.Image):
        return _by_content("image", np.asarray(to_rgb(item)))
    if isinstance(item, Video):
        return {**_by_content("video", item.frames), "fps": item.fps}
    return {type(item).__name__: repr(item)}


def _by_content(kind: str, pixels: np.ndarray) -> dict[str, Any]:
    shape = "x".join(map(str, pixels.shape[:-1]))
    return {kind: shape, "sha256": hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]}
