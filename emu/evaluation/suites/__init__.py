"""What `emu evaluate` measures: the table of suites; an extension adds to it with `register(name, suite)`."""

from __future__ import annotations

from emu.configuration import import_object
from emu.evaluation.suites.base import Log, Report, Suite, Unsuited
from emu.evaluation.suites.calibration import CalibrationSuite
from emu.evaluation.suites.guidance import GuidanceSuite
from emu.evaluation.suites.likelihood import LikelihoodSuite
from emu.evaluation.suites.memorisation import MemorisationSuite
from emu.evaluation.suites.requests import EditsSuite, ExamplesSuite, FillsSuite, RatesSuite
from emu.evaluation.suites.shapes import ShapesSuite
from emu.evaluation.suites.tokenizer import TokenizerSuite
from emu.evaluation.suites.video import VideoSuite
from emu.evaluation.suites.vqa import VqaSuite
from emu_tokenizers.registry import Registry

SUITES: Registry[Suite] = Registry(
    "suite",
    {
        "calibration": CalibrationSuite(),
        "shapes": ShapesSuite(),
        "video": VideoSuite(),
        "edits": EditsSuite(),
        "examples": ExamplesSuite(),
        "fills": FillsSuite(),
        "rates": RatesSuite(),
        "vqa": VqaSuite(),
        "likelihood": LikelihoodSuite(),
        "memorisation": MemorisationSuite(),
        "guidance": GuidanceSuite(),
        "tokenizer": TokenizerSuite(),
    },
)
register = SUITES.register


def find_suite(name: str) -> Suite:
    """The suite of this name, or the one that a class path such as "my_module.MySuite" names.

    Raises:
        ValueError: there is none; the message lists those that there are, or says why the path cannot be imported.
    """
    if name in SUITES or "." not in name:
        return SUITES.find(name)
    found = import_object(name)
    return found() if isinstance(found, type) else found


__all__ = ["SUITES", "Log", "Report", "Suite", "Unsuited", "find_suite", "register"]
