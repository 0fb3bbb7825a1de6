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

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from emu.configuration import load_extensions
from emu.configuration.problems import Problem, raise_problems
from emu.configuration.written import Written
from emu.data.tokenizing.ranks import Rank
from emu.model_settings import SETTINGS_FILE
from emu.stopping import Stopped, say
from emu.training.checkpoints import list_checkpoints
from emu.training.cli import EmuCLI
from emu.training.job_checks import changed, class_problems, one_process_problems, stage_class
from emu.training.job_plan import PLAN_FILE, Planning
from emu.training.job_recipe import TRAINED, JobRecipe, StageRecipe
from emu.training.module import EmuModule
from emu.training.module_class import build_apart
from emu.training.preflight import early_problems
from emu_tokenizers.files import PARTIAL, holding, read_json, write_json
from emu_tokenizers.training.tokenizer_module import TokenizerModule

JOB_FILE, MODEL_FOLDER = "job.json", "model"
FOLDER_OPTION = "--trainer.default_root_dir"
FORMAT_VERSION = 1
MODULES = {"fit": EmuModule, "fit-tokenizer": TokenizerModule}
ANYWHERE = "RUN"
"""Stands for the job's folder in what is recorded, so that the folder may move."""
LEFT_OVER = (".partial-*", ".replaced-*", f".*{PARTIAL}")
"""What follows on a name while it is written, and stays when the process is killed."""


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
        self.recipe, parameters = recipe, recipe.parameters
        trainer = parameters.get("trainer") or {}
        self.folder = Path(trainer.get("default_root_dir") or Path("runs") / recipe.name)
        self._overwrite = bool(parameters.get("overwrite"))
        self._planning = Planning(self.folder, parameters.get("plan"), anew=self._overwrite)
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
        ranks = Rank.from_environment().size
        if ranks > 1:
            told = f"this is one of {ranks} processes, and a job runs in one; start it without torchrun or srun, or its stages one by one"
            raise ValueError(told)
        load_extensions()
        with holding(self.folder, "emu fit"):
            self._sweep()
            if self._planning.is_due:
                self._refuse(self._planning.problems(lambda values: self._looked_at(values)[1]))
            self._planning.prepare()
            stages, problems = self._looked_at(self._planning.values)
            self._refuse(problems)
            if self._overwrite:
                self._clear()
            self._planning.write()
            codes = self._begin(stages)
            self._planning.check_state(len(codes))
            for stage, options in stages[len(codes) :]:
                say(f"stage {stage.folder} ({stage.command})")
                codes.append(self._run(stage, options))
                self._note(stages, codes)
        return max(codes, default=0)

    def _sweep(self) -> None:
        """Remove what a killed job left half-written; whatever needs it is made again."""
        for name in (*self._folders, JOB_FILE, PLAN_FILE):
            for pattern in LEFT_OVER:
                for path in [*self.folder.glob(name + pattern), *self.folder.glob(f"{name}/*{pattern}")]:
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove what an earlier job wrote here."""
        found = self._recorded_here()
        # Only what is called as a stage's folder: job.json is a file like others, and must not name what lies elsewhere.
        names = [entry["folder"] for entry in found["stages"] if re.fullmatch(r"\d+-[\w-]+", entry["folder"])]
        for name in (*names, *self._folders) if found["stages"] else ():
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for file in (JOB_FILE, PLAN_FILE):
            (self.folder / file).unlink(missing_ok=True)

    @property
    def _folders(self) -> list[str]:
        return [*(stage.folder for stage in self.recipe.stages), MODEL_FOLDER]

    def _refuse(self, problems: Sequence[Problem]) -> None:
        raise_problems([*self.recipe.problems, *problems], self.recipe.written)

    def _looked_at(self, plan: Mapping[str, Any]) -> tuple[list[tuple[StageRecipe, Written]], list[Problem]]:
        """The stages with values in their options, and what is wrong with any of them."""
        names = self._names(self.folder, plan)
        stages, problems = [], list[Problem]()
        for stage in self.recipe.stages:
            options, found = stage.with_values(names)
            problems += found or stage.named(self._problems(stage, options))
            stages.append((stage, options))
        return stages, problems

    def _names(self, folder: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
        folders = {stage.name: str(folder / stage.folder) for stage in self.recipe.stages}
        return {"folders": {**folders, "run": str(folder)}, "plan": dict(plan)}

    def _problems(self, stage: StageRecipe, options: Written) -> Sequence[Problem | str]:
        if stage.command not in TRAINED:
            table = {"class_path": stage.command, "init_args": options.tree}
            return class_problems(table, "command", stage.command)
        if several := one_process_problems(options.tree.get("trainer") or {}):
            return several
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
        if (stage.written.tree.get("trainer") or {}).get("devices") in (None, "auto"):
            words.append("--trainer.devices=1")  # and not as many processes as there are graphics cards
        return [*words, "--ckpt_path=last"] if list_checkpoints(folder / "checkpoints") else words

    def _recorded(self, stages: Sequence[tuple[StageRecipe, Written]]) -> list[dict[str, Any]]:
        names = self._names(Path(ANYWHERE), self._planning.values)
        entries = []
        for stage, _ in stages:
            options = yaml.safe_load(yaml.safe_dump(stage.with_values(names, environment=False)[0].tree))
            entries.append({"name": stage.name, "command": stage.command, "folder": stage.folder, "options": options})
        return entries

    def _recorded_here(self) -> dict[str, Any]:
        """The content of job.json; without stages where there is none."""
        file = self.folder / JOB_FILE
        if not file.is_file():
            return {"stages": [], "finished": []}
        table = read_json(file)
        stages, finished = table.get("stages"), table.get("finished")
        known = isinstance(stages, list) and all(isinstance(one, dict) and "folder" in one for one in stages)
        if table.get("format_version") != FORMAT_VERSION or not known or not isinstance(finished, list):
            raise ValueError(
                f"{file} is not of a job that this version reads; name another folder with {FOLDER_OPTION}"
            )
        return table

    def _begin(self, stages: Sequence[tuple[StageRecipe, Written]]) -> list[int]:
        """Exit codes of the stages that are finished; a job that is not the one of this folder is refused."""
        table, ours = self._recorded_here(), self._recorded(stages)
        theirs = table["stages"]
        if not theirs:
            self._check_free()
            self._note(stages, [])
            return []
        if [entry["folder"] for entry in theirs] != [entry["folder"] for entry in ours]:
            before, now = (", ".join(entry["folder"] for entry in entries) for entries in (theirs, ours))
            raise ValueError(
                f"{self.folder} holds a job of the stages {before}, this one has {now}; name another folder with {FOLDER_OPTION}, or "
                "start anew with --overwrite true"
            )
        problems: list[Problem] = []
        for old, new in zip(theirs, ours, strict=True):
            for entry in (old, new):
                entry.pop("name", None)
            problems += changed(old, new, f"stage {new['folder'].partition('-')[2]} of this folder's job")
        raise_problems(problems)
        return list(table["finished"])

    def _check_free(self) -> None:
        """Refuse a folder with things in it that a stage would replace, and that no job wrote."""
        for name in self._folders:
            path = self.folder / name
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise ValueError(
                    f"{path} is there, and is not of a job; name another folder with {FOLDER_OPTION}, or move it"
                )

    def _note(self, stages: Sequence[tuple[StageRecipe, Written]], codes: Sequence[int]) -> None:
        table = {"format_version": FORMAT_VERSION, "stages": self._recorded(stages), "finished": list(codes)}
        write_json(self.folder / JOB_FILE, table)

    def _run(self, stage: StageRecipe, options: Written) -> int:
        folder = self.folder / stage.folder
        try:
            if stage.command not in TRAINED:
                return int(stage_class(stage.command)(**options.tree).run(folder) or 0)
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
        for stage in recipe.stages:
            for option, value in stage.below:
                print(f"# not in this recipe, since the plan makes the table: --{stage.name}.{option} {value}")
        return 0
    job = Job(recipe)
    code = job.run()
    print(f"{len(recipe.stages)} stages done; the result is in {job.folder / MODEL_FOLDER}")
    if code:
        say("what is said above to be left out is not in it, hence exit code 1")
    return code
