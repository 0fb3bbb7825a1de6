"""The modalities that come with the library, images, clips and boxes, and the table that others are added to."""

from __future__ import annotations

from emu.modalities.base import Grid, Modality
from emu.modalities.boxes import BoxesModality
from emu.modalities.image import ImageModality
from emu.modalities.video import VideoModality
from emu_tokenizers.registry import Registry

MODALITIES: Registry[Modality] = Registry(
    "modality", {modality.name: modality for modality in (BoxesModality(), ImageModality(), VideoModality())}
)
"""Modalities by name. A layout takes those it is made with; among them the first that accepts a value codes it."""

register = MODALITIES.register
unregister = MODALITIES.unregister

__all__ = [
    "MODALITIES",
    "BoxesModality",
    "Grid",
    "ImageModality",
    "Modality",
    "VideoModality",
    "register",
    "unregister",
]
