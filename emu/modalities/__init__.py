"""The modalities that come with the library; importing this package registers images and clips."""

from emu.modalities.image import ImageModality
from emu.modalities.video import VideoModality
from emu.modality import register

IMAGE = register(ImageModality())
VIDEO = register(VideoModality())

__all__ = ["IMAGE", "VIDEO", "ImageModality", "VideoModality"]
