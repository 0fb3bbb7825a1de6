"""`emu demo pictures`: people in five skin tones, animals and things, drawn, described, recoloured by words and set in motion."""

from __future__ import annotations

from emu.data.tokenizing import SOURCES
from emu.demo.pictures.emoji import StoreEmoji
from emu.demo.pictures.emoji_documents import Motions, ToneChanges
from emu.demo.pictures.emoji_report import EmojiReport
from emu.demo.pictures.motions import MovingPixels

SOURCES.register("tone-changes", ToneChanges)
SOURCES.register("motions", Motions)

__all__ = ["EmojiReport", "Motions", "MovingPixels", "StoreEmoji", "ToneChanges"]
