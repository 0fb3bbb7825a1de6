"""The plan of `own-images`: sizes, widths and steps chosen from the data and the budget, each with its reason.

Twelve pictures and a hundred thousand go through the same stages. What differs is how much a model may learn by heart: of few pictures it
is small, sees each in many views, and drops much out; of many it is larger. Time is asked for once, in a probe of at most a minute.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu.data.tokenizing import Record, RecordSource, SourceOptions, open_source
from emu.model import EmuConfig
from emu.own_data.picture_store import captioned_picture
from emu.own_data.speed_probe import Speed, measure_speed
from emu_tokenizers import VisionTokenizerConfig

BUDGET = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h)")
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
LOOKED_AT = 256
"""Pictures whose size and caption are looked at."""
NEW_WORDS = 0.5
"""Different words grow with this power of the number of captions (Heaps, "Information Retrieval", 1978: 0.4 to 0.6)."""
LARGEST, SMALLEST = 64, 16
VISION_BATCH, CLIP_BATCH, TOKENS_PER_STEP = 16, 8, 2048
CLIP_VIEWS = 4
"""Views of a clip at most: each is written as files, and encoded, frame by frame."""
TEMPORAL_FACTOR = 4
VISION_SHARE, TRANSFORMER_SHARE = 0.3, 0.57
"""Of what the budget leaves for training; the rest is for starting, measuring and drawing."""
VISION_PASSES, TRANSFORMER_PASSES = 120, 60
"""Over the training pictures at most: further ones teach nothing but the pictures."""
LEAST_STEPS = 60
READING, WRITING = 1.5e-3, 1e-3
"""Seconds to read a picture of a file, and to write a document; what a photograph takes longer is little beside training."""
OTHER_SHARE = 0.15
"""Of the budget that reading and encoding may take before there are fewer views."""
DOCUMENTS_PER_ROW = 3.2
PASSES_PER_VIEW = 6
"""How often each view should be seen, to be drawn and to be described, before there are more of them: a model that has seen whole pictures
only once or twice draws nothing yet, and views take steps from them."""


@dataclass(frozen=True)
class Band:
    """What is chosen by the number of training pictures.

    Attributes:
        up_to: pictures.
        codebook: entries.
        hidden, layers, heads: of the transformer.
        dropout: of it.
        views: of each picture.
    """

    up_to: float
    codebook: int
    hidden: int
    layers: int
    heads: int
    dropout: float
    views: int


BANDS = (
    Band(100, 128, 64, 2, 4, 0.3, 8),
    Band(1_000, 256, 128, 3, 4, 0.3, 8),
    Band(10_000, 1024, 192, 4, 4, 0.2, 4),
    Band(50_000, 1024, 256, 6, 4, 0.1, 2),
    Band(math.inf, 1024, 320, 6, 5, 0.05, 1),
)


@dataclass(frozen=True)
class Facts:
    """What is known of the data.

    Attributes:
        pictures: how many there are, about.
        side: median of the shorter sides, in pixels.
        caption: characters of the longest caption that was looked at.
        words: different words of all captions, about.
        frames: median of the lengths of clips; 1 for pictures.
    """

    pictures: int
    side: int
    caption: int
    words: int
    frames: int = 1


class PicturePlan:
    """Looks at a source of captioned pictures; see `emu.training.job.JobPlan`.

    Args:
        source: see `emu.data.tokenizing.open_source`.
        budget: how long all stages together may take, e.g. "90s", "30min", "2h".
        size: side of the pictures in pixels, a multiple of 8; None chooses.
        held_out: share of the pictures to measure on.
        options: of the source, see `SourceOptions`.
    """

    def __init__(
        self,
        source: str | None = None,
        budget: str = "30min",
        size: int | None = None,
        held_out: float = 0.1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        found = BUDGET.fullmatch(str(budget))
        problems = []
        if not source:
            problems.append("no pictures are named; give --data.source FOLDER")
        if not found or float(found[1]) <= 0:
            problems.append(f"budget is {budget!r}; expected a time such as 90s, 30min or 2h")
        if size is not None and (size % 8 or size < SMALLEST):
            problems.append(f"size is {size}; expected a multiple of 8 from {SMALLEST} on")
        if not 0 < held_out < 1:
            problems.append(f"held_out is {held_out}; expected a share between 0 and 1")
        missing = is_missing(source)
        if missing:
            problems.append(f"there is no folder and no file {source}; give --data.source FOLDER")
        if problems or not source or not found:
            raise (FileNotFoundError if missing and len(problems) == 1 else ValueError)("; ".join(problems))
        self.source, self.size, self.held_out = source, size, held_out
        self.seconds = float(found[1]) * UNITS[found[2]]
        self.given = dict(options or {})
        self.options = SourceOptions(**self.given)

    @classmethod
    def examples(cls) -> list[dict[str, Any]]:
        """What would be chosen for few small pictures and for many large ones; see `emu.training.job_plan.JobPlan`."""
        plan = cls("dataset:example")
        found = []
        for facts in (Facts(12, SMALLEST, 20, 20), Facts(10_000, LARGEST, 100, 2000)):
            values, _ = plan.shape(facts)
            found.append(plan.chosen(facts, values, Speed(0.1, 0.001, 0.1))[0])
        return found

    def state(self) -> str | None:
        """What the source says of itself."""
        return open_source(self.source, self.options).fingerprint

    def make(self) -> tuple[dict[str, Any], list[str]]:
        """Look at the data, time both networks, choose."""
        values, reasons = self.shape(facts := self.look())
        config = EmuConfig(**values["transformer"], vocab_size=values["text_size"] + values["codebook_size"] + 32)
        vision = VisionTokenizerConfig(**values["vision"])
        found, more = self.chosen(facts, values, measure_speed(vision, self.pixels(values), config, values["rows"]))
        return found, [*reasons, *more]

    def chosen(self, facts: Facts, values: Mapping[str, Any], speed: Speed) -> tuple[dict[str, Any], list[str]]:
        """All values: sizes and widths, views and steps, and why the latter."""
        steps, reasons = pace(facts, values, speed, self.seconds)
        return {"source": self.source, "options": self.given, **values, **steps, "speed": vars(speed)}, reasons

    def shape(self, facts: Facts) -> tuple[dict[str, Any], list[str]]:
        """Sizes and widths, and why."""
        return shape(facts, self.size, self.held_out)

    def pixels(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of a step's pixels."""
        return values["vision_batch"], 3, values["size"], values["size"]

    def read(self, source: RecordSource, record: Record) -> tuple[np.ndarray, str]:
        """A picture (H, W, 3) uint8 and its caption; raises any exception for a bad record."""
        return captioned_picture(source, record)

    def look(self) -> Facts:
        """Read some of the pictures, spread over the source.

        Raises:
            ValueError: none of them is a captioned picture.
        """
        source = open_source(self.source, self.options)
        records, count = spread(source.records(), LOOKED_AT)
        sides, captions, first = [], list[str](), ""
        for record in records:
            try:
                picture, caption = self.read(source, record)
            except Exception as error:  # whatever strangers' files raise; the split counts them by reason
                first = first or str(error)
                continue
            sides.append(min(picture.shape[:2]))
            captions.append(caption)
        if not captions:
            raise ValueError(f"{self.source} has no captioned pictures: {first or 'it is empty'}")
        seen = len({word for caption in captions for word in caption.casefold().split()})
        words = round(seen * max(1.0, count / len(records)) ** NEW_WORDS)
        return Facts(count, int(statistics.median(sides)), max(map(len, captions)), words)


def is_missing(source: str | None) -> bool:
    """Whether a source is the name of a file or folder that is not there; others are names of datasets, or patterns of names."""
    return bool(source) and not set(str(source)) & set(":*?[") and not Path(str(source)).exists()


def spread(records: Iterable[Record], most: int) -> tuple[list[Record], int]:
    """At most this many of the records, evenly spread, and how many there are; no more than twice as many are held."""
    kept: list[Record] = []
    stride = 1
    count = 0
    for count, record in enumerate(records, start=1):
        if (count - 1) % stride == 0:
            kept.append(record)
        if len(kept) >= 2 * most:
            kept, stride = kept[::2], 2 * stride
    return kept[:: -(-len(kept) // most)] if kept else [], count


def band_of(pictures: int) -> Band:
    """What goes with a number of pictures."""
    return next(band for band in BANDS if pictures <= band.up_to)


def shape(
    facts: Facts, size: int | None, held_out: float, frames: int = 1, factor: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Sizes and widths, and why: a function of the data alone.

    Args:
        facts: about the pictures, or the first frames of clips.
        size: side in pixels; None chooses.
        held_out: share of them.
        frames: of a clip; 1 for pictures.
        factor: pixels along the side of a code; None chooses.
    """
    band = band_of(facts.pictures)
    side = size or max(SMALLEST, min(LARGEST, facts.side // 8 * 8))
    factor = factor or (4 if side <= 24 else 8)
    grid = (side // factor) ** 2
    text_size = 300 + min(3700, 2 * facts.words)
    time = -(-frames // TEMPORAL_FACTOR)
    length = time * grid + facts.caption // 2 + 24
    row_length = 64 * math.ceil(DOCUMENTS_PER_ROW * length / 64)
    rows = max(1, round(TOKENS_PER_STEP / row_length))
    bits = math.log2(band.codebook) / factor**2 / (1 if frames == 1 else TEMPORAL_FACTOR)
    kind = "a picture" if frames == 1 else f"for {TEMPORAL_FACTOR} frames"
    values: dict[str, Any] = {
        "size": side,
        "held_out": held_out,
        "most_views": band.views if frames == 1 else min(CLIP_VIEWS, band.views),
        "vision_batch": VISION_BATCH if frames == 1 else CLIP_BATCH,
        "text_size": text_size,
        "codebook_size": band.codebook,
        "vision": {
            "spatial_factor": factor,
            "temporal_factor": 1 if frames == 1 else TEMPORAL_FACTOR,
            "base_channels": 16,
            "channel_multiplier": [1, 2] if factor == 4 else [1, 2, 4],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "norm_groups": 4,
            "latent_channels": 8,
            "embed_dim": 8,
            "codebook_size": band.codebook,
        },
        "transformer": {
            "hidden_size": band.hidden,
            "intermediate_size": 8 * math.ceil(band.hidden * 8 / 3 / 8),
            "num_hidden_layers": band.layers,
            "num_attention_heads": band.heads,
            "max_position_embeddings": row_length,
            "rope_theta": 10000.0,
            "qk_norm": True,
            "z_loss": 1e-4,
            "residual_dropout": band.dropout,
            "embedding_dropout": band.dropout,
        },
        "row_length": row_length,
        "rows": rows,
        "caption_dropout": 0.1,
    }
    reasons = [
        f"{facts.pictures:,} captioned pictures, {held_out:.0%} of them held out to measure on; near duplicates stay together",
        f"size {side}x{side}: the shorter sides are {facts.side} pixels in the median"
        + (f", and more than {LARGEST} takes hours on a processor" if facts.side > LARGEST and size is None else ""),
        f"{grid} codes {kind} (a code for {factor}x{factor} pixels) of {band.codebook} kinds, {bits:.2f} bit a pixel: more kinds than "
        "that few of these pictures would use",
        f"transformer of width {band.hidden} and {band.layers} layers, dropout {band.dropout}: what {facts.pictures:,} pictures teach "
        "before it knows them by heart",
        f"text tokenizer of up to {text_size} ids: 256 bytes, and the words (about {facts.words} different ones)",
    ]
    return values, reasons


def pace(facts: Facts, values: Mapping[str, Any], speed: Speed, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """Views and steps within a budget, and why: more seconds never give fewer of them."""
    train = max(1, round(facts.pictures * (1 - values["held_out"])))
    reading = facts.pictures * READING
    view = 2 * train * (speed.encoding + WRITING)  # each is tokenized to be drawn and to be described
    views = values["most_views"]
    passes = TRANSFORMER_SHARE * seconds / speed.transformer_step * values["rows"] * DOCUMENTS_PER_ROW / (2 * train)
    while views > 1 and (reading + views * view > OTHER_SHARE * seconds or passes < PASSES_PER_VIEW * views):
        views //= 2
    other = reading + views * view
    training = max(0.3 * seconds, seconds - other)
    per_pass = max(1, round(2 * train / (values["rows"] * DOCUMENTS_PER_ROW)))
    most = {
        "vision": max(400, VISION_PASSES * math.ceil(train / values["vision_batch"])),
        "transformer": max(200, TRANSFORMER_PASSES * per_pass),
    }
    fitting = {
        "vision": int(VISION_SHARE * training / speed.vision_step),
        "transformer": int(TRANSFORMER_SHARE * training / speed.transformer_step),
    }
    steps = {name: max(LEAST_STEPS, min(most[name], fitting[name])) for name in most}
    found: dict[str, Any] = {"views": views}
    for name, warmup in (("vision", 100), ("transformer", 50)):
        found[f"{name}_steps"], found[f"{name}_every"] = steps[name], max(10, steps[name] // 20)
        found[f"{name}_warmup"] = min(warmup, steps[name] // 6)
    enough = {name: f"; {passes} passes over the pictures are enough" if fitting[name] > most[name] else ""
              for name, passes in (("vision", VISION_PASSES), ("transformer", TRANSFORMER_PASSES))}  # fmt: skip
    reasons = [
        f"views of each training picture: {views}, since there is time for {passes:.2g} passes: the picture itself, its mirror image where "
        "the caption says nothing of left and right, then crops",
        f"vision tokenizer: {steps['vision']:,} steps of {values['vision_batch']}, {speed.vision_step:.3f} s each on this machine"
        + enough["vision"],
        f"transformer: {steps['transformer']:,} steps of {values['rows']} rows of {values['row_length']} tokens, "
        f"{speed.transformer_step:.3f} s each on this machine{enough['transformer']}; the weights that are best on held-out pictures "
        "are kept",
        f"{seconds / 60:.3g} minutes: about {other:.0f} s to read and encode the pictures, the rest is for training and measuring",
    ]
    each = {"vision": speed.vision_step, "transformer": speed.transformer_step}
    expected = other + sum(steps[name] * each[name] for name in each) / (VISION_SHARE + TRANSFORMER_SHARE)
    if expected > (1 + OTHER_SHARE) * seconds:
        reasons.append(
            f"this takes about {expected / 60:.2g} minutes, longer than the budget: every picture is read, and fewer than {LEAST_STEPS} "
            "steps teach nothing"
        )
    return found, reasons
