"""Documents to ids and back: text, pictures and clips through their tokenizers and one layout."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu.checkpoints.bundled import find_model_folder
from emu.checkpoints.repositories import push
from emu.documents import CodeSegment, Plan, Segment, Text, TextSegment, TokenDocument
from emu.layouts import LAYOUTS, Layout
from emu.modalities import Grid, get_modality
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer, VisionTokenizer
from emu_tokenizers.files import write_json
from emu_tokenizers.folders import TEXT_FOLDER, VISION_FOLDER

FILE_NAME = "multimodal_tokenizer.json"
FORMAT_VERSION = 1


class MultimodalTokenizer:
    """Turns documents (`str`, `PIL.Image.Image`, `Video`, ... in order) into ids of one vocabulary, and back.

    Args:
        text: tokenizer of plain text.
        vision: tokenizer of pictures and clips; may be None where no modality needs it.
        layout: name of the layout, "emu3" or "emu3.5".
        modalities: names of the registered modalities that documents may hold.
        vocabulary: the table of ids; by default text ids first, then controls, then the codebooks of the modalities.

    Raises:
        ValueError: an unknown layout or modality, or a vocabulary that does not fit the tokenizers.
    """

    def __init__(
        self,
        text: TextTokenizer,
        vision: VisionTokenizer | None,
        layout: str = "emu3",
        modalities: Sequence[str] = ("image", "video"),
        vocabulary: Vocabulary | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"no layout {layout!r}; there are {sorted(LAYOUTS)}")
        self.text = text
        self.vision = vision
        self._codecs: dict[str, Any] = {"vision": vision}
        codebooks = self._codebooks(modalities)
        self.vocabulary = vocabulary or Vocabulary.build(text.size, codebooks)
        self._check(codebooks)
        self.layout: Layout = LAYOUTS[layout](self.vocabulary, text, modalities)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocabulary!r}, {self.layout!r})"

    def _codebooks(self, modalities: Iterable[str]) -> dict[str, int]:
        codebooks: dict[str, int] = {}
        for modality in map(get_modality, modalities):
            if modality.codec is not None and self._codecs.get(modality.codec) is None:
                raise ValueError(_missing_codec(modality.name, modality.codec))
            sizes = modality.codebook_sizes(self._codecs.get(modality.codec or ""))
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
        """Digests of the vocabulary and of each tokenizer; token files and checkpoints carry them."""
        found = {"vocabulary": self.vocabulary.fingerprint, "text": self.text.fingerprint}
        found.update({name: codec.fingerprint for name, codec in self._codecs.items() if codec is not None})
        return found

    def segments(self, document: Any) -> list[Segment]:
        """Tokenise the items of a document, each on its own.

        Args:
            document: one item or a list of them: `str`, `Text`, `Plan`, a value of a modality (a PIL image, a `Video`, ...) or a segment.

        Raises:
            TypeError: an item is of no known kind.
            ValueError: a tokenizer refuses a value, e.g. a picture whose size is no multiple of the factor.
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
                return modality.encode(item, self._codecs.get(modality.codec or ""))
        raise TypeError(
            f"a document holds str, Text, segments and values of {sorted(self.layout.modalities)}, got {type(item).__name__}"
        )

    def document(self, items: Any, add_special: bool = True) -> TokenDocument:
        """Ids and loss weights of a document, for training (see `Layout.build`)."""
        return self.layout.build(self.segments(items), add_special)

    def encode(self, document: Any, add_special: bool = True) -> Tensor:
        """Ids of one document.

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
        """The items of a sequence: text as `str` with neighbours merged, pictures and clips as their modality decodes them.

        Raises:
            ValueError: the sequence is not of this layout.
        """
        return [self.decode_segment(segment) for segment in self.layout.parse(ids)]

    def decode_segment(self, segment: Segment) -> Any:
        """The value of one segment."""
        if isinstance(segment, TextSegment):
            text = self.layout.decode_text(segment.ids.tolist())
            return Plan(text, segment.plan) if segment.plan else text
        modality = self.layout.modality(segment.modality)
        return modality.decode(segment, self._codecs.get(modality.codec or ""))

    def prompt(self, items: Any, modality: str, grid: Grid, meta: Mapping[str, Any] | None = None) -> Tensor:
        """A prompt for a block of codes: BOS, the items, and the header of the block.

        Returns:
            (n,) int64, ending in the image mark.
        """
        opening = self.layout.build(self.segments(items), add_special=False).ids
        header = self.layout.header(modality, grid, meta)
        return torch.cat([torch.tensor([self.vocabulary.controls["bos"]]), opening, torch.tensor(header)])

    def question(self, items: Any) -> Tensor:
        """A prompt for text: BOS and the items, (n,) int64."""
        return self.encode(items)[:-1]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both tokenizers and the table that joins them into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.text.save_pretrained(folder / TEXT_FOLDER)
        if self.vision is not None:
            self.vision.save_pretrained(folder / VISION_FOLDER)
        table = {
            "format_version": FORMAT_VERSION,
            "layout": self.layout.name,
            "modalities": list(self.layout.modalities),
            "vocabulary": self.vocabulary.to_dict(),
            "fingerprints": self.fingerprints,
        }
        write_json(folder / FILE_NAME, table)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Put what `save_pretrained` writes into a hub's repository; options, result and errors as in `Emu.push_to_hub`."""
        return push(repository, self.save_pretrained, kind="MultimodalTokenizer", **options)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MultimodalTokenizer:
        """Read what `save_pretrained` wrote, from a folder, a bundled model or a hub's repository; with templates, where it has any.

        Raises:
            FileNotFoundError: the folder or a part of it is missing.
            ValueError: a tokenizer in it is not the one it was saved with.
        """
        folder = find_model_folder(folder)
        if cls is MultimodalTokenizer and (folder / "templates.json").is_file():
            return importlib.import_module("emu.hub.tokenizer").ReleasedTokenizer.from_pretrained(folder)
        file = folder / FILE_NAME
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} holds no {FILE_NAME}; expected a folder written by MultimodalTokenizer.save_pretrained"
            )
        table = json.loads(file.read_text())
        if table.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{file} has format version {table.get('format_version')!r}, this library reads {FORMAT_VERSION}"
            )
        text = TextTokenizer.from_pretrained(folder / TEXT_FOLDER)
        vision = VisionTokenizer.from_pretrained(folder / VISION_FOLDER) if (folder / VISION_FOLDER).is_dir() else None
        vocabulary = Vocabulary.from_dict(table["vocabulary"])
        tokenizer = cls(text, vision, table["layout"], table["modalities"], vocabulary)
        for name, saved in table["fingerprints"].items():
            found = tokenizer.fingerprints.get(name)
            if found != saved:
                raise ValueError(
                    f"the {name} of {folder} has fingerprint {found}, the folder was saved with {saved}; restore its files"
                )
        return tokenizer


def _missing_codec(modality: str, codec: str) -> str:
    remedy = f"leave {modality!r} out of modalities"
    if codec == "vision":
        return f"modality {modality!r} needs a vision tokenizer; pass one as vision, or {remedy}"
    return (
        f"modality {modality!r} needs a tokenizer {codec!r}, and a MultimodalTokenizer holds one of text and one of vision; let the class "
        f"of the modality keep its own (codec = None), or {remedy}"
    )
