"""The plan of a job: numbers that are chosen from its data, once, and kept in plan.json.

    class Passes:
        def __init__(self, source: str) -> None: ...
        @classmethod
        def examples(cls) -> list[dict[str, Any]]: return [{"steps": 100}]
        def state(self) -> str: return str(Path(self.source).stat().st_size)
        def make(self) -> tuple[dict[str, Any], list[str]]: ...

    plan: {class_path: my_module.Passes, init_args: {source: "${data.source}"}}         in the recipe; stages say ${plan.steps}

Making a plan may take a minute, so that everything which can be known without it is looked at before, with the values of its examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from emu.configuration import import_object
from emu.configuration.problems import Problem, raise_problems
from emu.stopping import say
from emu.training.job_checks import changed, class_problems
from emu_tokenizers.files import read_json, write_json

PLAN_FILE = "plan.json"
FORMAT_VERSION = 1
Look = Callable[[Mapping[str, Any]], Sequence[Problem]]
"""Says what is wrong with the stages for these values of the plan."""


class JobPlan(Protocol):
    """Chooses numbers from the data; a recipe names its class in `plan`. Made of its arguments, it reads nothing yet."""

    @classmethod
    def examples(cls) -> Sequence[dict[str, Any]]:
        """Values of the names and kinds that `make` gives, of little and of much data: an option that fits none of them is refused."""
        ...

    def state(self) -> str | None:
        """Changes when the data does, as far as that is seen without reading it; None where it cannot be known.

        Raises:
            FileNotFoundError, ValueError: the data is not there.
        """
        ...

    def make(self) -> tuple[dict[str, Any], list[str]]:
        """Look at the data and the machine, once.

        Returns:
            Values by name, which stages refer to as `${plan.NAME}`, and sentences that say why they are so.
        """
        ...


class Planning:
    """The plan of a run: read from its folder, or made and written there.

    Args:
        folder: of the run.
        named: class_path and init_args, as the recipe names them; None for a job without a plan.
        anew: whether to make it again where it is there.

    Attributes:
        values: by name; empty before `prepare`, and without a plan.
    """

    def __init__(self, folder: Path, named: Any, *, anew: bool) -> None:
        self._file, self._named, self._anew = folder / PLAN_FILE, named, anew
        self._table: dict[str, Any] = {"values": {}, "reasons": []}

    @property
    def values(self) -> dict[str, Any]:
        """Values by name."""
        return self._table["values"]

    @property
    def is_due(self) -> bool:
        """Whether the plan must be made."""
        return self._named is not None and (self._anew or not self._file.is_file())

    def problems(self, look: Look) -> list[Problem]:
        """What is wrong with the plan, and with the stages whatever it comes to."""
        found = class_problems(self._named, "plan")
        try:
            cls = import_object(self._named["class_path"])
        except (ValueError, TypeError, KeyError):  # which is told
            return found
        if not all(hasattr(cls, name) for name in ("examples", "state", "make")):
            text = f"{self._named['class_path']} is not a plan; it needs examples, state and make of emu.training.job_plan.JobPlan"
            return [*found, Problem(text, ("plan",))]
        common: list[Problem] | None = None
        for values in cls.examples():
            some = look(values)
            common = [one for one in some if common is None or one in common]
            if not common:
                break
        return [*found, *(common or ())]

    def prepare(self) -> None:
        """Read the plan, or make it; nothing is written yet.

        Raises:
            ValueError: it cannot be made, or the folder's plan was made from something else.
            FileNotFoundError: the data is not there.
        """
        if self._named is None:
            return
        if not self.is_due:
            self._table = self._read()
            raise_problems(
                changed({"plan": self._table["made_from"]}, {"plan": self._named}, "this folder's plan.json")
            )
            return
        plan = self._made()
        state = plan.state()
        values, reasons = plan.make()
        table = {"format_version": FORMAT_VERSION, "made_from": self._named, "state": state}
        self._table = json.loads(json.dumps({**table, "values": values, "reasons": reasons}))  # as it will be read

    def _read(self) -> dict[str, Any]:
        table = read_json(self._file)
        kinds = {"made_from": dict, "values": dict, "reasons": list}
        if not all(isinstance(table.get(name), kind) for name, kind in kinds.items()):
            raise ValueError(
                f"{self._file} is not the plan of a job; start anew with --overwrite true, or name another folder"
            )
        return table

    def write(self) -> None:
        """Write plan.json where it is not there, and say the reasons."""
        if self._named is not None and not self._file.is_file():
            write_json(self._file, self._table)
        for line in self._table["reasons"]:
            say(f"plan: {line}")

    def check_state(self, finished: int) -> None:
        """Compare the data with what the plan was made of.

        Args:
            finished: stages. Once one of them has read the data, a change is said and nothing more.

        Raises:
            ValueError: it has changed, and no stage is finished.
        """
        if self._named is None or "state" not in self._table:
            return
        told = f"the data has changed since {PLAN_FILE} was made of it"
        try:
            if self._made().state() == self._table["state"]:
                return
        except (ValueError, OSError) as error:
            told = f"the data that {PLAN_FILE} was made of is not there any more: {error}"
        if not finished:
            raise ValueError(f"{told}; put it back, start anew with --overwrite true, or name another folder")
        say(f"{told}; this job goes on with what it has read, --overwrite true or another folder starts anew")

    def _made(self) -> JobPlan:
        return import_object(self._named["class_path"])(**self._named.get("init_args", {}))
