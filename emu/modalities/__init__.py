"""The modalities that come with the library; importing this package registers images, clips and boxes."""

from emu.modalities.boxes import BOXES, BoxesModality
from emu.modalities.image import ImageModality
from emu.modalities.video import VideoModality
from emu.modality import register

IMAGE = register(ImageModality())
VIDEO = register(VideoModality())

__all__ = ["BOXES", "IMAGE", "VIDEO", "BoxesModality", "ImageModality", "VideoModality"]
