"""A job: stages run one after another, each in a folder of its own, from raw files to a model.

    RUN/job.json        the stages with all their options, and which of them are finished
    RUN/plan.json       numbers chosen from the data, where the recipe has a plan
    RUN/1-text/ ...     a folder for each stage
    RUN/model/          the result, written by the last stage that trains

    emu fit --config my_job.yaml --trainer.default_root_dir RUN
    emu fit --config vision-tokenizer,digits                       # a job of these recipes

The same command goes on with a job that was stopped or killed, at the stage and step where it was; the result is that of an undisturbed
job, byte for byte. It is refused where something of the job has changed. See `emu.training.job_recipe` for what a recipe says.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from emu.configuration import import_object, load_extensions
from emu.configuration.problems import Problem, raise_problems
from emu.configuration.written import Written
from emu.model_settings import SETTINGS_FILE
from emu.stopping import Stopped, say
from emu.training.checkpoints import list_checkpoints
from emu.training.cli import EmuCLI
from emu.training.job_recipe import TRAINED, JobRecipe, StageRecipe
from emu.training.module import EmuModule
from emu.training.module_class import build_apart
from emu.training.preflight import early_problems
from emu.training.stages import STAGES, JobStage
from emu_tokenizers.files import PARTIAL, holding, read_json, write_json
from emu_tokenizers.training.tokenizer_module import TokenizerModule

JOB_FILE, PLAN_FILE, MODEL_FOLDER = "job.json", "plan.json", "model"
FORMAT_VERSION = 1
MODULES = {"fit": EmuModule, "fit-tokenizer": TokenizerModule}
ANYWHERE = "RUN"
"""Stands for the job's folder in what is recorded, so that the folder may move."""
LEFT_OVER = ("*.partial-*", "*.replaced-*", f"*{PARTIAL}")
"""Names of files and folders that were being written when a process was killed."""
SHOWN = ("trainer.enable_progress_bar",)
"""Options that change nothing of what is made."""


class JobPlan(Protocol):
    """Chooses numbers from the data; a recipe names its class in `plan`."""

    def make(self) -> tuple[dict[str, Any], list[str]]:
        """Look at the data and the machine, once.

        Returns:
            Values by name, which stages refer to as `${plan.NAME}`, and sentences that say why they are so.
        """
        ...


class CheckCLI(EmuCLI):
    """Looks at the configuration of a stage whose inputs may not be there yet, and builds nothing that reads them.

    Attributes:
        found: problems.
    """

    found: Sequence[Problem | str] = ()

    def instantiate_classes(self) -> None:
        """Build what can be built without the data."""
        parts, found = build_apart(self.parser, self.config)
        found = [problem for problem in found if problem.path != ("data",)]
        self.found = [*self.parsed.problems, *found, *early_problems(self.config.trainer, parts.get("model"), None)]


class Job:
    """A job in its folder.

    Args:
        recipe: what it does.

    Attributes:
        folder: of the run.

    Raises:
        ValueError: the recipe is wrong in itself.
    """

    def __init__(self, recipe: JobRecipe) -> None:
        raise_problems(recipe.problems, recipe.written)
        self.recipe, parameters = recipe, recipe.parameters
        trainer = parameters.get("trainer") or {}
        self.folder = Path(trainer.get("default_root_dir") or Path("runs") / recipe.name)
        self._overwrite = bool(parameters.get("overwrite"))
        self._planned = parameters.get("plan")
        trained = [stage.folder for stage in recipe.stages if stage.command in TRAINED]
        self._last = trained[-1] if trained else None

    def run(self) -> int:
        """Do what is not done yet.

        Returns:
            0, or 1 where a stage found bad input and left it out.

        Raises:
            ValueError, FileNotFoundError: the job cannot work, is not the one of this folder, or another process works there.
            Stopped: Ctrl-C or SIGTERM, after saving.
        """
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError("a job runs in one process; start its stages one by one for several")
        load_extensions()
        with holding(self.folder, "emu fit"):
            if self._overwrite:
                self._clear()
            self._sweep()
            stages = self._checked(self._plan())
            codes = self._begin(stages)
            for stage, options in stages[len(codes) :]:
                say(f"stage {stage.folder} ({stage.command})")
                codes.append(self._run(stage, options))
                self._note(stages, codes)
        return max(codes, default=0)

    def _sweep(self) -> None:
        """Remove what a killed job left half-written; whatever needs it is made again."""
        for pattern in LEFT_OVER:
            for path in [*self.folder.glob(pattern), *self.folder.glob(f"*/{pattern}")]:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove what an earlier job wrote here."""
        if not (self.folder / JOB_FILE).is_file() and not (self.folder / PLAN_FILE).is_file():
            return
        table = read_json(self.folder / JOB_FILE) if (self.folder / JOB_FILE).is_file() else {"stages": []}
        # Only what is called as a stage's folder: job.json is a file like others, and must not name what lies elsewhere.
        names = [entry["folder"] for entry in table["stages"] if re.fullmatch(r"\d+-[\w-]+", entry["folder"])]
        for name in (*names, MODEL_FOLDER):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for file in (JOB_FILE, PLAN_FILE):
            (self.folder / file).unlink(missing_ok=True)

    def _plan(self) -> dict[str, Any]:
        """Values of the plan, made once; {} without one."""
        if self._planned is None:
            return {}
        raise_problems(_problems_of_class(self._planned, "plan"), self.recipe.written)
        plan = import_object(self._planned["class_path"])(**self._planned.get("init_args", {}))
        file = self.folder / PLAN_FILE
        if not file.is_file():
            values, reasons = plan.make()
            table = {"format_version": FORMAT_VERSION, "made_from": self._planned, "values": values, "reasons": reasons}
            write_json(file, table)
        table = read_json(file)
        raise_problems(_changed({"plan": table["made_from"]}, {"plan": self._planned}, "this folder's plan.json"))
        for line in table["reasons"]:
            say(f"plan: {line}")
        return table["values"]

    def _checked(self, plan: Mapping[str, Any]) -> list[tuple[StageRecipe, Written]]:
        """The stages with values in their options, all of them looked at; what is wrong is told at once."""
        names = self._names(self.folder, plan)
        stages, problems = [], list[Problem]()
        for stage in self.recipe.stages:
            options, found = stage.with_values(names)
            problems += found or stage.named(self._problems(stage, options))
            stages.append((stage, options))
        raise_problems(problems)
        return stages

    def _names(self, folder: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
        folders = {stage.name: str(folder / stage.folder) for stage in self.recipe.stages}
        return {"folders": {**folders, "run": str(folder)}, "plan": dict(plan)}

    def _problems(self, stage: StageRecipe, options: Written) -> Sequence[Problem | str]:
        if stage.command not in TRAINED:
            table = {"class_path": stage.command, "init_args": options.tree}
            return _problems_of_class(table, "command", stage.command)
        devices = (options.tree.get("trainer") or {}).get("devices")
        if isinstance(devices, int) and devices not in (0, 1):
            text = (
                f"trainer.devices is {devices}; a job runs in one process, set it to 1 or train this stage on its own"
            )
            return [Problem(text, ("trainer", "devices"))]
        try:
            recipe = Written(dict(options.files), dict(options.files), dict(options.places))
            return CheckCLI(MODULES[stage.command], self._words(stage), f"emu {stage.command}", recipe).found
        except (ValueError, FileNotFoundError) as error:
            return [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")] or [
                str(error)
            ]

    def _words(self, stage: StageRecipe) -> list[str]:
        """What the job decides in a stage that trains."""
        folder = self.folder / stage.folder
        # The result stands in the job's folder, and is named from the stage's, so that the run may move.
        export = f"../{MODEL_FOLDER}" if stage.folder == self._last else MODEL_FOLDER
        words = [f"--trainer.default_root_dir={folder}", f"--export={export}"]
        return [*words, "--ckpt_path=last"] if list_checkpoints(folder / "checkpoints") else words

    def _recorded(self, stages: Sequence[tuple[StageRecipe, Written]]) -> list[dict[str, Any]]:
        names = self._names(Path(ANYWHERE), self._values())
        entries = []
        for stage, _ in stages:
            options = yaml.safe_load(yaml.safe_dump(stage.with_values(names, environment=False)[0].tree))
            entries.append({"name": stage.name, "command": stage.command, "folder": stage.folder, "options": options})
        return entries

    def _values(self) -> dict[str, Any]:
        file = self.folder / PLAN_FILE
        return read_json(file)["values"] if file.is_file() else {}

    def _begin(self, stages: Sequence[tuple[StageRecipe, Written]]) -> list[int]:
        """Exit codes of the stages that are finished; a job that is not the one of this folder is refused."""
        file = self.folder / JOB_FILE
        if not file.is_file():
            self._note(stages, [])
            return []
        table, ours = read_json(file), self._recorded(stages)
        theirs = table["stages"]
        if [entry["folder"] for entry in theirs] != [entry["folder"] for entry in ours]:
            before, now = (", ".join(entry["folder"] for entry in entries) for entries in (theirs, ours))
            raise ValueError(
                f"{self.folder} holds a job of the stages {before}, this one has {now}; name another folder with "
                "--trainer.default_root_dir, or start anew with --overwrite true"
            )
        problems: list[Problem] = []
        for old, new in zip(theirs, ours, strict=True):
            for entry in (old, new):
                entry.pop("name")
            problems += _changed(old, new, f"stage {new['folder'].partition('-')[2]} of this folder's job")
        raise_problems(problems)
        return list(table["finished"])

    def _note(self, stages: Sequence[tuple[StageRecipe, Written]], codes: Sequence[int]) -> None:
        table = {"format_version": FORMAT_VERSION, "stages": self._recorded(stages), "finished": list(codes)}
        write_json(self.folder / JOB_FILE, table)

    def _run(self, stage: StageRecipe, options: Written) -> int:
        folder = self.folder / stage.folder
        try:
            if stage.command not in TRAINED:
                return int(_stage_class(stage.command)(**options.tree).run(folder) or 0)
            words = self._words(stage)
            if "--ckpt_path=last" not in words:
                shutil.rmtree(folder, ignore_errors=True)  # curves of steps that were never saved
            EmuCLI(MODULES[stage.command], words, f"emu {stage.command}", options).fit()
        except KeyboardInterrupt as stop:
            told = f"in stage {stage.folder}; the same command goes on"
            raise Stopped(getattr(stop, "number", 2), told) from stop
        if stage.command == "fit" and stage.folder != self._last:
            # The one folder with this file is the job's result.
            (folder / MODEL_FOLDER / SETTINGS_FILE).unlink(missing_ok=True)
        return 0


def run_job(recipe: JobRecipe) -> int:
    """Run a job, or print its stages; returns the exit code, see `Job.run`."""
    if recipe.printing:
        stages = [
            {"name": stage.name, "command": stage.command, "options": stage.written.tree} for stage in recipe.stages
        ]
        tree = {**recipe.written.tree, "stages": stages}
        print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), end="")
        return 0
    job = Job(recipe)
    code = job.run()
    print(f"{len(recipe.stages)} stages done; the result is in {job.folder / MODEL_FOLDER}")
    return code


def _stage_class(command: str) -> type[JobStage]:
    """The class of a stage; raises ValueError where there is none."""
    return import_object(command) if "." in command else STAGES.find(command)


def _problems_of_class(table: Any, what: str, command: str | None = None) -> list[Problem]:
    """What keeps a class from being made of its arguments."""
    if not isinstance(table, dict) or not isinstance(table.get("class_path"), str):
        return [Problem(f"{what} is {table!r}; expected class_path and init_args", (what,))]
    name, given = command or table["class_path"], dict(table.get("init_args") or {})
    try:
        found = import_object(name) if command is None else _stage_class(name)
    except ValueError as error:
        return [Problem(str(error), (what,))]
    known = inspect.signature(found).parameters
    problems = [
        Problem(f"{key} is not an option of {name}; it has {', '.join(known)}", (key,))
        for key in given
        if key not in known
    ]
    required = [key for key, one in known.items() if one.default is one.empty and key not in given]
    problems += [Problem(f"{key} is missing; {name} needs it", (key,)) for key in required]
    if not problems:
        try:
            found(**given)
        except (ValueError, TypeError, FileNotFoundError) as error:
            problems.append(Problem(f"{name}: {error}", (what,)))
    return problems


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], what: str) -> list[Problem]:
    """A problem for each value that differs."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        Problem(
            f"{key} is {new.get(key, 'not set')} and was {old.get(key, 'not set')} in {what}; set it back, name another folder with "
            "--trainer.default_root_dir, or start anew with --overwrite true",
            (),
        )
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not key.endswith(SHOWN)
    ]


def _leaves(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{path}.{name}".removeprefix(".").removeprefix("options.")
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, key)
        else:
            yield key, value
