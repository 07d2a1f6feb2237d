"""What a trial keeps of its validation cases for people: pictures of what it predicts, and the scores of every case."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from guidino_tune.errors import redacted
from guidino_tune.training.case_scores import FILE, Shown, write_cases
from guidino_tune.training.folder import TrialFolder

if TYPE_CHECKING:
    from guidino_tune.training.loop import TrainingRun

log = logging.getLogger(__name__)

VALIDATION, ENDS = "validation.png", "worst-and-best.png"
"""Pictures of a trial: the first cases, which are the same of every trial; and those with the lowest and the highest Dice."""


def draw_where_due(run: TrainingRun, config: Mapping[str, Any]) -> None:
    """The picture of the best epoch so far, where the trial may end: it takes longer than many a small epoch."""
    if run.best_shown and run.epoch in config.get("rungs", (run.epoch,)):
        try:
            draw(run, run.best_shown, VALIDATION)
            note_cases(run)
        except Exception as error:
            log.warning("no picture of epoch %d: %s", run.epoch, redacted(str(error)))  # the epoch itself is saved
        run.best_shown = []
    if run.finished and run.best_validation:
        try:
            draw(run, run.best_validation[1].ends, ENDS)
        except Exception as error:
            log.warning("no picture of the worst and the best cases: %s", redacted(str(error)))
        run.best_validation = None


def draw(run: TrainingRun, shown: Sequence[Shown], name: str) -> None:
    """Writes a picture of these cases into the trial's folder."""
    from guidino_tune.analysis.pictures import contact_sheet, overlay, save_png
    from guidino_tune.training.showing import shown_cases

    folder = run.reporter
    assert isinstance(folder, TrialFolder)
    names, ignore = run.experiment.data.class_names, run.experiment.data.has_ignored
    rows = [overlay(c.image, c.truth, c.guide, c.prediction, title=c.id, names=names, ignore=ignore) for c in shown_cases(run, shown)]
    save_png(contact_sheet(rows), folder.pictures / name)


def note_cases(run: TrainingRun) -> None:
    """Writes the scores of all validation cases in the best epoch into the trial's folder."""
    folder, table = run.reporter, run.data.validation
    assert isinstance(folder, TrialFolder)
    if run.best_validation:
        epoch, found = run.best_validation
        write_cases(folder.path / FILE, epoch, found.scores, dict(zip(table.ids, map(float, table.foreground), strict=True)))
