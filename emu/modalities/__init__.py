"""The modalities that come with the library; importing this package registers images, clips and boxes."""

from emu.modalities.base import Grid, Modality, get_modality, register, registered
from emu.modalities.boxes import BOXES, BoxesModality
from emu.modalities.image import ImageModality
from emu.modalities.video import VideoModality

IMAGE = register(ImageModality())
VIDEO = register(VideoModality())

__all__ = [
    "BOXES",
    "IMAGE",
    "VIDEO",
    "BoxesModality",
    "Grid",
    "ImageModality",
    "Modality",
    "VideoModality",
    "get_modality",
    "register",
    "registered",
]
