"""What MLflow lacks of a study, as far as the ledger knows; asked without MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from guidino_tune import paths
from guidino_tune.tracking.client import OWN, as_tags, same_place, sqlite_uri
from guidino_tune.tracking.ledger import Ledger, Sent
from guidino_tune.tracking.runs import STATUS, STUDY, as_metrics, changed, trial_tags
from guidino_tune.tracking.snapshots import TrialSnapshot
from guidino_tune.tracking.uploads import PICTURES, ContentHashes


@dataclass(frozen=True, slots=True)
class Missing:
    """What waits to be sent.

    Attributes:
        trials: Trials of which anything is missing.
        epochs: Epochs of them.
        files: Pictures and other files, of trials and of the study.
        study: Whether the run of the study itself is not up to date.
        elsewhere: The MLflow that has it, where that is another one; then everything is missing here.
    """

    trials: int
    epochs: int
    files: int
    study: bool
    elsewhere: str = ""

    def __bool__(self) -> bool:
        return bool(self.trials or self.files or self.study)

    def __str__(self) -> str:
        parts = [
            f"{n} {name}{'' if n == 1 else 's'}" for n, name in ((self.trials, "trial"), (self.epochs, "epoch"), (self.files, "file")) if n
        ]
        parts += ["the study's own run"] if self.study else []
        return (", ".join(parts) or "nothing") + (f" (they were sent to {self.elsewhere})" if self.elsewhere else "")


def missing(ledger: Ledger, trials: Iterable[TrialSnapshot], artifacts: Sequence[Path], uri: str) -> Missing:
    """Counts what a study has and the ledger does not.

    Args:
        ledger: Of the study.
        trials: Each trial as it is now.
        artifacts: Files of the study's own run.
        uri: Of the MLflow that is meant.
    """
    before = ledger.sent(STUDY).uri
    elsewhere = "" if same_place(before, uri) else before.replace(OWN, sqlite_uri(paths.home() / "mlflow.db"))
    behind = epochs = files = 0
    hashes = ContentHashes()
    for trial in trials:
        sent = Sent() if elsewhere else ledger.sent(str(trial.number))
        if sent.deleted:
            continue
        late = sum(record.epoch > sent.epoch for record in trial.history)
        lacking = _lacking(sent, trial.pictures, PICTURES, hashes) + _lacking(sent, trial.artifacts, "", hashes)
        epochs, files = epochs + late, files + lacking
        behind += bool(late or lacking or _differs(trial, sent))
    study = Sent() if elsewhere else ledger.sent(STUDY)
    files += _lacking(study, artifacts, "", hashes)
    return Missing(behind, epochs, files, not study.params or study.status == "RUNNING", elsewhere)


def _lacking(sent: Sent, files: Iterable[Path], folder: str, hashes: ContentHashes) -> int:
    """How many of these files are there, but not in the run as they are now."""
    return sum(file.is_file() and sent.files.get(f"{folder}/{file.name}".lstrip("/")) != hashes.of(file) for file in files)


def _differs(trial: TrialSnapshot, sent: Sent) -> bool:
    tags, results = changed(as_tags(trial_tags(trial, sent)), sent.tags), changed(as_metrics(trial.results), sent.metrics)
    return not sent.params or sent.status != STATUS[trial.state] or bool(tags or results)
