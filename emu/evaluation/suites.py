"""What `emu evaluate` measures: calibration, skills of pictures, skills of clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emu.evaluation.calibration import (
    AttributeTest,
    TaskScore,
    TooFewAnswers,
    attribute_problems,
    check_company,
    measure_attributes,
    score_task,
)
from emu.evaluation.models import CodeEngine, ModelSample, ModelScore
from emu.evaluation.skills import SHAPES_SKILLS, VIDEO_SKILLS, Skill, detection_iou, guidance_sweep, measure_skill
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.worlds import COMBINATIONS, HELD_OUT, ShapesWorld, suite
from emu.worlds.scene_documents import WorldDocuments
from emu.worlds.training_data import WORLDS_FILE
from emu_tokenizers.files import read_json

ATTRIBUTES = (
    ("one", "text-to-image", ("place", "size"), ("plain",)),
    ("two", "text-to-image", ("place",), ("plain",)),
    ("moving", "text-to-video", ("start", "turns"), None),
    ("moving", "continuation", ("turns",), None),
    ("one", "image-to-text", ("template",), None),
    ("two", "image-to-text", ("template",), None),
)
"""(world, task, attributes, kinds of captions) whose odds are tested."""
MIN_SAMPLES = 200
SWEEP = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How much to measure.

    Attributes:
        documents: scored per task.
        samples: drawn per test and skill.
        guidance_scale: of the skills.
        seed: of documents, prompts and samples.
    """

    documents: int = 500
    samples: int = 2000
    guidance_scale: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError where the numbers are too small to say anything; the message says how many are needed."""
        for name, given, needed in (("documents", self.documents, 30), ("samples", self.samples, MIN_SAMPLES)):
            if given < needed:
                raise ValueError(f"{given} {name} are too few for an interval or a test; {needed} are needed")
        if not self.guidance_scale >= 0:
            raise ValueError(f"guidance scale {self.guidance_scale}; expected 0 or more")


def trained_worlds(folder: Path, tokenizer: MultimodalTokenizer) -> dict[str, WorldDocuments]:
    """The worlds that a model's folder says it was trained on.

    Raises:
        FileNotFoundError: the folder names none.
        ValueError: it names worlds that this version of the library does not make, or whose scenes the tokenizer does not keep apart.
    """
    file = folder / WORLDS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {WORLDS_FILE}: this model was not trained on worlds with known answers; "
            "train one with emu fit --config shapes"
        )
    table = read_json(file)
    missing = [name for name in ("unseen_kinds", "worlds", "size", "tasks") if name not in table]
    if missing:
        raise ValueError(f"{file} lacks {missing}; export the model again")
    worlds = suite(bool(table["unseen_kinds"]))
    for name, trained in table["worlds"].items():
        ours = worlds[name].fingerprint() if name in worlds else None
        if ours != trained:
            raise ValueError(
                f"the model in {folder} was trained on the world {name!r} of fingerprint {trained}, this library makes {ours}; their "
                "probabilities differ, so its bits mean nothing here"
            )
    documents = {
        name: WorldDocuments(worlds[name], tokenizer, int(table["size"]), table["tasks"][name])
        for name in table["worlds"]
    }
    for some in documents.values():
        some.check_distinct()
    return documents


def calibration(
    model: EmuForCausalLM, engine: CodeEngine, documents: Mapping[str, WorldDocuments], options: Options, tell: Tell
) -> dict[str, Any]:
    """Excess bits of every task on held-out scenes and combinations, and the odds of what prompts leave free.

    Raises:
        ValueError: too few samples for a test, before any work; the message lists every test and what it needs.
    """
    check_calibration(documents, options)
    scores: list[TaskScore] = []
    for some in documents.values():
        score = ModelScore(model, some)
        splits = [HELD_OUT, *([COMBINATIONS] if some.world.held_out.any() else [])]
        check_company(some.tasks[0], score, some.world.draw(options.seed, 8, HELD_OUT))
        for task in some.tasks:
            for split in splits:
                scores.append(score_task(some.world, task, score, options.documents, seed=options.seed, split=split))
                tell(describe_score(scores[-1]))
    tests: list[dict[str, Any]] = []
    for name, task, attributes, rules in ATTRIBUTES:
        if not _knows(documents, name, task):
            continue
        world = documents[name].world
        for scale in (1.0, 3.0) if task == "text-to-image" else (1.0,):
            sample = ModelSample(engine, documents[name], scale)
            try:
                found = measure_attributes(
                    world, task, sample, attributes, options.samples, seed=options.seed, rules=rules
                )
            except TooFewAnswers as problem:
                tell(f"{world.name} {task} at guidance {scale:g}: not tested, {problem}")
                continue
            for test in found:
                tests.append({**plain(test), "guidance_scale": scale})
                tell(describe_test(test, scale))
    return {"scores": [plain(score) for score in scores], "tests": tests}


def check_calibration(documents: Mapping[str, WorldDocuments], options: Options) -> None:
    """Raise ValueError where there are too few samples for one of the tests of `calibration`; the message lists them all."""
    problems: list[str] = []
    for name, task, attributes, rules in ATTRIBUTES:
        if _knows(documents, name, task):
            problems += attribute_problems(
                documents[name].world, task, attributes, options.samples, seed=options.seed, rules=rules
            )
    if problems:
        raise ValueError("give more with --samples:" + "".join(f"\n  - {problem}" for problem in problems))


def shapes(
    model: EmuForCausalLM, engine: CodeEngine, documents: Mapping[str, WorldDocuments], options: Options, tell: Tell
) -> dict[str, Any]:
    """Skills of pictures, boxes of pictures, and accuracy against diversity over guidance scales."""
    found: dict[str, Any] = {"skills": _skills(SHAPES_SKILLS, engine, documents, options, tell)}
    found["iou"] = {}
    for name in ("one", "two"):
        if not _knows(documents, name, "image-to-boxes"):
            continue
        world = documents[name].world
        assert isinstance(world, ShapesWorld)
        overlap = detection_iou(world, ModelSample(engine, documents[name]), options.samples, options.seed)
        found["iou"][name] = plain(overlap)
        tell(f"picture to boxes, {name} object(s): IoU {overlap}")
    points = []
    if _knows(documents, "one", "text-to-image"):
        world = documents["one"].world
        assert isinstance(world, ShapesWorld)
        points = guidance_sweep(world, ModelSample(engine, documents["one"]), SWEEP, options.samples, options.seed)
        for point in points:
            tell(f"guidance {point.guidance_scale:g}: accuracy {point.accuracy}, diversity {point.diversity:.3f}")
    return {**found, "sweep": [plain(point) for point in points]}


def video(
    model: EmuForCausalLM, engine: CodeEngine, documents: Mapping[str, WorldDocuments], options: Options, tell: Tell
) -> dict[str, Any]:
    """Skills of clips."""
    return {"skills": _skills(VIDEO_SKILLS, engine, documents, options, tell)}


SUITES = {"calibration": calibration, "shapes": shapes, "video": video}


def _knows(documents: Mapping[str, WorldDocuments], world: str, task: str) -> bool:
    """Whether the model was trained on a task."""
    return world in documents and task in documents[world].tasks


def _skills(
    skills: Sequence[Skill], engine: CodeEngine, documents: Mapping[str, WorldDocuments], options: Options, tell: Tell
) -> dict[str, Any]:
    found = {}
    for skill in skills:
        if not _knows(documents, skill.world, "text-to-video" if skill.world == "moving" else "text-to-image"):
            continue
        some = documents[skill.world]
        if skill.split == COMBINATIONS and not some.world.held_out.any():
            continue
        share = measure_skill(
            skill, some.world, ModelSample(engine, some, options.guidance_scale), options.samples, options.seed
        )
        found[skill.name] = plain(share)
        tell(f"{skill.name}: {share}")
    return found


def plain(value: Any) -> Any:
    """A result as JSON types."""
    if isinstance(value, TaskScore):
        return {
            **asdict(value),
            "relative": value.relative if value.floor > 1e-9 else None,
            "impossible": value.impossible,
        }
    return asdict(value)


def describe_score(score: TaskScore) -> str:
    """A task's score in a line."""
    share = f" ({score.relative:+.1%})" if score.floor > 1e-9 else ""
    note = "  IMPOSSIBLE: below the floor, the model sees its answer" if score.impossible else ""
    bits = f"floor {score.floor:.3f}, model {score.model.value:.3f}, excess {score.excess}{share}"
    return f"{score.world} {score.task} [{score.split}]: {bits}{note}"


def describe_test(test: AttributeTest, guidance_scale: float) -> str:
    """A test's result in a line."""
    return (
        f"{test.world} {test.task} at guidance {guidance_scale:g}, {test.attribute}: {test.test}, possible answers {test.legal} "
        f"({test.test.count} counted)"
    )
