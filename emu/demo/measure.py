"""What the trained model can do, in numbers and in samples: everything goes through `Emu`, as a user would call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emu.demo.digit_captions import QUESTION, answer, clip_caption, drawable_prompts, motion_caption
from emu.demo.digits import DIRECTIONS, FRAMES, REST, SHIFTS, Digits, draw_clips, draw_stills, to_rgb_pixels
from emu.demo.judge import ClipJudge, DigitJudge, variety, variety_of_answers
from emu.documents import Video
from emu.pipeline import Emu
from emu_tokenizers import VisionTokenizer
from emu_tokenizers.pixels.images import to_rgb
from emu_tokenizers.pixels.metrics import CodeCounter, psnr
from emu_tokenizers.pixels.transforms import to_frames

BATCH = 100


@dataclass(frozen=True)
class SampleCounts:
    """How much is generated to measure a model.

    Attributes:
        images_per_prompt: pictures for each of the 30 prompts.
        clips_per_prompt: clips for each of the 40 captions.
        continued: held-out clips that are continued, and held-out pictures that are set in motion.
        described: held-out pictures that are named; None for all.
    """

    images_per_prompt: int = 10
    clips_per_prompt: int = 6
    continued: int = 200
    described: int | None = None


@dataclass
class Findings:
    """Figures, and the samples that they were measured on.

    Attributes:
        metrics: figures by name.
        samples: uint8 arrays and texts by name, for pictures.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)


def grey(images: Sequence[Image.Image]) -> Tensor:
    """Generated pictures as canvases: (N, H, W) uint8."""
    return torch.stack([torch.from_numpy(np.array(image.convert("L"))) for image in images])


def colour(canvases: Tensor) -> list[Image.Image]:
    """Canvases (N, H, W) uint8 as RGB pictures."""
    return [to_rgb(Image.fromarray(canvas.numpy())) for canvas in canvases]


def share(found: Tensor, expected: Tensor) -> float:
    """How many are right, of one."""
    return round(float((found == expected).float().mean()), 4)


@torch.no_grad()
def measure_tokenizer(vision: VisionTokenizer, digits: Digits, judge: DigitJudge) -> Findings:
    """Reconstructions of held-out pictures and clips, and how many codes they use."""
    stills = draw_stills(digits.images)
    clips = draw_clips(digits.images, torch.arange(len(digits)) % len(DIRECTIONS), torch.zeros(len(digits), 2))
    counter = CodeCounter(vision.codebook_sizes)
    rebuilt = []
    quality: dict[str, list[Tensor]] = {"": [], "_clips": []}
    for name, canvases in (("", stills), ("_clips", clips)):
        for part in canvases.split(BATCH):
            pixels = to_rgb_pixels(part)
            codes = vision.encode(pixels)
            counter.add(codes)
            decoded = vision.decode(codes)
            quality[name].append(psnr(decoded, pixels).flatten())
            if not name:
                rebuilt.append(torch.from_numpy(to_frames(decoded)[..., 0]))
    used = counter.measure()
    reconstructions = torch.cat(rebuilt)
    metrics = {f"reconstruction_psnr{name}": round(float(torch.cat(part).mean()), 3) for name, part in quality.items()}
    metrics |= {
        "codebook_use": round(used.use, 4),
        "codebook_perplexity": round(used.perplexity, 1),
        "reconstruction_judge_accuracy": share(judge(reconstructions), digits.labels),
    }
    return Findings(metrics, {"originals": stills, "reconstructions": reconstructions})


def measure_judges(judge: DigitJudge, clip_judge: ClipJudge, digits: Digits) -> Findings:
    """How often the judges are right about real, held-out pictures and clips."""
    ways = torch.arange(len(digits)) % len(DIRECTIONS)
    clips = draw_clips(digits.images, ways, torch.zeros(len(digits), 2))
    return Findings(
        {
            "judge_accuracy": share(judge(draw_stills(digits.images)), digits.labels),
            "clip_judge_digit_accuracy": share(clip_judge.digits(clips), digits.labels),
            "clip_judge_direction_accuracy": share(clip_judge.directions(clips), ways),
        }
    )


def measure_text_to_image(
    emu: Emu, judge: DigitJudge, known: set[bytes], digits: Digits, counts: SampleCounts, progress: bool
) -> Findings:
    """Pictures drawn for every prompt; `known` are the code grids of the training pictures (see `code_keys`), `digits` held-out ones."""
    lines = drawable_prompts()
    prompts = [line["prompt"] for line in lines]
    labels = torch.tensor([line["label"] for line in lines]).repeat_interleave(counts.images_per_prompt)
    results = emu.generate_images(
        prompts,
        images_per_prompt=counts.images_per_prompt,
        seed=list(range(len(prompts))),
        batch_size=BATCH,
        progress=progress,
    )
    canvases = grey([result.image for result in results])
    found = judge(canvases)
    new = [key not in known for key in code_keys(torch.stack([result.codes for result in results]))]
    metrics = {
        "text_to_image_accuracy": share(found, labels),
        "text_to_image_samples": len(results),
        "text_to_image_accuracy_by_digit": [
            share(found[labels == digit], labels[labels == digit]) for digit in range(10)
        ],
        "text_to_image_variety": variety(canvases, labels, draw_stills(digits.images), digits.labels),
        "text_to_image_new": round(sum(new) / len(new), 4),
    }
    return Findings(metrics, {"images": canvases, "image_labels": labels, "image_found": found})


def code_keys(codes: Tensor) -> list[bytes]:
    """One key per grid of codes (N, ...); equal grids have equal keys."""
    return [grid.numpy().tobytes() for grid in codes.flatten(1).cpu()]


def training_code_keys(vision: VisionTokenizer, digits: Digits) -> set[bytes]:
    """Keys of all pictures that were trained on."""
    encoded = [vision.encode(to_rgb_pixels(draw_stills(digits.images, shift))) for shift in SHIFTS]
    return {key for codes in encoded for key in code_keys(codes)}


def measure_image_to_text(emu: Emu, digits: Digits, counts: SampleCounts, progress: bool) -> Findings:
    """Held-out pictures named in words; only the right word alone counts."""
    digits = digits if counts.described is None else digits.first(counts.described)
    pictures = colour(draw_stills(digits.images))
    texts = emu.generate_text(
        [[picture, QUESTION] for picture in pictures], max_new_tokens=8, batch_size=BATCH, progress=progress
    )
    expected = [answer(int(label), QUESTION) for label in digits.labels]
    right = torch.tensor([text == wanted for text, wanted in zip(texts, expected, strict=True)])
    metrics = {
        "image_to_text_accuracy": share(right, torch.ones_like(right)),
        "image_to_text_variety": variety_of_answers(texts, expected),
        "image_to_text_samples": len(texts),
    }
    return Findings(metrics, {"described": draw_stills(digits.images), "texts": texts, "text_right": right})


def measure_text_to_video(emu: Emu, judge: ClipJudge, digits: Digits, counts: SampleCounts, progress: bool) -> Findings:
    """Clips for every digit in every direction; `digits` are held-out ones, whose clips show how varied these should be."""
    pairs = [(digit, way) for digit in range(10) for way in range(len(DIRECTIONS))]
    results = emu.generate_videos(
        [clip_caption(digit, list(DIRECTIONS)[way]) for digit, way in pairs],
        videos_per_prompt=counts.clips_per_prompt,
        seed=list(range(len(pairs))),
        batch_size=BATCH,
        progress=progress,
    )
    clips = torch.stack([grey(result.frames) for result in results])  # (N, T, H, W)
    wanted = torch.tensor(pairs).repeat_interleave(counts.clips_per_prompt, dim=0)
    ways = torch.arange(len(digits)) % len(DIRECTIONS)
    real = draw_clips(digits.images, ways, torch.zeros(len(digits), 2))
    metrics = {
        "video_direction_accuracy": share(judge.directions(clips), wanted[:, 1]),
        "video_digit_accuracy": share(judge.digits(clips), wanted[:, 0]),
        "video_last_frame_digit_accuracy": share(judge.digits(clips[:, -1:]), wanted[:, 0]),
        "video_variety": variety(clips, wanted[:, 0], real, digits.labels),
        "video_samples": len(clips),
    }
    return Findings(metrics, {"clips": clips[:: counts.clips_per_prompt]})


def measure_continuation(emu: Emu, judge: ClipJudge, digits: Digits, counts: SampleCounts, progress: bool) -> Findings:
    """Held-out clips continued from their first half, without words; digit and direction are judged on what was added.

    The direction can only be as right as the codes of the first half show it: how often it can be read off their decoded frames is the
    figure beside it.
    """
    digits = digits.first(counts.continued)
    ways = torch.arange(len(digits)) % len(DIRECTIONS)
    real = draw_clips(digits.images, ways, torch.zeros(len(digits), 2))
    given = [Video(colour(clip[: FRAMES // 2]), emu.defaults.fps) for clip in real]
    clips = _videos(emu, [""] * len(given), given, progress)
    added = clips[:, FRAMES // 2 :]
    metrics = {
        "video_continuation_direction_accuracy": share(judge.directions(clips[:, FRAMES // 2 - 1 :]), ways),
        "video_continuation_given_direction_accuracy": share(judge.directions(clips[:, : FRAMES // 2]), ways),
        "video_continuation_digit_accuracy": share(judge.digits(added), digits.labels),
        "video_continuation_variety": variety(added, digits.labels, real[:, FRAMES // 2 :], digits.labels),
    }
    return Findings(metrics, {"continued": clips, "continued_real": real})


def measure_image_to_video(
    emu: Emu, judge: ClipJudge, digits: Digits, counts: SampleCounts, progress: bool
) -> Findings:
    """Held-out pictures set in motion by "moving left" and so on."""
    digits = digits.first(counts.continued)
    ways = torch.arange(len(digits)) % len(DIRECTIONS)
    stills = [Video([picture], emu.defaults.fps) for picture in colour(draw_stills(digits.images))]
    prompts = [motion_caption(list(DIRECTIONS)[way]) for way in ways.tolist()]
    clips = _videos(emu, prompts, stills, progress)
    real = draw_clips(digits.images, ways, torch.zeros(len(digits), 2), REST)
    metrics = {
        "image_to_video_direction_accuracy": share(judge.directions(clips), ways),
        "image_to_video_digit_accuracy": share(judge.digits(clips[:, REST:]), digits.labels),
        "image_to_video_variety": variety(clips[:, REST:], digits.labels, real[:, REST:], digits.labels),
    }
    return Findings(metrics, {"moved": clips})


def _videos(emu: Emu, prompts: list[str], first_frames: list[Video], progress: bool) -> Tensor:
    """Clips (N, T, H, W) uint8 that go on from first frames."""
    results = emu.generate_videos(
        prompts,
        first_frames=first_frames,
        guidance_scale=None if prompts[0] else 1.0,
        seed=list(range(len(prompts))),
        batch_size=BATCH,
        progress=progress,
    )
    return torch.stack([grey(result.frames) for result in results])
