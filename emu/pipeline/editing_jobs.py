"""The methods of `Emu` that change pictures: by prompt, or where a mask says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from emu.pipeline.drawing import DrawingEmu
from emu.pipeline.edit_documents import edit_documents, edit_sizes
from emu.pipeline.masked_pictures import MaskedPicture, each_mask
from emu.pipeline.prepared_drawings import PreparedImages, PreparedMasks
from emu.pipeline.preparing import PreparedImageOptions
from emu.pipeline.results import ImageResult
from emu.pipeline.trained_limits import check_infill

if TYPE_CHECKING:
    from typing_extensions import Unpack

Mask = Image.Image | np.ndarray | str | os.PathLike


class EditingEmu(DrawingEmu):
    """Methods that generate and edit pictures."""

    def edit_images(
        self,
        pictures: Any,
        prompts: str | Sequence[str],
        mask: Mask | Sequence[Mask] | None = None,
        *,
        progress: bool = False,
        **options: Unpack[PreparedImageOptions],
    ) -> list[ImageResult]:
        """Edit pictures according to prompts: `emu.edit_images(picture, "make it red")`, or redraw where `mask=` is white.

        Without a mask this is shorthand for `generate_images([[picture, prompt], ...])`, at the size of the picture. With one, the cells
        that it touches are filled in, and the prompt is a caption of the whole new picture; codes of the other cells, and pixels outside
        the mask, stay unchanged. `ImageResult.decoded` is what the codes alone decode to.

        Args:
            pictures: a picture (PIL image, path or uint8 array (H, W, 3)) for all prompts, or a list with one per prompt; if a prompt
                is about several pictures, its entry is a list of them.
            prompts: what to do, one for all pictures or one each.
            mask: white or True where to redraw, of the picture's size: a PIL image of mode "L" or "1", a path, or bool (H, W); or a list
                with one per pair. For models trained to fill in.
            progress, options: as in `iter_images`.

        Returns:
            The new pictures, `images_per_prompt` per pair.

        Raises:
            FileNotFoundError, TypeError, ValueError: as in `iter_images`; or the numbers of pictures, prompts and masks, or the sizes of a
                picture and its mask, do not match.
        """
        return list(self.prepare_edits(pictures, prompts, mask, **options).results(progress))

    def prepare_edits(
        self,
        pictures: Any,
        prompts: str | Sequence[str],
        mask: Mask | Sequence[Mask] | None = None,
        **options: Unpack[PreparedImageOptions],
    ) -> PreparedImages:
        """Prepare the pictures that `edit_images` generates with these arguments; raises the same errors."""
        documents = edit_documents(pictures, prompts)
        if mask is not None:
            return self._masks(documents, mask, options)
        if options.get("size") is None:
            options["size"] = edit_sizes(documents, self.tokenizer, self.defaults.size)
        return self.prepare_images(documents, **options)

    def _masks(self, documents: Sequence[Sequence[Any]], mask: Any, options: PreparedImageOptions) -> PreparedMasks:
        """Pictures of documents [picture, caption], drawn anew where masks are white."""
        check_infill(self.trained, self.tokenizer, "image")
        count, asked = len(documents), options.get("size")
        each = asked if isinstance(asked, list) and len(asked) == count else [asked] * count
        masked: list[MaskedPicture] = []
        for number, (document, one, size) in enumerate(zip(documents, each_mask(mask, count), each, strict=True)):
            if len(document) != 2:
                raise ValueError(
                    f"prompt {number} has {len(document) - 1} pictures beside a mask; give the one that is to be filled in"
                )
            wanted = None if size is None else self._sizes(size, 1)[0]
            picture = MaskedPicture.of(document[0], one, self.tokenizer, wanted or self.defaults.size)
            if wanted is not None and picture.mask.shape != wanted:
                raise ValueError(
                    f"prompt {number} has a picture of {picture.mask.shape} pixels (height, width) and a mask, and size {wanted}; a "
                    "picture that is filled in keeps its size, so leave size out"
                )
            masked.append(picture)
        options["size"] = [picture.mask.shape for picture in masked]
        captioned = [[document[1], picture.segment] for document, picture in zip(documents, masked, strict=True)]
        prepared = self.prepare_images(captioned, **options)
        return PreparedMasks(prepared.drawing, prepared.blocks, prepared.about, prepared.model, prepared.beyond, masked)
