"""The demo's training documents: five tasks over the codes of the same handwritten digits.

    text_to_image       caption, picture
    image_to_text       picture, question, answer
    text_to_video       caption, clip
    video_continuation  clip whose first latent frame is given, without words
    image_to_video      "moving left", clip that begins with a picture at rest

Every document is a pure function of (index, key): the key chooses shift, wording and dropped captions.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.demo.digit_captions import CAPTIONS, DESCRIBE, QUESTION, answer, clip_caption, image_caption, motion_caption
from emu.demo.digits import DIRECTIONS, FPS, FRAMES, REST, SHIFTS, Digits, draw_clips, draw_stills, to_rgb_pixels
from emu.documents import CodeSegment, Segment, Text, TokenDocument
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu_tokenizers import VisionTokenizer

CAPTION_WEIGHT = 0.1
"""Loss weight of captions: they are prompts first of all."""
CONTEXT_WEIGHT = 0.3
"""Loss weight of codes that a task gives rather than asks for."""
CAPTION_DROPOUT = 0.1
"""Share of captions left out, for guidance."""
CLIP_META = {"frames": FRAMES, "fps": FPS}
FRAMES_PER_BATCH = 512


@dataclass(frozen=True)
class EncodedDigits:
    """Codes of digits in every pose that documents use; D directions, S shifts.

    Attributes:
        labels: (N,) int64.
        stills: (S, N, h, w) pictures.
        clips: (D, N, t, h, w) clips that move at once, each with a shift of its own.
        resting: (D, N, t, h, w) clips that begin at rest.
    """

    labels: Tensor
    stills: Tensor
    clips: Tensor
    resting: Tensor


def encode_digits(
    vision: VisionTokenizer, digits: Digits, seed: int, shifts: Sequence[tuple[int, int]] = SHIFTS
) -> EncodedDigits:
    """Encode digits once, in several poses.

    Args:
        vision: tokenizer with a factor that divides the canvas.
        digits: N of them.
        seed: chooses the shifts of the clips.
        shifts: (x, y) of the stills; those of the clips are drawn from them.
    """
    stills = torch.stack([_encode(vision, draw_stills(digits.images, shift)) for shift in shifts])
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor(shifts, dtype=torch.float32)
    moving: list[Tensor] = []
    resting: list[Tensor] = []
    for number in range(len(DIRECTIONS)):
        way = torch.full((len(digits),), number)
        for rest, made in ((0, moving), (REST, resting)):
            drawn = offsets[torch.randint(len(shifts), (len(digits),), generator=generator)]
            made.append(_encode(vision, draw_clips(digits.images, way, drawn, rest)))
    return EncodedDigits(digits.labels, stills, torch.stack(moving), torch.stack(resting))


def _encode(vision: VisionTokenizer, canvases: Tensor) -> Tensor:
    """Canvases (N, H, W) or (N, T, H, W), uint8 -> codes (N, h, w) or (N, t, h, w)."""
    per_batch = max(1, FRAMES_PER_BATCH // (canvases.shape[1] if canvases.ndim == 4 else 1))
    return torch.cat([vision.encode(to_rgb_pixels(part).to(vision.dtype)) for part in canvases.split(per_batch)])


class DigitDocuments(ABC):
    """Documents of one task, one per digit, or one per digit and direction.

    Args:
        digits: their codes.
        tokenizer: of the documents.
    """

    per_digit = 1

    def __init__(self, digits: EncodedDigits, tokenizer: MultimodalTokenizer) -> None:
        self.digits, self.tokenizer = digits, tokenizer
        self.max_length = max(
            len(self.document(index, key)) for index in range(min(len(self), 40)) for key in range(10)
        )

    def __len__(self) -> int:
        return len(self.digits.labels) * self.per_digit

    def document(self, index: int, key: int) -> TokenDocument:
        """Document `index` with the choices of `key`."""
        return self.compose(*divmod(index, self.per_digit), random.Random(key))

    @abstractmethod
    def compose(self, digit: int, way: int, chance: random.Random) -> TokenDocument:
        """The document of a digit and, where there are four to a digit, a direction."""

    def label(self, digit: int) -> int:
        """Which digit it is."""
        return int(self.digits.labels[digit])

    def build(self, *items: Text | CodeSegment) -> TokenDocument:
        """Lay out a document; a text of nothing is left out."""
        segments: list[Segment] = self.tokenizer.segments([item for item in items if item != Text("", CAPTION_WEIGHT)])
        return self.tokenizer.layout.build(segments)

    def still(self, digit: int, chance: random.Random, weight: float = 1.0) -> CodeSegment:
        """A picture of a digit, shifted at random."""
        return CodeSegment("image", self.digits.stills[chance.randrange(len(self.digits.stills)), digit], weight=weight)


def caption(text: str, chance: random.Random) -> Text:
    """A caption, or nothing now and then."""
    return Text("" if chance.random() < CAPTION_DROPOUT else text, CAPTION_WEIGHT)


class TextToImage(DigitDocuments):
    """Caption, picture."""

    def compose(self, digit: int, way: int, chance: random.Random) -> TokenDocument:
        """See `DigitDocuments`."""
        words = image_caption(self.label(digit), chance.randrange(len(CAPTIONS)))
        return self.build(caption(words, chance), self.still(digit, chance))


class ImageToText(DigitDocuments):
    """Picture, question, answer; the question is a prompt and has no weight."""

    def compose(self, digit: int, way: int, chance: random.Random) -> TokenDocument:
        """See `DigitDocuments`."""
        question = DESCRIBE if chance.random() < 0.25 else QUESTION
        picture = self.still(digit, chance, CONTEXT_WEIGHT)
        return self.build(picture, Text(question, 0.0), Text(answer(self.label(digit), question)))


class TextToVideo(DigitDocuments):
    """Caption, clip."""

    per_digit = len(DIRECTIONS)

    def compose(self, digit: int, way: int, chance: random.Random) -> TokenDocument:
        """See `DigitDocuments`."""
        words = clip_caption(self.label(digit), list(DIRECTIONS)[way], chance.randrange(len(CAPTIONS)))
        return self.build(caption(words, chance), CodeSegment("video", self.digits.clips[way, digit], CLIP_META))


class VideoContinuation(DigitDocuments):
    """A clip whose first latent frame counts little: what is asked for is how it goes on."""

    per_digit = len(DIRECTIONS)

    def compose(self, digit: int, way: int, chance: random.Random) -> TokenDocument:
        """See `DigitDocuments`."""
        document = self.build(CodeSegment("video", self.digits.clips[way, digit], CLIP_META))
        return self.weigh_beginning(document, CONTEXT_WEIGHT)

    def weigh_beginning(self, document: TokenDocument, weight: float) -> TokenDocument:
        """The document with another weight on the codes of its first latent frame."""
        _, _, height, width = self.digits.clips.shape[1:]
        first, count = self.tokenizer.layout.code_ranges("vision")[0]
        codes = ((document.ids >= first) & (document.ids < first + count)).nonzero()[:, 0]
        weights = document.weights.clone()
        weights[codes[: height * width]] *= weight
        return TokenDocument(document.ids, weights)


class ImageToVideo(VideoContinuation):
    """What should move where, and a clip that begins at rest; the resting part is given, and never asked for."""

    def compose(self, digit: int, way: int, chance: random.Random) -> TokenDocument:
        """See `DigitDocuments`."""
        direction = list(DIRECTIONS)[way]
        words = motion_caption(direction) if chance.random() < 0.5 else clip_caption(self.label(digit), direction)
        clip = CodeSegment("video", self.digits.resting[way, digit], CLIP_META)
        return self.weigh_beginning(self.build(caption(words, chance), clip), 0.0)


TASKS: dict[str, type[DigitDocuments]] = {
    "text_to_image": TextToImage,
    "image_to_text": ImageToText,
    "text_to_video": TextToVideo,
    "video_continuation": VideoContinuation,
    "image_to_video": ImageToVideo,
}
"""Sources of the demo's mixture by name."""
