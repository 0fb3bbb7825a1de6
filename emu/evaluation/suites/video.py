"""The suite "video": skills of clips, and of clips longer than those of training."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from emu.evaluation.clip_lengths import measure_length
from emu.evaluation.measures import figures_of
from emu.evaluation.skills import VIDEO_SKILLS
from emu.evaluation.suites.base import Log, Report, Unsuited
from emu.evaluation.suites.worlds import WorldModel, WorldSuite, measure_skills


@dataclass(frozen=True)
class ClipModel(WorldModel):
    """A model of clips, and how long clips are drawn, in times of the trained length; 1 for those of training alone."""

    length: int = 1


class VideoSuite(WorldSuite):
    """Skills of clips of a rolling ball; with `--length 4` also clips of four times the trained length, drawn in parts."""

    summary = "skills of clips, and of longer ones"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """See `Suite`."""
        super().add_options(parser)
        parser.add_argument(
            "--length",
            type=int,
            default=1,
            help="draw clips of so many times the trained length too, from 2 on (default: %(default)s, none)",
        )

    def prepare(self, request: argparse.Namespace) -> ClipModel:
        """See `WorldSuite`.

        Raises:
            ValueError: also where the length is below 1, or the model knows no clips from captions.
        """
        if request.length < 1:
            raise ValueError(f"--length is {request.length}; expected 1 or more times the trained length")
        known = super().prepare(request)
        if request.length > 1 and not known.knows("moving", "text-to-video"):
            raise Unsuited("this model was not trained on clips from captions; --length needs the task text-to-video")
        return ClipModel(known.model, known.engine, known.documents, known.options, request.length)

    def run(self, subject: WorldModel, log: Log) -> Report:
        """See `Suite`."""
        options = subject.options
        skills = measure_skills(VIDEO_SKILLS, subject, log)
        measures = {f"skill/{name}": share for name, share in skills.items()}
        table: dict[str, object] = {"skills": {name: share.to_dict() for name, share in skills.items()}}
        figures = figures_of(measures)
        if isinstance(subject, ClipModel) and subject.length > 1:
            documents = subject.documents["moving"]
            found = measure_length(
                subject.model, documents, subject.length, options.documents, options.samples, options.seed
            )
            for name, share in found.measures().items():
                log(f"{name}: {share}")
            for test, adjusted in zip(found.moves, found.adjusted, strict=True):
                log(f"moves beyond the trained length: {test}, by Holm {adjusted:.3g}")
            measures |= found.measures()
            figures = figures_of(measures) | found.figures()
            table["longer"] = found.to_dict()
        return Report(table, figures, measures=measures)
