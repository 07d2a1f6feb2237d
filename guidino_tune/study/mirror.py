"""A study's database as its one driver sees it: trials are read from memory, and what belongs together is written together.

Each question for a trial reads all trials several times and writes some twenty values of the new one; with a database each of them is a
round trip. While a driver has the lease of a study, nobody else changes its trials, so it reads them once.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import functools
import json
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.study import optuna_private

PARTS = ("params", "user_attrs", "system_attrs", "intermediate_values")
"""What a trial gets piece by piece."""


class MirroredStorage(BaseStorage):
    """A database; of the study that is mirrored, trials are also in memory.

    Args:
        database: Where everything is kept.
    """

    def __init__(self, database: RDBStorage) -> None:
        self.database, self.inner = database, optuna.storages.get_storage(database)
        self.gathering = 0
        self._lock = threading.RLock()
        self._study: int | None = None
        self._trials: dict[int, FrozenTrial] = {}
        self._ids: dict[int, int] = {}
        self._distributions: dict[str, BaseDistribution] = {}
        self._pending: dict[tuple[int, str, str | int], tuple[Any, bool]] = {}

    def begin(self, study_id: int) -> None:
        """Reads the trials of a study that from now on are changed by nobody but this object."""
        with self._lock:
            self.end()
            for trial in self.inner.get_all_trials(study_id, deepcopy=False):
                self._take(trial)
            self._study = study_id

    def end(self) -> None:
        """Whoever asks is answered by the database again."""
        with self._lock:
            self._study = None
            for known in (self._trials, self._ids, self._distributions, self._pending):
                known.clear()

    def flush(self) -> None:
        """Writes what was gathered: of each trial in one transaction. It may be called again after an error."""
        with self._lock:
            for trial_id in dict.fromkeys(trial_id for trial_id, *_ in self._pending):
                found = {key[1:]: value for key, value in self._pending.items() if key[0] == trial_id}
                rows, known = {key: written for key, (written, _) in found.items()}, {key for key, (_, there) in found.items() if there}
                optuna_private.write_together(self.database, trial_id, rows, known)
                for part, name in rows:
                    del self._pending[trial_id, part, name]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See ``BaseStorage``."""
        with self._lock:
            if study_id != self._study:
                return self.inner.create_new_trial(study_id, template_trial)
            made = optuna_private.create_trial(self.database, study_id, template_trial)
            if made.number != len(self._trials):
                # A connection that broke left a trial behind, or somebody queued one. A trial's place in the list is its number.
                for trial in self.inner.get_all_trials(study_id, deepcopy=False):
                    if trial.number < made.number and trial.number not in self._ids:
                        self._take(trial)
            return self._take(made)

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution) -> None:
        """See ``BaseStorage``."""
        with self._lock:
            if (trial := self._trials.get(trial_id)) is None:
                return self.inner.set_trial_param(trial_id, param_name, param_value_internal, distribution)
            if param_name in self._distributions:
                check_distribution_compatibility(self._distributions[param_name], distribution)
            self._distributions.setdefault(param_name, distribution)
            self._put(
                trial_id, "params", param_name, (param_value_internal, distribution), distribution.to_external_repr(param_value_internal)
            )
            told = self._trials[trial_id]
            told.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See ``BaseStorage``."""
        self._set_attr("user_attrs", trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See ``BaseStorage``."""
        self._set_attr("system_attrs", trial_id, key, value)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See ``BaseStorage``."""
        with self._lock:
            if trial_id not in self._trials:
                return self.inner.set_trial_intermediate_value(trial_id, step, intermediate_value)
            self._put(trial_id, "intermediate_values", step, intermediate_value, intermediate_value)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See ``BaseStorage``."""
        with self._lock:
            if trial_id not in self._trials:
                return self.inner.set_trial_state_values(trial_id, state, values)
            self.flush()
            # Where this is refused the trial is other than here: a connection broke after it had done its work, or somebody else wrote.
            try:
                done = self.database.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                self._take(self.inner.get_trial(trial_id))
                raise
            if not done:
                self._take(self.inner.get_trial(trial_id))
                return False
            told = self._trials[trial_id] = copy.copy(self._trials[trial_id])
            told.state, told.values = state, values if values is None else list(values)
            if state == TrialState.RUNNING:
                told.datetime_start = datetime.now()
            if state.is_finished():
                told.datetime_complete = datetime.now()
            return True

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See ``BaseStorage``."""
        with self._lock:
            if (trial := self._trials.get(trial_id)) is None:
                return self.inner.get_trial(trial_id)
            mine = copy.copy(trial)  # whoever asks for one trial writes into it
            for part in (*PARTS, "distributions"):
                setattr(mine, part, dict(getattr(trial, part)))
            return mine

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """See ``BaseStorage``."""
        with self._lock:
            if study_id != self._study:
                return self.inner.get_all_trials(study_id, deepcopy, states)
            trials = [trial for trial in self._trials.values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """See ``BaseStorage``."""
        with self._lock:
            if study_id == self._study and trial_number in self._ids:
                return self._ids[trial_number]
        return self.inner.get_trial_id_from_study_id_trial_number(study_id, trial_number)

    def _take(self, trial: FrozenTrial) -> int:
        trial_id = optuna_private.trial_id(trial)
        self._trials[trial_id], self._ids[trial.number] = trial, trial_id
        for name, distribution in trial.distributions.items():
            self._distributions.setdefault(name, distribution)
        return trial_id

    def _set_attr(self, part: str, trial_id: int, key: str, value: Any) -> None:
        with self._lock:
            if trial_id not in self._trials:
                setter = self.inner.set_trial_user_attr if part == "user_attrs" else self.inner.set_trial_system_attr
                return setter(trial_id, key, value)
            self._put(trial_id, part, key, value, json.loads(json.dumps(value)))  # as it would be read

    def _put(self, trial_id: int, part: str, name: str | int, written: Any, value: Any) -> None:
        trial = self._trials[trial_id]
        self.check_trial_is_updatable(trial_id, trial.state)
        before = getattr(trial, part)
        if name not in before or repr(before[name]) != repr(value):
            told = self._trials[trial_id] = copy.copy(trial)  # lists that were given out stay as they were
            setattr(told, part, {**before, name: value})
            _, there = self._pending.get((trial_id, part, name), (None, name in before))
            self._pending[trial_id, part, name] = written, there
        if not self.gathering:  # also what is told again after it could not be written
            self.flush()


def _asked_of_the_database(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(BaseStorage, name), updated=())  # its own attributes say that it is abstract
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.inner, name)(*args, **kwargs)

    return method


for _name in sorted(MirroredStorage.__abstractmethods__):
    setattr(MirroredStorage, _name, _asked_of_the_database(_name))
abc.update_abstractmethods(MirroredStorage)  # type: ignore[type-abstract]


def mirror_of(study: optuna.Study) -> MirroredStorage | None:
    """The mirror through which a study is read; ``None`` for one in a journal or in memory."""
    storage = optuna_private.storage(study)
    inner = getattr(storage, "inner", None)
    return storage if isinstance(storage, MirroredStorage) else inner if isinstance(inner, MirroredStorage) else None


@contextlib.contextmanager
def gathered(study: optuna.Study) -> Iterator[None]:
    """What is told of trials within the block goes to the study's database at its end, or with ``flush``.

    After an error it is not written, unless more is told: the next run takes the trials up as if this one had been killed before.
    """
    if (mirror := mirror_of(study)) is None:
        yield
        return
    mirror.gathering += 1
    try:
        yield
    finally:
        mirror.gathering -= 1
    flush(study)


def flush(study: optuna.Study) -> None:
    """Writes what was gathered, and waits for a database that is away."""
    if mirror_of(study):
        optuna_private.storage(study).flush()  # type: ignore[attr-defined]
