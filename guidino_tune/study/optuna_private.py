"""All that this package uses of Optuna beyond its public interface. ``tests/unit/test_private_attributes.py`` names what each must mean."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

Entry = tuple[str, str | int]
"""A piece of a trial: the attribute of ``FrozenTrial``, and the name there."""


def stored_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """One trial as it is stored, at the same cost however many there are; not to be changed. ``get_trials`` makes a list of all."""
    storage = study._storage
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def running_trial(study: optuna.Study, frozen: FrozenTrial) -> optuna.Trial:
    """A stored trial that runs, to go on with; ``ask`` would begin another."""
    return optuna.Trial(study, frozen._trial_id)


def report(trial: optuna.Trial, value: float, epoch: int) -> None:
    """Stores a value of one epoch. Of a study with several objectives Optuna refuses it, for it has no rule to prune by them; the study is
    to know its epochs all the same."""
    if len(trial.study.directions) == 1:
        trial.report(value, epoch)
    else:
        trial.storage.set_trial_intermediate_value(trial._trial_id, epoch, value)


def trial_id(trial: FrozenTrial) -> int:
    """By which a storage knows a trial."""
    return trial._trial_id


def study_id(study: optuna.Study) -> int:
    """By which a storage knows a study."""
    return study._study_id


def create_trial(database: RDBStorage, study: int, template: FrozenTrial | None) -> FrozenTrial:
    """Adds a trial to a study in a database, and gives it without reading it again."""
    return database._create_new_trial(study, template)


def write_together(database: RDBStorage, trial: int, rows: Mapping[Entry, Any], known: Collection[Entry] = ()) -> None:
    """Writes parameters, attributes and values of epochs of one trial in one transaction, with a statement for each kind.

    Args:
        database: Where to.
        trial: By its id.
        rows: By kind (the attribute of ``FrozenTrial``) and name; of a parameter its value as it is stored, and its distribution.
        known: Of these, what the trial has already: it is written over. Where more is there, all is written over.

    Raises:
        UpdateFinishedTrialError: The trial is closed.
    """
    from optuna.storages._rdb import models
    from optuna.storages._rdb.storage import _create_scoped_session
    from sqlalchemy import delete, insert
    from sqlalchemy.exc import IntegrityError

    def row(kind: str, value: Any) -> dict[str, Any]:
        if kind == "params":
            return {"param_value": value[0], "distribution_json": optuna.distributions.distribution_to_json(value[1])}
        if kind == "intermediate_values":
            number, sort = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
            return {"intermediate_value": number, "intermediate_value_type": sort}
        return {"value_json": json.dumps(value)}

    tables: dict[str, tuple[Any, Any]] = {
        "params": (models.TrialParamModel, models.TrialParamModel.param_name),
        "user_attrs": (models.TrialUserAttributeModel, models.TrialUserAttributeModel.key),
        "system_attrs": (models.TrialSystemAttributeModel, models.TrialSystemAttributeModel.key),
        "intermediate_values": (models.TrialIntermediateValueModel, models.TrialIntermediateValueModel.step),
    }
    try:
        with _create_scoped_session(database.scoped_session) as session:
            stored: Any = models.TrialModel.find_or_raise_by_id(trial, session)
            database.check_trial_is_updatable(trial, stored.state)
            for kind, (table, column) in tables.items():
                found = {name: value for (k, name), value in rows.items() if k == kind}
                if former := [name for name in found if (kind, name) in known]:
                    session.execute(delete(table).where(table.trial_id == trial, column.in_(former)))
                if found:
                    session.execute(insert(table), [{"trial_id": trial, column.key: n, **row(kind, v)} for n, v in found.items()])
    except IntegrityError:
        if len(known) == len(rows):
            raise
        # A connection broke after it had done its work.
        write_together(database, trial, rows, rows.keys())


def storage(study: optuna.Study) -> BaseStorage:
    """Where a study is kept."""
    return study._storage


def backend(study: optuna.Study) -> object:
    """What the study's storage writes through: of a journal, its file."""
    return getattr(study._storage, "_backend", None)


def seed(sampler: RandomSampler, seeds: Sequence[int]) -> None:
    """Lets the next random number follow from ``seeds``; ``reseed_rng`` takes one from the machine."""
    sampler._rng.rng.seed(seeds)


def changes(study: optuna.Study, mark: int) -> tuple[Mapping[int, FrozenTrial], Iterable[int], int] | None:
    """What a journal of one study tells of its trials since a ``mark``, see ``ListedJournal``; ``None`` where nothing tells it."""
    return study._storage.changes(mark) if isinstance(study._storage, ListedJournal) else None


class ListedJournal(JournalStorage):
    """A journal of one study, whose trials are not gone through for each question and each rung."""

    _begun = 0

    def __init__(self, log_storage: BaseJournalBackend) -> None:
        self._changed = array("q")
        super().__init__(log_storage)

    def _sync_with_backend(self) -> None:
        self._replay_result.apply_logs(self._noted(self._backend.read_logs(self._replay_result.log_number_read)))

    def _noted(self, logs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for log in logs:
            if "trial_id" in log:
                self._changed.append(log["trial_id"])
            yield log

    def changes(self, mark: int) -> tuple[Mapping[int, FrozenTrial], Iterable[int], int] | None:
        """The trials by number, those that changed since the ``mark``, 0 at first, and the next mark; ``None`` beside another study.

        A trial that is new is not among them before it changes.
        """
        with self._thread_lock:
            self._sync_with_backend()
            if len(self._replay_result._studies) != 1:
                return None
            return MappingProxyType(self._replay_result._trials), set(self._changed[mark:]), len(self._changed)

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """See ``BaseStorage``; a trial that has begun does not wait again, so those at the front are not looked at a second time."""
        waiting = states == (TrialState.WAITING,)
        with self._thread_lock:
            self._sync_with_backend()
            trials, alone = self._replay_result._trials, len(self._replay_result._studies) == 1
            if alone and waiting and not deepcopy:
                found = [trials[number] for number in range(self._begun, len(trials)) if trials[number].state == TrialState.WAITING]
                self._begun = found[0].number if found else len(trials)
                return found
            if alone and states is None and not deepcopy:
                return list(trials.values())
        return super().get_all_trials(study_id, deepcopy, states)
