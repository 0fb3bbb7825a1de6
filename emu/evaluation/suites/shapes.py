"""The suite "shapes": skills of pictures, and boxes of pictures."""

from __future__ import annotations

from dataclasses import asdict

from emu.evaluation.measures import Measure, figures_of
from emu.evaluation.models import ModelSample
from emu.evaluation.skills import SHAPES_SKILLS, detection_iou
from emu.evaluation.statistics import Interval
from emu.evaluation.suites.base import Log, Report
from emu.evaluation.suites.worlds import WorldModel, WorldSuite, measure_skills
from emu.worlds import ShapesWorld


class ShapesSuite(WorldSuite):
    """Skills and boxes of pictures."""

    summary = "skills of pictures, boxes"

    def run(self, subject: WorldModel, log: Log) -> Report:
        """See `Suite`."""
        skills = measure_skills(SHAPES_SKILLS, subject, log)
        overlaps = measure_boxes(subject, log)
        table = {
            "skills": {name: share.to_dict() for name, share in skills.items()},
            "iou": {name: asdict(overlap) for name, overlap in overlaps.items()},
        }
        measures = {f"skill/{name}": share for name, share in skills.items()}
        measures |= {f"iou/{name}": Measure(overlap) for name, overlap in overlaps.items()}
        return Report(table, figures_of(measures), measures=measures)


def measure_boxes(subject: WorldModel, log: Log) -> dict[str, Interval]:
    """Mean overlap of boxes with the true ones, by world."""
    found: dict[str, Interval] = {}
    for name in ("one", "two"):
        if subject.knows(name, "image-to-boxes"):
            world, options = subject.documents[name].world, subject.options
            assert isinstance(world, ShapesWorld)
            sample = ModelSample(subject.engine, subject.documents[name])
            found[name] = detection_iou(world, sample, options.samples, options.seed)
            log(f"picture to boxes, {name} object(s): IoU {found[name]}")
    return found
