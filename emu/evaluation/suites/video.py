"""The suite "video": skills of clips."""

from __future__ import annotations

from emu.evaluation.measures import figures_of
from emu.evaluation.skills import VIDEO_SKILLS
from emu.evaluation.suites.base import Log, Report
from emu.evaluation.suites.worlds import WorldModel, WorldSuite, measure_skills


class VideoSuite(WorldSuite):
    """Skills of clips of a rolling ball."""

    summary = "skills of clips"

    def run(self, subject: WorldModel, log: Log) -> Report:
        """See `Suite`."""
        skills = measure_skills(VIDEO_SKILLS, subject, log)
        measures = {f"skill/{name}": share for name, share in skills.items()}
        table = {"skills": {name: share.to_dict() for name, share in skills.items()}}
        return Report(table, figures_of(measures), measures=measures)
