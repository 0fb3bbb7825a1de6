"""The jobs `own-images` and `own-videos`: from a folder of captioned pictures or clips to a trained model and a report."""

from __future__ import annotations

from emu.data.tokenizing import SOURCES
from emu.own_data.clip_plan import ClipPlan
from emu.own_data.clip_report import ClipReport
from emu.own_data.clip_store import SplitClips
from emu.own_data.picture_plan import PicturePlan
from emu.own_data.picture_report import PictureReport
from emu.own_data.picture_store import PictureStore, SplitPictures
from emu.own_data.picture_views import StoredPictures, StoredPixels

SOURCES.register("own-pictures", StoredPictures)

__all__ = [
    "ClipPlan",
    "ClipReport",
    "PicturePlan",
    "PictureReport",
    "PictureStore",
    "SplitClips",
    "SplitPictures",
    "StoredPictures",
    "StoredPixels",
]
