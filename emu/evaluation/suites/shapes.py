"""The suite "shapes": skills of pictures, boxes of pictures, and accuracy against diversity over guidance scales."""

from __future__ import annotations

from dataclasses import asdict

from emu.evaluation.measures import Measure, figures_of
from emu.evaluation.models import ModelSample
from emu.evaluation.plots import sweep_picture
from emu.evaluation.skills import SHAPES_SKILLS, SweepPoint, detection_iou, guidance_sweep
from emu.evaluation.statistics import Interval
from emu.evaluation.suites.base import Log, Report
from emu.evaluation.suites.worlds import WorldModel, WorldSuite, measure_skills
from emu.worlds import ShapesWorld

SWEEP = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Guidance scales of the sweep."""


class ShapesSuite(WorldSuite):
    """Skills, boxes and the guidance sweep of pictures."""

    summary = "skills of pictures, boxes, accuracy against diversity over guidance scales"

    def run(self, subject: WorldModel, log: Log) -> Report:
        """See `Suite`."""
        skills = measure_skills(SHAPES_SKILLS, subject, log)
        overlaps, points = measure_boxes(subject, log), sweep(subject, log)
        table = {
            "skills": {name: share.to_dict() for name, share in skills.items()},
            "iou": {name: asdict(overlap) for name, overlap in overlaps.items()},
            "sweep": [asdict(point) for point in points],
        }
        measures = {f"skill/{name}": share for name, share in skills.items()}
        measures |= {f"iou/{name}": Measure(overlap) for name, overlap in overlaps.items()}
        return Report(table, figures_of(measures), sweep_picture(points), measures=measures)


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


def sweep(subject: WorldModel, log: Log) -> list[SweepPoint]:
    """Accuracy and diversity of pictures of one object, a point for each guidance scale."""
    if not subject.knows("one", "text-to-image"):
        return []
    world, options = subject.documents["one"].world, subject.options
    assert isinstance(world, ShapesWorld)
    sample = ModelSample(subject.engine, subject.documents["one"])
    points = guidance_sweep(world, sample, SWEEP, options.samples, options.seed)
    for point in points:
        log(f"guidance {point.guidance_scale:g}: accuracy {point.accuracy}, diversity {point.diversity:.3f}")
    return points
