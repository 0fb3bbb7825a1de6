"""Words that Emu3 was trained to read around a user's."""

from __future__ import annotations

from emu.templates import PLAIN, Templates

NEGATIVE_PROMPT = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, normal "
    "quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""Negative prompt of `image_generation.py` of baaivision/Emu3."""

POSITIVE_SUFFIX = " masterpiece, film grained, best quality."
"""What the same script appends to every prompt."""


EMU3 = Templates(answer="You are a helpful assistant. USER: {items}. ASSISTANT:")
"""Modes G and U of Emu3-Gen and Emu3-Chat (`processing_emu3.py` of baaivision/Emu3)."""

EMU3_STAGE1 = PLAIN
"""Emu3-Stage1: no words around the user's (README of baaivision/Emu3)."""

NAMED = {"emu3": EMU3, "emu3-stage1": EMU3_STAGE1, "plain": PLAIN}
"""Templates by the name that users give."""
