"""Documents to ids and back: text, pictures and clips through their tokenizers and one layout."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.repositories import push
from emu.documents import CodeSegment, Plan, Segment, Text, TextSegment, TokenDocument
from emu.layouts import LAYOUTS, Emu3Layout, Layout
from emu.modalities import MODALITIES, Grid, Modality
from emu.templates import ITEMS, PLAIN, Templates, parse_template
from emu.tokenizer_folder import (
    VISION,
    read_codecs,
    read_table,
    read_templates,
    write_codecs,
    write_table,
    write_templates,
)
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer
from emu_tokenizers.folders import TEXT_FOLDER
from emu_tokenizers.pixels.resize import Resize

if TYPE_CHECKING:
    from typing_extensions import Self

    from emu_tokenizers import VisionTokenizer


class MultimodalTokenizer:
    """Converts documents (`str`, `PIL.Image.Image`, `Video`, ... in order) to ids of one vocabulary, and back.

    Args:
        text: tokenizer of plain text.
        vision: tokenizer of pictures and clips, shorthand for `codecs={"vision": ...}`; may be None if no modality needs it.
        layout: name of the layout.
        modalities: names of the registered modalities that documents may hold.
        vocabulary: the table of ids; by default text ids first, then controls, then the codebooks of the modalities.
        codecs: name -> tokenizer that turns a modality's values into codes, named as in `Modality.codec`.
        templates: text around the user's words in prompts.
        resize: how pictures in prompts are resized for the vision tokenizer; None leaves them as they are.
        extra_controls: controls of a new vocabulary besides the layout's, e.g. `("hole",)` for a model that will fill in hidden cells.

    Attributes:
        codecs: name -> tokenizer, `vision` among them.

    Raises:
        ValueError: an unknown layout or modality, a codec that is missing or given twice, or a vocabulary that does not fit the tokenizers
            or lacks a control.
    """

    def __init__(
        self,
        text: TextTokenizer,
        vision: VisionTokenizer | None = None,
        layout: str = Emu3Layout.name,
        modalities: Sequence[str] = ("image", "video"),
        vocabulary: Vocabulary | None = None,
        *,
        codecs: Mapping[str, Any] | None = None,
        templates: Templates = PLAIN,
        resize: Resize | None = None,
        extra_controls: Sequence[str] = (),
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"no layout {layout!r}; there are {sorted(LAYOUTS)}")
        given = {name: codec for name, codec in (codecs or {}).items() if codec is not None}
        if vision is not None and given.setdefault(VISION, vision) is not vision:
            raise ValueError("the vision tokenizer is given twice, as vision and in codecs; leave one out")
        self.text = text
        self.codecs: dict[str, Any] = given
        self.templates = templates
        self.resize = resize
        codebooks = self._codebooks(modalities)
        controls = (*LAYOUTS[layout].controls, *extra_controls)
        self.vocabulary = vocabulary or Vocabulary.build(text.size, codebooks, controls)
        missing = [name for name in extra_controls if name not in self.vocabulary.controls]
        if missing:
            raise ValueError(f"the vocabulary has no controls {missing}; add them, vocabulary.with_control(name, id)")
        self._check(codebooks)
        self.layout: Layout = LAYOUTS[layout](self.vocabulary, text, modalities)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocabulary!r}, {self.layout!r})"

    @property
    def vision(self) -> VisionTokenizer | None:
        """The tokenizer of pictures and clips, if there is one."""
        return self.codecs.get(VISION)

    def _codec_of(self, modality: Modality) -> Any:
        return None if modality.codec is None else self.codecs.get(modality.codec)

    def _codebooks(self, modalities: Iterable[str]) -> dict[str, int]:
        codebooks: dict[str, int] = {}
        for modality in map(MODALITIES.find, modalities):
            codec = self._codec_of(modality)
            if modality.codec is not None and codec is None:
                raise ValueError(_missing_codec(modality.name, modality.codec))
            sizes = modality.codebook_sizes(codec)
            names = [modality.codebook] if len(sizes) == 1 else [f"{modality.codebook}.{i}" for i in range(len(sizes))]
            codebooks.update(zip(names, sizes, strict=True))
        return codebooks

    def _check(self, codebooks: Mapping[str, int]) -> None:
        if self.text.size > self.vocabulary.text[1]:
            raise ValueError(
                f"the text tokenizer has {self.text.size} ids, the vocabulary room for {self.vocabulary.text[1]}"
            )
        for name, size in codebooks.items():
            if self.vocabulary.range(name)[1] != size:
                raise ValueError(
                    f"codebook {name!r} has {size} codes, the vocabulary holds {self.vocabulary.range(name)[1]}"
                )

    @property
    def fingerprints(self) -> dict[str, str]:
        """Digests of the vocabulary and of each tokenizer, stored in token files and checkpoints."""
        found = {"vocabulary": self.vocabulary.fingerprint, "text": self.text.fingerprint}
        return found | {name: codec.fingerprint for name, codec in self.codecs.items()}

    def segments(self, document: Any) -> list[Segment]:
        """Tokenize the items of a document, each separately.

        Args:
            document: one item or a list of them: `str`, `Text`, `Plan`, a value of a modality (a PIL image, a `Video`, ...) or a segment.

        Raises:
            TypeError: an item has an unknown type.
            ValueError: a tokenizer rejects a value, e.g. a picture whose size is not a multiple of the factor.
        """
        items = document if isinstance(document, list | tuple) and not isinstance(document, Text) else [document]
        return [self._segment(item) for item in items]

    def _segment(self, item: Any) -> Segment:
        if isinstance(item, TextSegment | CodeSegment):
            return item
        if isinstance(item, Plan):
            return TextSegment(torch.tensor(self.layout.encode_text(item), dtype=torch.int64), plan=item.scope)
        if isinstance(item, str):
            item = Text(item)
        if isinstance(item, Text):
            return TextSegment(torch.tensor(self.layout.encode_text(item.text), dtype=torch.int64), item.weight)
        for modality in self.layout.modalities.values():
            if modality.accepts(item):
                return modality.encode(item, self._codec_of(modality))
        raise TypeError(
            f"a document holds str, Text, segments and values of {sorted(self.layout.modalities)}, got {type(item).__name__}"
        )

    def document(self, items: Any, add_special: bool = True) -> TokenDocument:
        """Return ids and loss weights of a document, for training (see `Layout.build`)."""
        return self.layout.build(self.segments(items), add_special)

    def encode(self, document: Any, add_special: bool = True) -> Tensor:
        """Return the ids of one document.

        Args:
            document: one item or a list of items, in order.
            add_special: whether BOS and EOS are included.

        Returns:
            (n,) int64.

        Raises:
            TypeError, ValueError: see `segments`.
        """
        return self.document(document, add_special).ids

    def decode(self, ids: Tensor | Sequence[int]) -> list[Any]:
        """Return the items of a sequence: text as `str` with adjacent pieces merged, pictures and clips as their modality decodes them.

        Raises:
            ValueError: the sequence is not of this layout.
        """
        return [self.decode_segment(segment) for segment in self.layout.parse(ids)]

    def decode_segment(self, segment: Segment) -> Any:
        """Return the value of one segment."""
        if isinstance(segment, TextSegment):
            text = self.layout.decode_text(segment.ids.tolist())
            return Plan(text, segment.plan) if segment.plan else text
        modality = self.layout.modality(segment.modality)
        return modality.decode(segment, self._codec_of(modality))

    def decode_blocks(self, segments: Sequence[CodeSegment]) -> list[Any]:
        """Return the values of segments of equal modality, grid and meta, faster than calling `decode_segment` for each."""
        if not segments:
            return []
        modality = self.layout.modality(segments[0].modality)
        return modality.decode_all(segments, self._codec_of(modality))

    def prompt(self, items: Any, modality: str, grid: Grid, meta: Mapping[str, Any] | None = None) -> Tensor:
        """Return a prompt for a block of codes: BOS, the items in their template, and the header of the block.

        Items without words use the template without words.

        Returns:
            (n,) int64, ending in the image mark.
        """
        items = self._resized(items)
        has_words = any(isinstance(item, str | TextSegment) for item in items)
        template = self.templates.generate if has_words else self.templates.unconditional
        header = self.layout.header(modality, grid, meta)
        return torch.cat([self.render(template, items), torch.tensor(header)])

    def question(self, items: Any) -> Tensor:
        """Return a prompt for text: BOS and the items in their template, (n,) int64."""
        return self.render(self.templates.answer, self._resized(items))

    def unconditional(self, items: Any) -> Tensor | None:
        """Return the negative prompt for blocks after these items: the template without words, with the items' pictures; (n,) int64.

        None if the model has no such template: guidance is then against the block's header alone.
        """
        if self.templates.unconditional == PLAIN.unconditional:
            return None
        pictures = [item for item in self._resized(items) if not isinstance(item, str)]
        return self.render(self.templates.unconditional, pictures)

    def render(self, template: str, items: Any = ()) -> Tensor:
        """Return BOS and the ids of a template.

        Text between two controls or pictures is tokenized as one piece, as in the released models' own scripts; a user's text
        can never become a control. Under a template without words the items are the document that they are in training.

        Args:
            template: with fields `{text}`, `{images}`, `{items}` and names of controls (see `emu.templates`).
            items: the user's words and pictures (or clips, or segments of codes), of sizes that the tokenizer accepts.

        Returns:
            (n,) int64.

        Raises:
            ValueError: an unknown field, or pictures where the template has no place for them.
        """
        listed, controls = _as_list(items), self.vocabulary.controls
        bos = torch.tensor([controls["bos"]])
        if template == ITEMS:
            return torch.cat([bos, self.document(listed, add_special=False).ids])
        others = [item for item in listed if not isinstance(item, str)]
        values = {"text": [item for item in listed if isinstance(item, str)], "images": others, "items": listed}
        parts = parse_template(template, controls)
        if others and not {"images", "items"} & {name for _, name in parts}:
            raise ValueError(f"{len(others)} pictures for the template {template!r}, which has no place for them")
        pieces: list[Any] = []
        for literal, name in parts:
            pieces.append(literal)
            if name is not None:
                pieces += [torch.tensor([controls[name]])] if name in controls else values[name]
        return torch.cat([bos, *self._rendered(pieces)])

    def _rendered(self, pieces: Sequence[Any]) -> Iterator[Tensor]:
        """Ids of words, controls (which are ids already) and items, with neighbouring words as one text."""
        for is_text, group in itertools.groupby(pieces, lambda piece: isinstance(piece, str)):
            if is_text:
                yield torch.tensor(self.layout.encode_text("".join(group)), dtype=torch.int64)
                continue
            for piece in group:
                yield piece if isinstance(piece, Tensor) else self.document([piece], add_special=False).ids

    def _resized(self, items: Any) -> list[Any]:
        listed = _as_list(items)
        if self.resize is None:
            return listed
        return [self.resize(item) if isinstance(item, Image.Image) else item for item in listed]

    def with_templates(self, templates: Templates) -> Self:
        """Return the same tokenizer with other templates, e.g. for another task of Emu3.5; pictures get the area of that task."""
        resize, area = self.resize, templates.settings.get("image_area")
        if resize is not None and resize.area and area:
            resize = replace(resize, area=int(area))
        return type(self)(
            self.text,
            layout=self.layout.name,
            modalities=list(self.layout.modalities),
            vocabulary=self.vocabulary,
            codecs=self.codecs,
            templates=templates,
            resize=resize,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizers, the table that joins them, and templates if there are any, to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.text.save_pretrained(folder / TEXT_FOLDER)
        write_codecs(folder, self.codecs)
        write_table(
            folder,
            layout=self.layout.name,
            modalities=list(self.layout.modalities),
            vocabulary=self.vocabulary,
            fingerprints=self.fingerprints,
            codecs=self.codecs,
        )
        write_templates(folder, self.templates, self.resize)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes to a hub repository; options, result and errors as in `Emu.push_to_hub`."""
        return push(repository, self.save_pretrained, kind="MultimodalTokenizer", **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, codecs: Mapping[str, type] | None = None) -> Self:
        """Load what `save_pretrained` wrote, from a folder, a bundled model or a hub repository.

        Args:
            folder: folder or name.
            codecs: codec name -> class, for codecs whose registered modality does not name one. The folder names classes too, for
                messages only: an import requested by an untrusted file could run anything.

        Raises:
            FileNotFoundError: the folder or a part of it is missing.
            ValueError: a file cannot be read (the message names it), a codec has no known class, or a tokenizer in the folder is not the
                one it was saved with.
        """
        folder = find_model_folder(folder)
        table = read_table(folder)
        templates, resize = read_templates(folder)
        tokenizer = cls(
            TextTokenizer.from_pretrained(folder / TEXT_FOLDER),
            layout=table.layout,
            modalities=table.modalities,
            vocabulary=table.vocabulary,
            codecs=read_codecs(folder, table, codecs or {}),
            templates=templates,
            resize=resize,
        )
        for name, saved in table.fingerprints.items():
            found = tokenizer.fingerprints.get(name)
            if found != saved:
                raise ValueError(
                    f"the {name} of {folder} has fingerprint {found}, the folder was saved with {saved}; restore its files"
                )
        return tokenizer


def _as_list(items: Any) -> list[Any]:
    """The items of a document in order, weighted text as its words."""
    listed = items if isinstance(items, list | tuple) and not isinstance(items, Text) else [items]
    return [item.text if isinstance(item, Text) else item for item in listed]


def _missing_codec(modality: str, codec: str) -> str:
    remedy = f"or leave {modality!r} out of modalities"
    if codec == VISION:
        return f"modality {modality!r} needs a vision tokenizer; pass one as vision, {remedy}"
    return f"modality {modality!r} needs a tokenizer {codec!r}; pass one, codecs={{{codec!r}: ...}}, {remedy}"
