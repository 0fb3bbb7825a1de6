"""What a model was trained on and what was held out, as documents: what likelihood and memorisation are measured with.

Three origins: the worlds that a model's folder names, token shards that the user names, and the data of a bundled model. An extension adds
data of its own to the table with `EXAMPLES.register(name, make)`; `emu evaluate MODEL --examples name` takes it from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from emu.checkpoints.bundled import find_model_folder, is_bundled
from emu.data.shards import TokenShards
from emu.documents import CodeSegment, TextSegment, TokenDocument
from emu.evaluation.suites.base import Unsuited
from emu.evaluation.suites.worlds import NoWorlds, trained_worlds
from emu.multimodal_tokenizer import MultimodalTokenizer
from emu.trained import infill_task, task_name
from emu.worlds import HELD_OUT as HELD_OUT_SPLIT
from emu.worlds import TRAIN as TRAIN_SPLIT
from emu.worlds.scene_documents import WorldDocuments
from emu_tokenizers.registry import Registry

TRAINED, HELD_OUT = "train", "held_out"
PARTS = (TRAINED, HELD_OUT)


class TrainingExamples(Protocol):
    """Documents of a model's training data and of the same kind that it never saw.

    Attributes:
        tasks: what the documents are about, e.g. "text_to_image", or "one/text-to-image" of a world.
    """

    @property
    def tasks(self) -> Sequence[str]: ...

    def documents(self, task: str, part: str, limit: int | None = None) -> list[TokenDocument]:
        """The documents of a task, of part "train" or "held_out"; what they ask for weighs most in them.

        Args:
            task: one of `tasks`.
            part: "train" or "held_out".
            limit: how many at most; None for all that there are.
        """
        ...


@runtime_checkable
class Grading(Protocol):
    """Examples that can tell whether a picture shows what its caption says."""

    def grade(self, captions: Sequence[str], pixels: np.ndarray) -> np.ndarray:
        """(n,) bool for uint8 pictures (n, H, W, 3)."""
        ...


EXAMPLES: Registry[Callable[[MultimodalTokenizer], TrainingExamples]] = Registry("examples")
"""Data by name: (tokenizer of the model) -> examples. Names of bundled models are those of their own data."""


class WorldExamples:
    """Scenes of worlds, drawn anew: training and held-out ones follow one law.

    Args:
        worlds: how scenes are written, by name.
        seed: of the scenes.
        endless: how many documents of a task there are where no limit is given.
    """

    def __init__(self, worlds: Mapping[str, WorldDocuments], seed: int = 0, endless: int = 5000) -> None:
        self.worlds, self.seed, self.endless = worlds, seed, endless

    @property
    def tasks(self) -> list[str]:
        """ "world/task" of all tasks that the model was trained on."""
        return [f"{name}/{task}" for name, some in self.worlds.items() for task in some.tasks]

    def documents(self, task: str, part: str, limit: int | None = None) -> list[TokenDocument]:
        """See `TrainingExamples`."""
        name, _, asked = task.partition("/")
        split = TRAIN_SPLIT if part == TRAINED else HELD_OUT_SPLIT
        some = self.worlds[name]
        return some.documents(asked, some.world.draw(self.seed, limit or self.endless, split))


class ShardExamples:
    """Documents of token shards.

    Args:
        folders: of the shards of each part.
        tokenizer: of the model.

    Raises:
        FileNotFoundError, ValueError: a folder is missing or damaged, or another tokenizer made it.
    """

    def __init__(self, folders: Mapping[str, Sequence[Path]], tokenizer: MultimodalTokenizer) -> None:
        self.layout = tokenizer.layout
        self.shards = {part: [TokenShards(folder) for folder in folders.get(part, ())] for part in PARTS}
        for shards in (one for some in self.shards.values() for one in some):
            ours = {name: tokenizer.fingerprints.get(name) for name in shards.fingerprints}
            if ours != shards.fingerprints:
                raise ValueError(
                    f"{shards.folder} was written with tokenizers {shards.fingerprints}, the model has {ours}; tokenize the data with the "
                    "model's own tokenizers"
                )
        self._found: dict[tuple[str, str], list[TokenDocument]] = {}

    @property
    def tasks(self) -> list[str]:
        """Tasks of the documents, in order of first appearance in the held-out ones, then in the others."""
        return list(dict.fromkeys(task for part in (HELD_OUT, TRAINED) for task, _ in self._read(part)))

    def _read(self, part: str) -> Iterator[tuple[str, TokenDocument]]:
        for shards in self.shards[part]:
            for index in range(len(shards)):
                document = shards.document(index, 0)
                yield asked_task(self.layout.parse(document.ids)), document

    def documents(self, task: str, part: str, limit: int | None = None) -> list[TokenDocument]:
        """See `TrainingExamples`; with a limit evenly spread ones, since neighbours in shards are often alike."""
        if (task, part) not in self._found:
            for found, document in self._read(part):
                self._found.setdefault((found, part), []).append(document)
        every = self._found.get((task, part), [])
        if limit is None or limit >= len(every):
            return list(every)
        return [every[place * len(every) // limit] for place in range(limit)]


def asked_task(segments: Sequence[TextSegment | CodeSegment]) -> str:
    """The task of a document: its last segment given those before it."""
    kinds = ["text" if isinstance(segment, TextSegment) else segment.modality for segment in segments]
    last = segments[-1]
    if isinstance(last, CodeSegment) and last.hidden is not None:
        return infill_task(last.modality)
    return task_name(kinds[:-1], kinds[-1])


def add_example_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where examples come from."""
    parser.add_argument(
        "--examples", metavar="NAME", help=f"data that the model was trained on: {', '.join(EXAMPLES) or 'none'}"
    )
    for part in PARTS:
        flag, what = "--" + part.replace("_", "-"), "trained on" if part == TRAINED else "held out"
        parser.add_argument(
            flag,
            nargs="+",
            type=Path,
            metavar="SHARDS",
            help=f"folders of token shards that were {what}, in place of --examples",
        )


def find_examples(
    request: argparse.Namespace, tokenizer: MultimodalTokenizer, needed: Sequence[str]
) -> TrainingExamples:
    """The examples of a model: named ones, else its worlds, else those of the bundled model of this name.

    Args:
        request: with `model` and the options of `add_example_options`.
        tokenizer: of the model.
        needed: parts that the suite reads.

    Raises:
        Unsuited: nothing is known of what the model was trained on.
        FileNotFoundError, ValueError: what is named cannot be used.
    """
    folders = {part: getattr(request, part) for part in PARTS if getattr(request, part)}
    if folders and request.examples:
        raise ValueError("--examples and shards were both given; name the data once")
    if folders:
        missing = ["--" + part.replace("_", "-") for part in needed if part not in folders]
        if missing:
            raise Unsuited(f"{' and '.join(missing)} is not given; this suite compares with such shards")
        return ShardExamples(folders, tokenizer)
    if request.examples:
        return EXAMPLES.find(request.examples)(tokenizer)
    if is_bundled(request.model) and request.model in EXAMPLES:
        return EXAMPLES[request.model](tokenizer)
    try:
        return WorldExamples(trained_worlds(find_model_folder(request.model), tokenizer))
    except NoWorlds as error:
        raise Unsuited(
            f"nothing is known of what {request.model} was trained on; name token shards with --train and --held-out, or data with "
            f"--examples ({', '.join(EXAMPLES)})"
        ) from error
