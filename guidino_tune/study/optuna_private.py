"""All that this package uses of Optuna beyond its public interface. ``tests/unit/test_private_attributes.py`` names what each must mean."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState


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
