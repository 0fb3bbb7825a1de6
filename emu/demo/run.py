"""The whole demo: train both tokenizers and the transformer, measure, draw, report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu.demo.digit_captions import CAPTIONS, clip_caption, corpus, drawable_prompts
from emu.demo.digits import CANVAS, DIRECTIONS, FPS, FRAMES, SHIFTS, Digits, draw_stills, load_digits
from emu.demo.gallery import write_gallery
from emu.demo.judge import ClipJudge, DigitJudge, check_extra
from emu.demo.machine import Clock, few_threads, keep_memory, peak_gib
from emu.demo.measure import (
    Findings,
    SampleCounts,
    measure_continuation,
    measure_image_to_text,
    measure_image_to_video,
    measure_judges,
    measure_text_to_image,
    measure_text_to_video,
    measure_tokenizer,
    training_code_keys,
)
from emu.demo.tasks import CLIP_META, TASKS
from emu.modalities import MODALITIES
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline import Emu
from emu.pipeline.requests import GenerationDefaults
from emu.trained import Trained
from emu.training import cli as training
from emu_tokenizers import TextTokenizer, VisionTokenizer
from emu_tokenizers.files import holding, write_file, write_json

TEXT_SIZE = 400
GOALS = {
    "text_to_image_accuracy": 0.90,
    "image_to_text_accuracy": 0.90,
    "video_direction_accuracy": 0.85,
    "video_digit_accuracy": 0.75,
    "image_to_video_direction_accuracy": 0.85,
    "image_to_video_digit_accuracy": 0.75,
    "video_continuation_direction_accuracy": 0.85,
    "video_continuation_digit_accuracy": 0.75,
    "reconstruction_psnr": 24.0,
    "codebook_use": 0.8,
}
LONG_GOALS = GOALS | {
    "text_to_image_accuracy": 0.95,
    "image_to_text_accuracy": 0.93,
    "video_direction_accuracy": 0.95,
    "video_digit_accuracy": 0.90,
    "image_to_video_direction_accuracy": 0.95,
    "image_to_video_digit_accuracy": 0.90,
    "video_continuation_direction_accuracy": 0.95,
    "video_continuation_digit_accuracy": 0.90,
}
BEYOND_SHORT = ("video_continuation_direction_accuracy",)
"""Goals that minutes are too short for: the tokenizer does not show yet where the given frames move."""
TIMES = ("cpu_seconds", "wall_seconds", "peak_gib", "parts")
"""Entries of `metrics.json` that differ from run to run."""


@dataclass(frozen=True)
class DemoPlan:
    """How long the demo trains and how much it generates.

    Attributes:
        tokenizer_steps: steps of the vision tokenizer.
        transformer_steps: steps of the transformer.
        counts: samples that are measured.
        goals: what the figures should reach.
        beyond: those of the goals that a run of this length is known to miss.
        seed: of everything.
        num_digits: use only the first N digits of each set; None for all.
        tokenizer_options: further words for `emu fit-tokenizer`.
        transformer_options: further words for `emu fit`.
    """

    tokenizer_steps: int = 600
    transformer_steps: int = 700
    counts: SampleCounts = SampleCounts()
    goals: dict[str, float] = field(default_factory=lambda: dict(GOALS))
    beyond: tuple[str, ...] = BEYOND_SHORT
    seed: int = 0
    num_digits: int | None = None
    tokenizer_options: tuple[str, ...] = ()
    transformer_options: tuple[str, ...] = ()

    def three_times_as_long(self) -> DemoPlan:
        """The same recipe with three times the steps, and higher goals."""
        return replace(
            self,
            tokenizer_steps=3 * self.tokenizer_steps,
            transformer_steps=3 * self.transformer_steps,
            goals=dict(LONG_GOALS),
            beyond=(),
        )

    def missed(self, metrics: Mapping[str, Any]) -> list[str]:
        """Names of the goals that a run of this length should have reached and did not."""
        return [name for name, goal in self.goals.items() if name not in self.beyond and metrics[name] < goal]


def run_demo(
    folder: Path, plan: DemoPlan = DemoPlan(), log: Callable[[str], None] = lambda line: None, progress: bool = False
) -> dict[str, Any]:
    """Train, measure and show.

    Args:
        folder: for everything the demo writes; what an earlier demo wrote there is replaced.
        plan: how long and how much.
        log: takes a line about what happens.
        progress: whether to show progress bars.

    Returns:
        The figures, as in `metrics.json`.

    Raises:
        ValueError: packages of the `demo` extra are missing, or another process works in the folder.
    """
    check_extra()
    keep_memory()
    few_threads()
    with holding(folder, "emu demo"):
        return _run(folder, plan, log, progress)


def _run(folder: Path, plan: DemoPlan, log: Callable[[str], None], progress: bool) -> dict[str, Any]:
    (folder / "metrics.json").unlink(missing_ok=True)
    clock = Clock()
    train, held_out = (digits.first(plan.num_digits or len(digits)) for digits in load_digits())
    write_inputs(folder, train)
    log(f"{len(train)} handwritten digits to train on, {len(held_out)} held out")
    with clock.part("vision_tokenizer"):
        log("vision tokenizer: pictures and clips to codes and back")
        vision = train_vision(folder, plan, progress)
    with clock.part("text_tokenizer"):
        text = train_text()
        tokenizer = MultimodalTokenizer(text, vision)
        tokenizer.save_pretrained(folder / "tokenizers")
    with clock.part("transformer"):
        log("transformer: captions, pictures and clips in one sequence model")
        emu = train_transformer(folder, plan, tokenizer, progress)
    with clock.part("measurement"):
        log("measuring on held-out digits and on what the model draws")
        findings = measure(emu, train, held_out, plan, progress)
    with clock.part("pictures"):
        findings.metrics |= settings(plan)
        write_gallery(folder, findings, plan.goals, plan.beyond)
    metrics = findings.metrics | clock.total() | {"peak_gib": round(peak_gib(), 2), "parts": clock.parts}
    write_json(folder / "metrics.json", metrics)
    return metrics


def settings(plan: DemoPlan) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "seed": plan.seed,
        "tokenizer_steps": plan.tokenizer_steps,
        "transformer_steps": plan.transformer_steps,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def write_inputs(folder: Path, train: Digits) -> None:
    """`train_images.npz`, every picture that is trained on (the centred ones first), and `prompts.jsonl`, what can be drawn."""
    images = torch.cat([draw_stills(train.images, shift) for shift in SHIFTS]).numpy()
    labels = train.labels.repeat(len(SHIFTS)).numpy()
    written = io.BytesIO()
    np.savez_compressed(written, images=images, labels=labels)
    write_file(folder / "train_images.npz", written.getvalue())
    lines = "".join(json.dumps(line) + "\n" for line in drawable_prompts())
    write_file(folder / "prompts.jsonl", lines.encode())


def train_vision(folder: Path, plan: DemoPlan, progress: bool) -> VisionTokenizer:
    """Train the vision tokenizer as `emu fit-tokenizer --config digits_tokenizer` does."""
    words = [
        "--config",
        "digits_tokenizer",
        *_common(folder / "runs" / "vision_tokenizer", plan.tokenizer_steps, plan, progress),
    ]
    module = training.fit_tokenizer([*words, *plan.tokenizer_options])
    vision = module.tokenizer
    assert isinstance(vision, VisionTokenizer)
    return vision


def train_text() -> TextTokenizer:
    """Train the text tokenizer on the captions, questions, answers and headers of the documents."""
    side = CANVAS // 8
    headers = (
        MODALITIES["image"].meta_text((side, side), {}),
        MODALITIES["video"].meta_text((FRAMES // 4, side, side), CLIP_META),
    )
    return TextTokenizer.train(corpus(headers), TEXT_SIZE)


def train_transformer(folder: Path, plan: DemoPlan, tokenizer: MultimodalTokenizer, progress: bool) -> Emu:
    """Train the transformer as `emu fit --config digits` does; write `model/`."""
    words = ["--config", "digits", *_common(folder / "runs" / "transformer", plan.transformer_steps, plan, progress)]
    words += ["--data.tokenizer", str(folder / "tokenizers"), "--export", "null"]
    words += [] if plan.num_digits is None else ["--data.num_digits", str(plan.num_digits)]
    module = training.fit([*words, *plan.transformer_options])
    assert isinstance(module.model, EmuForCausalLM)
    defaults = GenerationDefaults(size=(CANVAS, CANVAS), frames=FRAMES, fps=FPS, guidance_scale=3.0, top_k=0, top_p=0.9)
    emu = Emu(module.model.eval(), tokenizer, defaults, trained=what_is_trained(tokenizer))
    emu.save_pretrained(folder / "model")
    return emu


def what_is_trained(tokenizer: MultimodalTokenizer) -> Trained:
    """Tasks and shapes of the documents in `emu.demo.tasks`, the longest of which are clips with their captions."""
    side, meta = CANVAS // 8, CLIP_META
    grid = (FRAMES // 4, side, side)
    captions = [
        clip_caption(digit, way, words) for digit in range(10) for way in DIRECTIONS for words in range(len(CAPTIONS))
    ]
    longest = max(len(tokenizer.prompt([caption], "video", grid, meta)) for caption in captions)
    context = longest + len(tokenizer.layout.block("video", grid)) + 1  # and EOS
    return Trained(tuple(TASKS), ((CANVAS, CANVAS),), (FRAMES,), (FPS,), context)


def _common(run: Path, steps: int, plan: DemoPlan, progress: bool) -> list[str]:
    return [
        *("--trainer.default_root_dir", str(run), "--overwrite", "true", "--seed_everything", str(plan.seed)),
        *("--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(max(1, steps // 6))),
        *("--trainer.enable_progress_bar", str(progress).lower(), "--data.seed", str(plan.seed)),
    ]


def measure(emu: Emu, train: Digits, held_out: Digits, plan: DemoPlan, progress: bool) -> Findings:
    """All figures and samples."""
    vision = emu.tokenizer.vision
    assert vision is not None
    judge, clip_judge = DigitJudge(train), ClipJudge(train)
    known = training_code_keys(vision, train)
    parts = [
        measure_text_to_image(emu, judge, known, held_out, plan.counts, progress),
        measure_image_to_text(emu, held_out, plan.counts, progress),
        measure_text_to_video(emu, clip_judge, held_out, plan.counts, progress),
        measure_tokenizer(vision, held_out, judge),
        measure_continuation(emu, clip_judge, held_out, plan.counts, progress),
        measure_image_to_video(emu, clip_judge, held_out, plan.counts, progress),
        measure_judges(judge, clip_judge, held_out),
    ]
    together = Findings()
    for part in parts:
        together.metrics |= part.metrics
        together.samples |= part.samples
    return together
