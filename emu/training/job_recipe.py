"""What a job's recipe says: its stages, each with its options in the order of the recipe, and what they refer to.

    plan: {class_path: my_module.MyPlan, init_args: {source: "${data.source}"}}     optional: numbers that are chosen from the data
    data: {source: null}                                                           parameters of the job: --data.source FOLDER
    stages:
    - {name: text, command: fit-text, options: {source: captions.txt, size: 400}}
    - {name: vision, command: fit-tokenizer, config: vision-tokenizer, options: {trainer: {max_steps: 100}}}
    - {name: joined, command: join, options: {text: "${folders.text}", vision: "${folders.vision}/model"}}

`${folders.text}` is the folder of that stage and `${plan.steps}` a value of the plan; other interpolations of a stage are its own. On the
command line `--vision.trainer.max_steps 50` sets an option of a stage, `--data.source FOLDER` a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.configuration.problems import Problem, raise_problems
from emu.configuration.resolving import MARK, Resolved, resolve
from emu.configuration.written import COMMAND_LINE, KeyPath, Written, dotted
from emu.model import EmuConfig
from emu.recipes import resolve_config
from emu.training.words import CONFIG_OPTIONS, as_list, read_value, split_option, split_words
from emu_tokenizers import VisionTokenizerConfig

TRAINED = ("fit", "fit-tokenizer")
"""Commands whose options are a recipe of their own."""
NAME = re.compile(r"[a-z][a-z0-9_-]*")
STAGE_KEYS = {"name", "command", "config", "options"}
OWN_KEYS = ("stages", "plan", "trainer", "overwrite", "ckpt_path", "seed_everything")
"""Keys of a job that no stage may be called after; the last four are those of every run."""
FOLDER = ("trainer", "default_root_dir")
DECIDED = (FOLDER, ("export",), ("ckpt_path",), ("overwrite",))
"""What the job sets in each stage that trains."""


@dataclass
class StageRecipe:
    """A stage as it is written.

    Attributes:
        name: part of its folder's name.
        command: what it does, a name of `emu.training.stages.STAGES`, one of `TRAINED`, or a class path.
        written: its options.
        folder: where it works, in the job's.
        below: (option, value) of what the command line sets in a table that only the plan will name.
    """

    name: str
    command: str
    written: Written
    folder: str = ""
    below: list[tuple[str, Any]] = field(default_factory=list)

    def set(self, option: str, value: Any) -> str | None:
        """Set an option as the command line does; returns what is wrong with it, if anything."""
        path = self.written.set(option, value)
        self.written.files = self.written.tree
        node, known = _reached(self.written.tree, path)
        if known == len(path):
            return None
        if isinstance(node, str) and MARK in node:
            self.below.append((option, value))
            return None
        return f"{dotted(path[:known])} is {node!r}, in which {dotted(path[known:])} cannot be set; set all of it"

    def with_values(self, names: Mapping[str, Any], *, environment: bool = True) -> tuple[Written, list[Problem]]:
        """Its options with values for what refers to `names` ("folders", "plan"), and a problem for each that cannot be resolved.

        Args:
            names: tables by name.
            environment: whether what comes out of the environment is put in as well; what is secret must not reach the disk.
        """
        tree = {**self.written.tree, **names}
        found = resolve(Written(tree, tree))
        marks = [MARK + name + "." for name in names]
        # Interpolations that stay within a stage that trains are resolved with the rest of its recipe.
        ours = {
            path: text
            for path, text in found.written.items()
            if path[0] in self.written.tree and (self.command not in TRAINED or any(mark in text for mark in marks))
        }
        problems = [self._problem(Problem(found.problems[path], path)) for path in ours if path in found.problems]
        hidden = set() if environment else found.environment
        values = {path: found.values[path] for path in ours if path in found.values and path not in hidden}
        changed = Resolved(found.config).put_back(self.written.tree, values)
        filled = StageRecipe(self.name, self.command, Written(changed, changed, dict(self.written.places)), self.folder)
        wrong = [filled.set(option, value) for option, value in self.below]
        problems += [filled._problem(Problem(f"{COMMAND_LINE}: {text}")) for text in wrong if text]
        if not self.below or filled.below:
            return filled.written, problems
        written, more = filled.with_values(names, environment=environment)  # what was set may refer to values too
        return written, problems + more

    def named(self, problems: Sequence[Problem | str]) -> list[Problem]:
        """Problems of this stage's options, with the place of the key that each is about and the stage's name."""
        return [self._problem(Problem(one) if isinstance(one, str) else one) for one in problems]

    def _problem(self, problem: Problem) -> Problem:
        place = self.written.place(problem.path) if problem.path else None
        return Problem(f"stage {self.name}: " + (f"{place}: " if place else "") + problem.text, ())


@dataclass
class JobRecipe:
    """A job as it is written.

    Attributes:
        name: of the run's folder where nothing else is said.
        written: everything but the options of stages that the command line sets.
        stages: in order.
        problems: with the recipe itself.
        printing: whether the stages are to be printed rather than run.
    """

    name: str
    written: Written
    stages: list[StageRecipe] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    printing: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything but the stages, with values for interpolations."""
        tree = {name: value for name, value in self.written.tree.items() if name != "stages"}
        found = resolve(Written(tree, tree, self.written.places))
        raise_problems([Problem(text, path) for path, text in found.problems.items()], self.written)
        return found.of(tree)


def read_job(arguments: Sequence[str]) -> JobRecipe | None:
    """The job that a command line of `emu fit` is about; None where it is about a single run.

    Raises:
        FileNotFoundError, ValueError: a recipe is missing or cannot be read.
    """
    listed = next((value for value in _config_values(arguments) if "," in value and not Path(value).is_file()), None)
    if listed is not None:
        return _listed_job(listed, arguments)
    words = split_words(arguments)
    files = Written()
    for file in words.files:
        files.add_file(file)
    if "stages" not in files.tree:
        return None
    job = JobRecipe(words.run_name, files)
    stages = files.tree["stages"]
    for number, table in enumerate(stages if isinstance(stages, list) else []):
        _add_stage(job, number, table)
    if not job.stages and not job.problems:
        job.problems.append(Problem("stages is not a list of tables; expected name, command and options of each"))
    _set_options(job, words.options, words.stray)
    return job


def _config_values(arguments: Sequence[str]) -> list[str]:
    found = [word.partition("=")[2] for word in arguments if word.partition("=")[0] in CONFIG_OPTIONS and "=" in word]
    return found + [after for word, after in zip(arguments, arguments[1:], strict=False) if word in CONFIG_OPTIONS]


def _listed_job(listed: str, arguments: Sequence[str]) -> JobRecipe:
    """`--config a,b,c`: a job of these recipes, a stage each."""
    if len(_config_values(arguments)) > 1:
        raise ValueError(
            f"--config {listed} names the stages of a job, and there is another --config; write a recipe with stages"
        )
    others = [word for word in arguments if word != listed and word.partition("=")[0] not in CONFIG_OPTIONS]
    words = split_words(others)
    files = [resolve_config(value) for value in listed.split(",")]
    job = JobRecipe("+".join(file.stem for file in files), Written())
    for file in files:
        written = Written()
        written.add_file(file)
        _append(job, StageRecipe(file.stem, _command_of(written.tree), written), None)
    _set_options(job, words.options, words.stray)
    return job


def _command_of(tree: Mapping[str, Any]) -> str:
    """Which command a recipe is for, by what its model's configuration is made of."""
    config = (tree.get("model") or {}).get("config") or {}
    if isinstance(config, str):
        return "fit-tokenizer"  # the name of a preset
    of_vision = {key for key in config if hasattr(VisionTokenizerConfig, key) and not hasattr(EmuConfig, key)}
    return "fit-tokenizer" if of_vision else "fit"


def _add_stage(job: JobRecipe, number: int, table: Any) -> None:
    path: KeyPath = ("stages", number)
    if not isinstance(table, dict) or set(table) - STAGE_KEYS or not {"name", "command"} <= set(table):
        text = f"stages[{number}] is {table!r}; expected a table of name, command and, if needed, config and options"
        job.problems.append(Problem(text, path))
        return
    written = Written()
    name, command, options = str(table["name"]), str(table["command"]), table.get("options") or {}
    if not isinstance(options, dict):
        job.problems.append(Problem(f"options of stage {name} is {options!r}; expected keys with values", path))
        return
    if "config" in table and command not in TRAINED:
        job.problems.append(Problem(f"stage {name} has a config; a stage {command} takes options alone", path))
    for value in as_list(table.get("config")) if command in TRAINED else []:
        try:
            written.add_file(resolve_config(str(value)))
        except (FileNotFoundError, ValueError) as error:
            job.problems.append(Problem(str(error), (*path, "config")))
    start = (*path, "options")
    places = {key[3:]: place for key, place in job.written.places.items() if key[:3] == start and len(key) > 3}
    written.add(options, places)
    for key in DECIDED if command in TRAINED else ():
        if key in places:
            job.problems.append(
                Problem(f"stage {name}: {'.'.join(key)} is set by the job; leave it out", (*start, *key))
            )
    _append(job, StageRecipe(name, command, written), path)


def _append(job: JobRecipe, stage: StageRecipe, path: KeyPath | None) -> None:
    if not NAME.fullmatch(stage.name):
        text = f"stage {stage.name!r} cannot be a folder's name; expected small letters, digits, - and _"
        job.problems.append(Problem(text, path))
    taken = stage.name in OWN_KEYS or stage.name in job.written.tree
    if taken or stage.name in {other.name for other in job.stages}:
        why = "is a key of the job" if taken else "occurs twice"
        job.problems.append(Problem(f"stage name {stage.name!r} {why}; choose another", path))
    stage.folder = f"{len(job.stages) + 1}-{stage.name}"
    job.stages.append(stage)


def _set_options(job: JobRecipe, options: Sequence[str], stray: Sequence[str]) -> None:
    """Set what the command line says: options of stages by the stage's name, parameters of the job."""
    stages = {stage.name: stage for stage in job.stages}
    for word in stray:
        job.problems.append(Problem(f"{word!r} belongs to no option; a recipe is named by --config {word}", ()))
    for option in options:
        key, text = split_option(option)
        name, _, rest = key.partition(".")
        if key in ("print_config", "help", "-h"):
            job.printing = True
        elif name in stages and tuple(rest.split(".")) in DECIDED and stages[name].command in TRAINED:
            job.problems.append(Problem(f"--{key} is set by the job; leave it out", ()))
        elif name in stages and rest and text is not None:
            wrong = stages[name].set(rest, read_value(text))
            if wrong:
                job.problems.append(Problem(f"{COMMAND_LINE}: stage {name}: {wrong}", ()))
        elif text is not None and _is_parameter(job.written.tree, key):
            job.written.set(key, read_value(text))
        else:
            known = ", ".join([f"--{name}.OPTION" for name in stages])
            text = f"--{key} is an option of neither the job nor a stage; options of stages are {known}"
            job.problems.append(Problem(f"{COMMAND_LINE}: {text}", ()))


def _reached(node: Any, path: KeyPath) -> tuple[Any, int]:
    """The last value on a path that a tree has, and how many keys lead to it."""
    for number, key in enumerate(path):
        if not isinstance(node, dict) or key not in node:
            return node, number
        node = node[key]
    return node, len(path)


def _is_parameter(tree: Mapping[str, Any], key: str) -> bool:
    """Whether a job has this parameter: those of every run, and what its recipe writes."""
    path = tuple(key.split("."))
    if path == FOLDER or path in (("ckpt_path",), ("overwrite",)):
        return True
    node: Any = tree
    for part in path:
        if isinstance(node, dict) and "init_args" in node and part not in node:
            node = node["init_args"]
        if not isinstance(node, dict) or part not in node or path[0] == "stages":
            return False
        node = node[part]
    return True
