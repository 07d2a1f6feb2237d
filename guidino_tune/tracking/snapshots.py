"""What the driver hands to tracking: immutable pictures of a trial and of the study, cheap to make and safe to read from another thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from guidino_tune.training.reporter import EpochRecord

Plain = str | int | float | bool | None
"""A value that a parameter may have; written as YAML would write it."""

TrialState = Literal["running", "interrupted", "complete", "pruned", "fail"]
"""``interrupted``: the driver stopped, and the same command goes on with the trial."""


@dataclass(frozen=True, slots=True)
class TrialSnapshot:
    """A trial as it is now. The driver may hand over as many as it likes; only the difference to what MLflow has is sent.

    Attributes:
        number: The trial's number in the study.
        name: Of the combination, such as ``GuiDINO-W``.
        state: See ``TrialState``.
        reason: Why it failed or was stopped, in one sentence; may be empty.
        params: The resolved experiment, flattened with dots (``training.lr``).
        searched: Only the parameters that the space varies, by the same paths.
        history: Every epoch so far, oldest first (also those from before a resume).
        results: Final metrics, measured after the training (``test_dice``).
        pictures: PNG files; a number at the end of the name is the epoch (``val_case3_epoch0010.png``).
        artifacts: Other files or folders to keep with the run.
        tags: Free labels.
        started: Unix seconds; ``None`` takes the first record's time, or now.
        finished: Unix seconds; ``None`` takes the last record's time, or now.
        measured: When ``results`` were measured, in Unix seconds; ``None`` takes ``finished``.
    """

    number: int
    name: str
    state: TrialState = "running"
    reason: str = ""
    params: Mapping[str, Plain] = field(default_factory=dict)
    searched: Mapping[str, Plain] = field(default_factory=dict)
    history: Sequence[EpochRecord] = ()
    results: Mapping[str, float] = field(default_factory=dict)
    pictures: tuple[Path, ...] = ()
    artifacts: tuple[Path, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None
    measured: float | None = None


@dataclass(frozen=True, slots=True)
class EndedTrial:
    """A trial that has ended: nothing of it is kept in memory, and it is read only where MLflow lacks it.

    Attributes:
        number: The trial's number in the study.
        key: Differs when there is something else to be sent.
        read: Makes its snapshot from the study's folder, in any thread.
    """

    number: int
    key: str
    read: Callable[[], TrialSnapshot]


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Which cases a study sees.

    Attributes:
        name: Such as ``kvasir``.
        fingerprint: Hash of files and split.
        num_train: Training cases.
        num_validation: Validation cases.
        source: Folder or address that they were read from.
    """

    name: str
    fingerprint: str
    num_train: int
    num_validation: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class StudySnapshot:
    """A study as it is now: the parent run of its trials.

    Attributes:
        name: Name of the parent run.
        params: What holds for the whole study, flattened with dots; ``space.PATH`` (PATH is searched) adds a column to its view.
        tags: Free labels.
        datasets: Shown by MLflow as the inputs of the parent and of every trial.
        artifacts: Files or folders (``best.yaml``, the report); uploaded again when their content changes.
        metrics: Figures of the study so far, such as the number of finished trials.
        step: How many trials have ended: the step of ``metrics``.
        time: When the newest trial started or ended (Unix seconds): the time of ``metrics``. The same study has the same step and time in
            every process, so that what is sent twice is stored once.
        objective: The metric whose best value so far becomes ``best_<objective>``, by which trials sort.
        maximize: Whether more is better.
        id: Tells two studies of one name apart in a shared MLflow; empty takes the name. Keep it with the study, not with the machine.
    """

    name: str
    params: Mapping[str, Plain] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[DatasetInfo, ...] = ()
    artifacts: tuple[Path, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    time: float = 0.0
    objective: str = "val_dice"
    maximize: bool = True
    id: str = ""


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, Plain]:
    """Nested sections to one level: ``{"training": {"lr": 1e-4}}`` to ``{"training.lr": 1e-4}``; lists become text."""
    flat: dict[str, Plain] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float | bool | None) else str(value)
    return flat
