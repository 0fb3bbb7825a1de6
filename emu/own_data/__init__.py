"""From a folder of one's own captioned pictures to a trained model: the plan, the split, the views and the report of `own-images`."""

from __future__ import annotations

from emu.data.tokenizing import SOURCES
from emu.own_data.picture_plan import PicturePlan
from emu.own_data.picture_report import PictureReport
from emu.own_data.picture_store import PictureStore, SplitPictures
from emu.own_data.picture_views import StoredPictures, StoredPixels

SOURCES.register("own-pictures", StoredPictures)

__all__ = ["PicturePlan", "PictureReport", "PictureStore", "SplitPictures", "StoredPictures", "StoredPixels"]
