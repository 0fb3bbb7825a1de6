"""The suite "video": skills of clips."""

from __future__ import annotations

from dataclasses import asdict

from emu.evaluation.skills import VIDEO_SKILLS
from emu.evaluation.suites.base import Log, Report
from emu.evaluation.suites.worlds import WorldModel, WorldSuite, measure_skills


class VideoSuite(WorldSuite):
    """Skills of clips of a rolling ball."""

    summary = "skills of clips"

    def run(self, subject: WorldModel, log: Log) -> Report:
        """See `Suite`."""
        skills = measure_skills(VIDEO_SKILLS, subject, log)
        table = {"skills": {name: asdict(share) for name, share in skills.items()}}
        return Report(table, {f"skill/{name}": round(share.value, 4) for name, share in skills.items()})
