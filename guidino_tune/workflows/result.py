"""What a study holds, for a program: the best configuration, every trial, a table; of a finished study or of one that runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from guidino_tune import paths
from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.study.driver import INTERRUPTED, OUT_OF_TIME
from guidino_tune.study.optuna_private import stored_trial
from guidino_tune.study.outcomes import INTERRUPTION
from guidino_tune.study.store import StoredStudy, stored_study
from guidino_tune.study.trials import best_value, front, ranking, remaining, tried
from guidino_tune.training.folder import write_text
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.certainty import Certainty
from guidino_tune.workflows.export import export_split, export_trial

if TYPE_CHECKING:
    import pandas as pd

State = Literal["complete", "stopped early", "failed", "running", "interrupted"]
"""Of a trial: it ran its whole budget; it was ended early, by the pruner or a constraint; it failed; it runs; it is to go on."""

_ENDS: dict[TrialState, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}

FEWEST = 10
"""Trials that ran their whole budget, below which nothing is said of the importance of parameters."""


@dataclass(frozen=True, slots=True)
class TrialResult:
    """One trial as it is stored.

    Attributes:
        number: From 0.
        state: See ``State``.
        parameters: What was searched, by path.
        value: Validation Dice of its best epoch; ``None`` before the first.
        values: Validation Dice by epoch, from 1; of the epochs that were validated.
        objectives: The value of each objective of a trial that ran its whole budget.
        failure: Kind and message of a failure; empty of any other trial.
        folder: Its files: ``history.jsonl`` (all metrics), ``pictures/``, and where they were kept ``best/`` (weights).
    """

    number: int
    state: State
    parameters: Mapping[str, Any]
    value: float | None
    values: Mapping[int, float]
    objectives: Mapping[str, float]
    failure: str
    folder: Path
    _study: StudyResult = field(repr=False, compare=False)

    @property
    def experiment(self) -> Experiment:
        """The complete configuration.

        Raises:
            UserError: The trial was left while it got its parameters.
        """
        return self._study.space.experiment(self.parameters)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Study, trial, split, backbone: with it ``retrain`` tests on no case that the search has seen."""
        return self._study.export(self.number).provenance


@dataclass(frozen=True, slots=True)
class Exported:
    """A configuration and where it comes from: what ``retrain`` takes, as an object.

    Attributes:
        experiment: What to train.
        provenance: Study, trial, split, backbone: what is needed to train it on the images that the search has seen as such.
        text: Both as YAML, as ``guidino-tune export`` writes it.
    """

    experiment: Experiment
    provenance: Mapping[str, Any]
    text: str = field(repr=False)

    def save(self, file: str | Path, *, force: bool = False) -> Path:
        """Writes what ``guidino-tune retrain`` takes, with the split of the study beside it.

        Raises:
            UserError: A file is there already; ``force`` replaces it.
        """
        file = Path(file)
        if file.exists() and not force:
            raise UserError("the file is there already", where=str(file), todo="choose another name, or force=True")
        export_split(self.provenance["study_folder"], file, force=force)
        write_text(file, self.text)
        return file


class Callback(Protocol):
    """Told what happens in a search, in the process that called it; any object with one or several of these methods will do.

    The search waits for them, so they should be quick. An exception in one ends the search with a ``UserError`` that names it, and the
    trials that ran go on with the next call. A trial whose machine was lost starts again, under its number.
    """

    def trial_started(self, trial: TrialResult) -> None:
        """A trial has its parameters, and goes to a machine."""

    def epoch_ended(self, trial: TrialResult, record: EpochRecord) -> None:
        """A trial has told an epoch, whose metrics are in ``record``."""

    def trial_ended(self, trial: TrialResult) -> None:
        """A trial is complete, was stopped early, or failed."""


class StudyResult:
    """A study that is only read; every question is answered from what is stored at that moment.

    Made by ``run_search`` and ``open_study``.

    Attributes:
        name: Of the study.
        folder: Where it lives.
        space: What it searches.
        study: Of Optuna, for its own tools, as in ``optuna.visualization``.
        stored: All three, as the other workflows take them.
        storage: Database URL that was named; ``None``: that of the environment, or the journal in the folder.
    """

    def __init__(self, stored: StoredStudy, ended: str | None = None, storage: str | None = None) -> None:
        self.folder, self.study, self.space = stored.folder.path, stored.study, stored.space
        self.name: str = stored.space.study.name
        self.storage = storage
        self.stored, self._ended = stored, ended

    def __repr__(self) -> str:
        trials = self.trials()
        best = max((t.value for t in trials if t.state == "complete" and t.value is not None), default=None)
        score = "no complete trial" if best is None else f"best validation Dice {best:.4f}"
        return f"<study {self.name!r}: {len(trials)} trials, {score}{f'; {self.ended}' if self.ended else ''}>"

    @property
    def ended(self) -> str:
        """Why the search ended before all its trials did, such as ``Interrupted``; empty when all have.

        Of a study that was opened: who runs it now, or how many trials are left to a search that goes on.
        """
        if self._ended is not None:
            return self._ended
        if holder := self.stored.holder:
            return f"a search works on it ({holder})"
        left = remaining(self.study, self.space)
        return f"{left} trial(s) still to be run" if left else ""

    @property
    def exit_code(self) -> int:
        """What the command ``search`` ends with: 0; 1 when no trial gave a result; 75 (try again later) when the search gave up after some
        had; 130 when it was interrupted."""
        ranked = bool(ranking(self.study))
        if self.ended:
            # What ends a search that had results before is to be mended, and the search to be continued.
            return {INTERRUPTED: 130, OUT_OF_TIME: 0}.get(self.ended, os.EX_TEMPFAIL if ranked else 1)
        return 0 if ranked else 1

    @property
    def best(self) -> Exported:
        """The configuration with the best Dice of those that ran their whole budget within the constraints; it is on the Pareto front.

        Raises:
            UserError: There is none yet.
        """
        return self.export()

    def export(self, trial: int | None = None) -> Exported:
        """The configuration of a trial by its number; ``None``: see ``best``.

        Raises:
            UserError: No such trial, or none that ran its whole budget.
        """
        # Where `retrain` would not find the study by its name, the configuration carries the split itself.
        text, _ = export_trial(self.stored, trial, ids=not self.folder.is_relative_to(paths.studies()))
        values = yaml.safe_load(text)
        return Exported(Experiment.from_dict(values["experiment"]), values["provenance"], text)

    def trials(self) -> tuple[TrialResult, ...]:
        """Every trial that has begun, by number."""
        return tuple(map(self.of_stored, self._begun()))

    def trial(self, number: int) -> TrialResult:
        """One trial.

        Raises:
            UserError: There is none of this number.
        """
        found = {t.number: t for t in self._begun()}
        if number not in found:
            raise UserError(f"no trial {number}", where=str(self.folder), todo=f"there are {len(found)} trials")
        return self.of_stored(found[number])

    def front(self) -> tuple[TrialResult, ...]:
        """The Pareto front, best Dice first: no other trial is better in one objective and as good in all others.

        With one objective it is the best trial alone; empty while no trial has run its whole budget.
        """
        return tuple(map(self.of_stored, front(self.study) if len(self.study.directions) > 1 else ranking(self.study)[:1]))

    def dataframe(self) -> pd.DataFrame:
        """One row for each trial, by number, with its parameters as columns; not searched in a trial: NaN."""
        import pandas as pd

        rows = [
            {
                "state": t.state, "val_dice": t.value, "epochs": max(t.values, default=0), "failure": t.failure,
                **{name: value for name, value in t.objectives.items() if name != "val_dice"}, **t.parameters,
            }
            for t in self.trials()
        ]  # fmt: skip
        return pd.DataFrame(rows, index=pd.Index([t.number for t in self.trials()], name="trial"))

    def importance(self, evaluator: Any = None) -> dict[str, float]:
        """How much each parameter decides the validation Dice, most important first; the values sum to 1.

        Only trials that ran their whole budget are looked at, and these a pruner has chosen: a value that is always stopped early, however
        much it matters, is missing. Parameters that are not in all of these trials, such as those with ``when``, are left out.

        Args:
            evaluator: Of ``optuna.importance``; ``None``: ``PedAnovaImportanceEvaluator``.

        Raises:
            UserError: Fewer than ten such trials, or nothing that differs between them.
        """
        complete = ranking(self.study)
        if len(complete) < FEWEST:
            raise UserError(
                f"{len(complete)} trials ran their whole budget; of fewer than {FEWEST} the importance of parameters would be noise",
                where=f"study {self.name!r}",
                todo="search for more trials",
            )
        with warnings.catch_warnings():
            # Of what makes a target low: PED-ANOVA asks for that, and says so each time.
            warnings.simplefilter("ignore", UserWarning)
            found = optuna.importance.get_param_importances(self.study, evaluator=evaluator, target=lambda t: -(best_value(t) or 0.0))
        if not found:
            raise UserError("no parameter differs between the trials that ran their whole budget", where=f"study {self.name!r}")
        return found

    @property
    def certainty(self) -> Certainty:
        """How well early epochs tell the end, what decides the Dice at each rung (from all trials), and what more trials would gain."""
        return Certainty(self.study, self.space)

    def _begun(self) -> list[FrozenTrial]:
        return tried(self.study)

    def of_stored(self, trial: FrozenTrial) -> TrialResult:
        """What a trial of Optuna's means here."""
        failure, message = trial.user_attrs.get("failure"), trial.user_attrs.get("message", "")
        return TrialResult(
            number=trial.number,
            state=_ENDS.get(trial.state) or ("interrupted" if self._is_left(trial) else "running"),
            parameters=dict(trial.params),
            value=best_value(trial),
            values=dict(trial.intermediate_values),
            objectives=dict(zip(self.space.study.objectives, trial.values or (), strict=False)),
            failure=f"{failure}: {message}" if failure and trial.state == TrialState.FAIL else "",
            folder=self.stored.folder.trial(trial.number).path,
            _study=self,
        )

    def _is_left(self, trial: FrozenTrial) -> bool:
        """Whether nobody runs a trial that the study counts as running."""
        return bool(trial.user_attrs.get(INTERRUPTION)) or not self.stored.holder


def open_study(name: str | Path, *, storage: str | None = None) -> StudyResult:
    """Opens a study to read it, finished or not, also while another process runs it. Nothing is changed.

    Args:
        name: Of a study in the home folder; or the path of a study's folder, as a ``Path`` or with a slash in it.
        storage: Database URL of the study; by default ``GUIDINO_TUNE_STORAGE``, or the journal in its folder.

    Raises:
        UserError: There is no such study, or its trials are in another storage.

    Example:
        >>> result = open_study("small")
        >>> result
        <study 'small': 4 trials, best validation Dice 0.7000; 1 trial(s) still to be run>
        >>> [(t.number, t.state, t.value) for t in result.trials()]
        [(0, 'complete', 0.5), (1, 'complete', 0.7), (2, 'stopped early', 0.1), (3, 'interrupted', 0.3)]
        >>> result.best.provenance["trial"], result.best.experiment.training.lr
        (1, 0.002)
        >>> result.dataframe()["epochs"].to_list()
        [4, 4, 1, 1]
    """
    return StudyResult(stored_study(name, storage), storage=storage)


Listener = Callable[[int, EpochRecord | None], None]


def callback_listener(callbacks: tuple[Callback, ...], result: StudyResult) -> Listener:
    """Calls every callback for each change that a driver tells; an exception in one becomes a ``UserError`` that names it."""

    def tell(number: int, record: EpochRecord | None) -> None:
        trial = result.of_stored(stored_trial(result.study, number))
        if record is None and trial.state == "interrupted":
            return
        event = "epoch_ended" if record else "trial_started" if trial.state == "running" else "trial_ended"
        for callback in callbacks:
            try:
                if method := getattr(callback, event, None):
                    method(trial, *([record] if record else []))
            except Exception as error:
                raise UserError(
                    f"{type(error).__name__} in it after {event.replace('_', ' ')} of trial {number}: {error}",
                    where=f"callback {type(callback).__name__}.{event}",
                    todo="correct it; nothing is lost, the same call goes on",
                ) from error

    return tell
