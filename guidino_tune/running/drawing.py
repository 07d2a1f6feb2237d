"""The picture of a trial: some validation cases with what it predicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guidino_tune.errors import redacted
from guidino_tune.training.folder import TrialFolder

if TYPE_CHECKING:
    from guidino_tune.training.loop import TrainingRun

log = logging.getLogger(__name__)


def draw_where_due(run: TrainingRun, config: Mapping[str, Any]) -> None:
    """The picture of the best epoch so far, where the trial may end: it takes longer than many a small epoch."""
    if run.best_shown and run.epoch in config.get("rungs", (run.epoch,)):
        try:
            draw(run)
        except Exception as error:
            log.warning("no picture of epoch %d: %s", run.epoch, redacted(str(error)))  # the epoch itself is saved
        run.best_shown = []


def draw(run: TrainingRun) -> None:
    """Writes it into the trial's folder."""
    from guidino_tune.analysis.pictures import contact_sheet, overlay, save_png
    from guidino_tune.training.showing import shown_cases

    folder = run.reporter
    assert isinstance(folder, TrialFolder)
    names = run.experiment.data.class_names
    cases = shown_cases(run, run.best_shown)
    ignore = run.experiment.data.has_ignored
    rows = [overlay(c.image, c.truth, c.guide, c.prediction, title=c.id, names=names, ignore=ignore) for c in cases]
    save_png(contact_sheet(rows), folder.pictures / "validation.png")
