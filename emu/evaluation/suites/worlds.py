"""What the suites of worlds share: their options, and a model with the worlds that it was trained on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.checkpoints.bundled import find_model_folder
from emu.evaluation.measures import Measure
from emu.evaluation.models import ModelSample
from emu.evaluation.skills import Skill, measure_skill
from emu.evaluation.suites.base import Log, Report, Unsuited
from emu.generation import Engine
from emu.model import EmuForCausalLM
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.pipeline import Emu
from emu.worlds import COMBINATIONS, worlds_of
from emu.worlds.scene_documents import WorldDocuments
from emu.worlds.training_data import WORLDS_FILE
from emu_tokenizers.files import read_json

MIN_DOCUMENTS, MIN_SAMPLES = 30, 200


class NoWorlds(Unsuited, FileNotFoundError):
    """A model's folder that names no worlds."""


@dataclass(frozen=True)
class SuiteOptions:
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
        amounts = (("documents", self.documents, MIN_DOCUMENTS), ("samples", self.samples, MIN_SAMPLES))
        for name, given, needed in amounts:
            if given < needed:
                raise ValueError(f"{given} {name} are too few for an interval or a test; {needed} are needed")
        if not self.guidance_scale >= 0:
            raise ValueError(f"guidance scale is {self.guidance_scale}; expected 0 or more")


@dataclass(frozen=True)
class WorldModel:
    """A model and what its answers are compared with.

    Attributes:
        model: the transformer.
        engine: over the model.
        documents: by world, how its scenes are written and which tasks the model was trained on.
        options: how much to measure.
    """

    model: EmuForCausalLM
    engine: Engine
    documents: Mapping[str, WorldDocuments]
    options: SuiteOptions

    def knows(self, world: str, task: str) -> bool:
        """Whether the model was trained on a task."""
        return world in self.documents and task in self.documents[world].tasks


class WorldSuite:
    """A suite of models that were trained on worlds with known answers."""

    summary = ""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """See `Suite`."""
        for name, kind, what in (
            ("documents", int, "documents scored per task"),
            ("samples", int, "samples per test and skill"),
            ("guidance_scale", float, "of the skills"),
            ("seed", int, "of documents, prompts and samples"),
        ):
            flag = "--" + name.replace("_", "-")
            default = getattr(SuiteOptions, name)
            parser.add_argument(flag, type=kind, default=default, help=f"{what} (default: %(default)s)")

    def prepare(self, request: argparse.Namespace) -> WorldModel:
        """Read the model and its worlds; raises as `SuiteOptions.check` and `trained_worlds` do."""
        options = SuiteOptions(request.documents, request.samples, request.guidance_scale, request.seed)
        options.check()
        emu = Emu.from_pretrained(request.model)
        documents = trained_worlds(find_model_folder(request.model), emu.tokenizer, request.model)
        return WorldModel(emu.model, Engine(emu.model, emu.tokenizer.layout), documents, options)

    def run(self, subject: WorldModel, log: Log) -> Report:
        """See `Suite`."""
        raise NotImplementedError(f"{type(self).__name__} says nothing about what it measures; write its run()")


def measure_skills(skills: Sequence[Skill], subject: WorldModel, log: Log) -> dict[str, Measure]:
    """Shares of right answers by name of the skill; of those that the model was trained for and its worlds can ask about."""
    options = subject.options
    found: dict[str, Measure] = {}
    for skill in skills:
        if not subject.knows(skill.world, "text-to-video" if skill.world == "moving" else "text-to-image"):
            continue
        some = subject.documents[skill.world]
        if skill.split == COMBINATIONS and not some.world.held_out.any():
            continue
        sample = ModelSample(subject.engine, some, options.guidance_scale)
        found[skill.name] = measure_skill(skill, some.world, sample, options.samples, options.seed)
        log(f"{skill.name}: {found[skill.name]}")
    return found


def trained_worlds(folder: Path, tokenizer: MultimodalTokenizer, called: str = "") -> dict[str, WorldDocuments]:
    """The worlds that a model's folder says it was trained on.

    Args:
        folder: of the model.
        tokenizer: of the model.
        called: what messages call the model, its folder by default.

    Raises:
        NoWorlds: the folder names none.
        ValueError: it names worlds that this version of the library does not make, or whose scenes the tokenizer does not keep apart.
    """
    file = folder / WORLDS_FILE
    if not file.is_file():
        raise NoWorlds(
            f"{called or folder} holds no {WORLDS_FILE}: this model was not trained on worlds with known answers; "
            "train one with emu fit --config shapes, or measure this one with --suite likelihood,memorisation "
            "--train SHARDS --held-out SHARDS"
        )
    table = read_json(file)
    missing = [name for name in ("unseen_kinds", "worlds", "size", "tasks") if name not in table]
    if missing:
        raise ValueError(f"{file} lacks {missing}; export the model again")
    worlds = worlds_of(table["worlds"], bool(table["unseen_kinds"]))
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
