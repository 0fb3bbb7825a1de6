"""The multimodal tokenizer of a released model: its templates and its rule for the size of pictures come with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from emu.hub.templates import Templates, as_list, render
from emu.modalities import Grid
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.vocabulary import Vocabulary
from emu_tokenizers import TextTokenizer, VisionTokenizer
from emu_tokenizers.files import read_json, write_json
from emu_tokenizers.pixels.resize import Resize

TEMPLATES_FILE = "templates.json"


class ReleasedTokenizer(MultimodalTokenizer):
    """A `MultimodalTokenizer` that writes prompts as a released model was trained to read them.

    Args:
        text, vision, layout, modalities, vocabulary: as in `MultimodalTokenizer`.
        templates: what stands around the user's words.
        resize: how pictures become pictures that the vision tokenizer takes; None takes them as they are.
    """

    def __init__(
        self,
        text: TextTokenizer,
        vision: VisionTokenizer | None,
        layout: str = "emu3",
        modalities: Sequence[str] = ("image", "video"),
        vocabulary: Vocabulary | None = None,
        templates: Templates | None = None,
        resize: Resize | None = None,
    ) -> None:
        super().__init__(text, vision, layout, modalities, vocabulary)
        self.templates = templates or Templates()
        self.resize = resize

    def prompt(self, items: Any, modality: str, grid: Grid, meta: Mapping[str, Any] | None = None) -> Tensor:
        """BOS, the items in their template, and the header of a block: (n,) int64, ending in the image mark."""
        items = self._resized(items)
        template = self.templates.generate if items else self.templates.unconditional
        header = self.layout.header(modality, grid, meta)
        return torch.cat([render(template, self, items), torch.tensor(header)])

    def question(self, items: Any) -> Tensor:
        """BOS and the items in their template, for text to follow: (n,) int64."""
        return render(self.templates.answer, self, self._resized(items))

    def unconditional(self, items: Any) -> Tensor | None:
        """What blocks behind these items are guided against: the template without words, with the items' pictures; (n,) int64.

        None where the model knows no such words: guidance is against the block's header alone then.
        """
        if self.templates.unconditional == Templates().unconditional:
            return None
        pictures = [item for item in self._resized(items) if not isinstance(item, str)]
        return render(self.templates.unconditional, self, pictures)

    def _resized(self, items: Any) -> list[Any]:
        listed = as_list(items)
        if self.resize is None:
            return listed
        return [self.resize(item) if isinstance(item, Image.Image) else item for item in listed]

    def with_templates(self, templates: Templates) -> ReleasedTokenizer:
        """The same tokenizer with other templates, e.g. for another task of Emu3.5; pictures get the area of that task."""
        modalities = list(self.layout.modalities)
        parts = (self.text, self.vision, self.layout.name, modalities, self.vocabulary)
        resize, area = self.resize, templates.settings.get("image_area")
        if resize is not None and resize.area and area:
            resize = replace(resize, area=int(area))
        return ReleasedTokenizer(*parts, templates=templates, resize=resize)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizers, the table that joins them, and the templates into a folder."""
        super().save_pretrained(folder)
        table = {"templates": asdict(self.templates), "resize": None if self.resize is None else asdict(self.resize)}
        write_json(Path(folder) / TEMPLATES_FILE, table)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ReleasedTokenizer:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: the folder or a part of it is missing.
            ValueError: a tokenizer in it is not the one it was saved with, or the templates cannot be read.
        """
        tokenizer = super().from_pretrained(folder)
        assert isinstance(tokenizer, ReleasedTokenizer)
        file = Path(folder) / TEMPLATES_FILE
        if not file.is_file():
            return tokenizer
        table = read_json(file)
        try:
            tokenizer.templates = replace(Templates(), **table["templates"])
            tokenizer.resize = None if table["resize"] is None else Resize(**table["resize"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} holds no templates and resize rule ({error}); save the model again") from error
        return tokenizer


def read_own_tokenizer(folder: str | Path) -> MultimodalTokenizer:
    """The tokenizer of a folder of ours, with its templates where it has any; errors as in `MultimodalTokenizer.from_pretrained`."""
    kind = ReleasedTokenizer if (Path(folder) / TEMPLATES_FILE).is_file() else MultimodalTokenizer
    return kind.from_pretrained(folder)
