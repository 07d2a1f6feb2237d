"""All that this package uses of Optuna beyond its public interface. ``tests/unit/test_private_attributes.py`` names what each must mean."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import islice

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, JournalStorage
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


class ListedJournal(JournalStorage):
    """A journal of one study, whose trials are listed without a loop: each question for a trial and each rung asks for all of them."""

    _begun = 0

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """See ``BaseStorage``; a trial that has begun does not wait again, so those at the front are not looked at a second time."""
        waiting = states == (TrialState.WAITING,)
        with self._thread_lock:
            self._sync_with_backend()
            trials, alone = list(self._replay_result._trials.values()), len(self._replay_result._studies) == 1
        if deepcopy or not (states is None or waiting) or not alone:
            return super().get_all_trials(study_id, deepcopy, states)
        if not waiting:
            return trials
        found = [trial for trial in islice(trials, self._begun, None) if trial.state == TrialState.WAITING]
        self._begun = found[0].number if found else len(trials)
        return found
