"""What is known of a study, as plain rows: from its storage alone, and more where its folder is here too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from guidino_tune.space.space import Space
from guidino_tune.study.nodes import NODE
from guidino_tune.study.nodes import shown as node_in_words
from guidino_tune.study.objectives import as_dict, feasible
from guidino_tune.study.outcomes import INTERRUPTION
from guidino_tune.study.pruners import rungs
from guidino_tune.study.store import StoredStudy, StudyFolder
from guidino_tune.study.trials import front, ranking, tried
from guidino_tune.training.case_scores import FILE, read_cases
from guidino_tune.training.reporter import EpochRecord

COMPLETE, STOPPED, FAILED, BEYOND = "complete", "stopped early", "failed", "beyond a constraint"
RUNNING, TO_GO_ON = "running", "interrupted"
"""States of a trial, in words."""

JOINED, SHARE = 1.0, 0.05
"""Seconds, and besides them a share of an epoch, between two epochs up to which a trial worked without a break: to save takes as long. In a
longer one it may have waited at a rung while another trial had its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial that has begun.

    Attributes:
        number: From 0.
        name: Of its system.
        state: See above.
        params: What was searched, by path.
        curve: Validation Dice by epoch.
        dice: The best of them.
        epoch: Of the best.
        reached: Its last epoch.
        budget: Epochs that it might have; 0 where that is not known.
        values: Of the objectives and what else is known of it, by name.
        failure: Kind of its failure.
        message: Its reason.
        node: Where it was last, in words.
        begun: By the clock of the machine that searched.
        ended: Likewise.
        busy: Stretches of time in which it trained, in Unix seconds; empty where no history is here.
    """

    number: int
    name: str
    state: str
    params: Mapping[str, Any]
    curve: Mapping[int, float]
    dice: float | None
    epoch: int
    reached: int
    budget: int
    values: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    message: str = ""
    node: str = ""
    begun: datetime | None = None
    ended: datetime | None = None
    busy: Sequence[tuple[float, float]] = ()

    def until(self, epoch: int) -> float | None:
        """The best Dice until this epoch; ``None`` where the trial did not come so far."""
        return max(dice for at, dice in self.curve.items() if at <= epoch) if epoch in self.curve else None

    @property
    def last(self) -> float | None:
        """When it ended its last epoch, in Unix seconds; where no history is here, when it was closed."""
        at = self.ended or self.begun
        return self.busy[-1][1] if self.busy else at.timestamp() if at else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A study.

    Attributes:
        name: Of the study.
        space: What it searches.
        attributes: Of the study: what was noted with it.
        folder: Its folder; ``None`` where it is not on this machine.
        trials: Those that have begun, by number.
        ranked: Numbers of those that ran their whole budget, best first.
        front: Numbers of the Pareto front; empty with one objective.
        rungs: Epochs at which trials are compared, and the last; empty where trials have different budgets.
        default: Number of the trial with the space's first values; ``None`` where there is none.
    """

    name: str
    space: Space
    attributes: Mapping[str, Any]
    folder: StudyFolder | None
    trials: Sequence[Trial]
    ranked: Sequence[int]
    front: Sequence[int]
    rungs: Sequence[int]
    default: int | None

    def trial(self, number: int) -> Trial:
        """One trial by its number."""
        return next(trial for trial in self.trials if trial.number == number)

    @property
    def best(self) -> Trial | None:
        """The first of the ranking."""
        return self.trial(self.ranked[0]) if self.ranked else None

    @property
    def baseline(self) -> float | None:
        """Dice of the best constant mask."""
        about = self.attributes.get("data")
        value = about.get("constant_mask_dice") if isinstance(about, Mapping) else None
        return float(value) if isinstance(value, int | float) else None

    def trial_folder(self, number: int) -> Path | None:
        """Of one trial; ``None`` where it is not here."""
        path = self.folder.trial(number).path if self.folder else None
        return path if path and path.is_dir() else None

    def cases(self, number: int) -> dict[str, dict[str, float]]:
        """Scores of a trial's validation cases in its best epoch; empty where they are not here."""
        path = self.trial_folder(number)
        return read_cases(path / FILE) if path else {}


def collect(stored: StoredStudy, *, is_driven: bool = True) -> Material:
    """Everything of a study; reads the histories of its trials where its folder is here. Where nobody drives it, no trial runs."""
    study, space = stored.study, stored.space
    folder = stored.folder if stored.folder.definition.exists() else None
    found = tried(study)
    budgets = {made.training.epochs for made in space.recipes.values() or (space.base,)}
    alike = "training.epochs" not in space.parameters and len(budgets) == 1
    return Material(
        name=study.study_name,
        space=space,
        attributes=study.user_attrs,
        folder=folder,
        trials=[_trial(space, trial, folder, is_driven) for trial in found],
        ranked=[trial.number for trial in ranking(study)],
        front=[trial.number for trial in front(study)],
        rungs=rungs(space.study, budgets.pop()) if alike else (),
        default=_default(space, found),
    )


def state_of(trial: FrozenTrial, is_driven: bool) -> str:
    """In words."""
    if not feasible(trial):
        return BEYOND
    going = RUNNING if is_driven and not trial.user_attrs.get(INTERRUPTION) else TO_GO_ON
    return {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: STOPPED, TrialState.FAIL: FAILED}.get(trial.state, going)


def plain(text: Any) -> str:
    """Text from a storage that others may write to, without what no page can show."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in str(text))


def _trial(space: Space, trial: FrozenTrial, folder: StudyFolder | None, is_driven: bool) -> Trial:
    # A distance is not finite where nothing is predicted, and nothing can be drawn of it.
    attributes, curve = trial.user_attrs, _finite(dict(sorted(trial.intermediate_values.items())))
    history = folder.trial(trial.number).history() if folder else []
    reached = max([*curve, *(record.epoch for record in history)], default=0)
    budget = attributes.get("epochs", 0)
    failed = trial.state == TrialState.FAIL
    values = dict(zip(space.study.objectives, trial.values or (), strict=False)) if feasible(trial) else {}
    return Trial(
        number=trial.number,
        name=plain(attributes.get("name", "")),
        state=state_of(trial, is_driven),
        params=dict(trial.params),
        curve=curve,
        dice=max(curve.values(), default=None),
        epoch=max(curve, key=lambda epoch: curve[epoch], default=0),
        reached=reached,
        budget=budget if isinstance(budget, int) else 0,
        values=_finite(as_dict(space.study, trial) | values),
        failure=plain(attributes.get("failure", "")) if failed else "",
        message=plain(attributes.get("message", "")) if failed or not feasible(trial) else "",
        node=node_in_words(plain(attributes.get(NODE, ""))),
        begun=trial.datetime_start,
        ended=trial.datetime_complete,
        busy=list(_stretches(history)),
    )


def _finite(values: Mapping[Any, float]) -> dict[Any, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _stretches(history: Sequence[EpochRecord]) -> Iterator[tuple[float, float]]:
    """When a trial worked; a trial that waits at a rung does not."""
    begun = last = None
    for record in history:
        seconds = record.metrics.get("epoch_seconds")
        if not isinstance(seconds, int | float):
            continue
        start = record.time - seconds
        if last is None or begun is None or start - last > JOINED + SHARE * seconds:
            if begun is not None and last is not None:
                yield begun, last
            begun = start
        last = max(record.time, last or record.time)
    if begun is not None and last is not None:
        yield begun, last


def _default(space: Space, trials: Sequence[FrozenTrial]) -> int | None:
    """The trial that has the first of the space's first values, if it gave a Dice."""
    if not space.first_trials or space.study.is_list:
        return None
    wanted = space.first_trials[0].items()
    return next((t.number for t in trials if wanted <= t.params.items() and t.intermediate_values), None)


def reached(material: Material, rung: int) -> list[Trial]:
    """The trials that came to a rung."""
    return [trial for trial in material.trials if trial.until(rung) is not None]
