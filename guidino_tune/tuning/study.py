"""The study and its folder: the only state of a search, opened, resumed or extended by the same call."""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.config import Study
from guidino_tune.config.parsing import read_yaml
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, read_space
from guidino_tune.training.failures import INFEASIBLE
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.tuning.journal import Journal, sync_to_disk
from guidino_tune.tuning.sampling import RecentTPESampler

SAMPLERS: dict[str, Callable[[Space, int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda space, seed: RecentTPESampler(
        seed=seed, n_startup_trials=space.study.startup_trials, multivariate=True, group=True, constant_liar=True
    ),
    "random": lambda space, seed: optuna.samplers.RandomSampler(seed=seed),
    "listed": lambda space, seed: ListedSampler(space.first_trials),
}
"""From a space and the seed of this run."""

PRUNERS: dict[str, Callable[[Study], optuna.pruners.BasePruner]] = {
    "asha": lambda s: optuna.pruners.SuccessiveHalvingPruner(min_resource=s.min_epochs, reduction_factor=s.reduction_factor),
    "none": lambda s: optuna.pruners.NopPruner(),
}

VALIDATIONS = 20
"""About how often a trial is validated over its whole budget, unless ``study.validate_every`` says otherwise."""

FREE_TO_CHANGE = ("study.trials", "study.time_budget", "resources.", "experiment.data.root")
"""What may differ when a study goes on: everything else decides which trials are comparable."""

LISTED = "listed"


class StudyFolder:
    """Where a study lives: ``study.yaml``, ``optuna.journal``, ``split.json`` and a folder for each trial."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.definition = path / "study.yaml"
        self.journal = path / "optuna.journal"
        self.split = path / "split.json"
        self.ledger = path / "mlflow-sent.jsonl"
        self.best = path / "best.yaml"
        self.reports = path / "reports"
        self.ray = path / "ray"

    def trial(self, number: int) -> TrialFolder:
        """The folder of one trial."""
        return TrialFolder(self.path / "trials" / f"{number:05d}")

    def lock(self) -> Any:
        """Holds the study for this process until it ends, however it ends.

        Raises:
            UserError: Another process searches this study.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "driver.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"this file system keeps no locks ({error}), so two searches could not be told apart",
                    where=str(self.path),
                    todo="choose another folder with --home or GUIDINO_TUNE_HOME, or mount it with locks",
                ) from None
            file.seek(0)
            raise UserError(
                f"another search works on this study ({file.read().strip() or 'its process is unknown'})",
                where=str(self.path),
                todo="wait for it, stop it, or start another study with --name",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        return file


def open_study(space: Space, folder: StudyFolder, storage: str | None = None) -> optuna.Study:
    """Creates the study, or opens it again after checking that it is the same search.

    Args:
        space: What is searched; its first trials are queued when the study is new.
        folder: Of the study.
        storage: A database URL for teams; by default a journal file in the folder.

    Raises:
        UserError: The folder holds a study of another space; the storage cannot be opened.
    """
    wanted = space.to_dict()
    check_same_search(space, folder)
    mend_journal(folder.journal)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=space.study.name,
        storage=_storage(folder, storage),
        direction="maximize",
        load_if_exists=True,
        pruner=PRUNERS[space.study.pruner](space.study),
    )
    # A database may hold a study that another folder started.
    if "definition" in study.user_attrs:
        _compare(study.user_attrs["definition"], wanted, str(storage or folder.path))
    study.set_user_attr("definition", wanted)
    if space.study.sampler != LISTED:
        for values in space.first_trials:
            study.enqueue_trial(dict(values), skip_if_exists=True)
    sync_to_disk(study)
    # Written last: a study without it is created again from the start, and queues nothing twice.
    write_text(folder.definition, yaml.safe_dump(wanted, sort_keys=False))
    # A study that goes on must not draw the numbers of its first run again.
    started = sum(t.state != TrialState.WAITING for t in study.get_trials(deepcopy=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = SAMPLERS[space.study.sampler](space, space.study.seed + 7919 * started)
    return study


def validated_epochs(study: Study, epochs: int) -> tuple[int, ...]:
    """The epochs, from 1, that a trial validates: the pruner's rungs, the last epoch, and those that ``study.validate_every`` asks for.

    Args:
        study: Its settings.
        epochs: Budget of the trial.

    Returns:
        In ascending order; a rung is an epoch at which the trial may be stopped, and only a validated epoch can be compared.
    """
    every = study.validate_every or max(1, epochs // VALIDATIONS)
    return tuple(sorted({*range(every, epochs + 1, every), *rungs(study, epochs)}))


def rungs(study: Study, epochs: int) -> tuple[int, ...]:
    """The epochs, from 1, after which a trial of ``epochs`` epochs may end: those at which trials are compared, and the last."""
    found, rung = [], study.min_epochs
    while study.pruner == "asha" and rung < epochs:
        found.append(rung)
        rung *= study.reduction_factor
    return (*found, epochs)


class ListedSampler(optuna.samplers.BaseSampler):
    """Gives every listed set of values to one trial: those without a result first that were tried least often.

    Args:
        listed: Values by path; all have the same paths.
    """

    def __init__(self, listed: Sequence[Values]) -> None:
        self.listed = listed
        self._chosen: dict[int, Values] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, optuna.distributions.BaseDistribution]:
        """Nothing is drawn together."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, optuna.distributions.BaseDistribution]
    ) -> dict[str, Any]:
        """See ``infer_relative_search_space``."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: optuna.distributions.BaseDistribution
    ) -> Any:
        """The value of the set that this trial got."""
        if trial.number not in self._chosen:
            others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
            open_sets = unfinished(self.listed, [t for t in others if t.state == TrialState.RUNNING or counts_as_finished(t)])
            if not open_sets:
                raise RuntimeError("every listed trial has its result or runs; nothing is left to ask for")
            tried = Counter(_key(t.params) for t in others)
            self._chosen[trial.number] = min(open_sets, key=lambda values: tried[_key(values)])
        return self._chosen[trial.number][param_name]


def unfinished(listed: Sequence[Values], trials: Sequence[FrozenTrial]) -> list[Values]:
    """The listed sets of values that none of these trials has."""
    known = {_key(trial.params) for trial in trials}
    return [values for values in listed if _key(values) not in known]


def _key(values: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    return frozenset(values.items())


def remaining(study: optuna.Study, space: Space) -> int:
    """How many trials are still to be finished."""
    if space.study.sampler == LISTED:
        return len(unfinished(space.first_trials, finished(study)))
    return max(0, space.study.trials - len(finished(study)))


def orphans(study: optuna.Study, space: Space) -> list[FrozenTrial]:
    """Trials that a dead driver left running; of a list only those that are asked for now."""
    running = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
    if space.study.sampler == LISTED:
        listed = {_key(values) for values in space.first_trials}
        return [t for t in running if _key(t.params) in listed]
    return running


def mend_journal(journal: Path) -> None:
    """Cuts off a last line that a crash left unfinished; with the next one glued to it, the whole study could not be read."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        tail = b""
        while size and b"\n" not in tail:
            start = max(0, size - 65536)
            file.seek(start)
            tail, size = file.read(size - start) + tail, start
        whole = size + tail.rfind(b"\n") + 1
        if whole < size + len(tail):
            file.truncate(whole)


def load_study(folder: StudyFolder, storage: str | None = None) -> optuna.Study:
    """Opens an existing study to read it.

    Raises:
        UserError: There is none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not folder.definition.exists():
        known = sorted(p.parent.name for p in folder.path.parent.glob("*/study.yaml"))
        raise UserError(
            "no study here", where=str(folder.path), todo=f"studies: {', '.join(known)}" if known else "run `guidino-tune search` first"
        )
    return optuna.load_study(study_name=read_yaml(folder.definition)["study"]["name"], storage=_storage(folder, storage))


def _storage(folder: StudyFolder, url: str | None) -> BaseStorage | str:
    if url is not None:
        return url
    folder.path.mkdir(parents=True, exist_ok=True)
    return JournalStorage(Journal(str(folder.journal)))


def check_same_search(space: Space, folder: StudyFolder) -> None:
    """Raises when the folder holds a study whose trials could not be compared with new ones.

    Raises:
        UserError: Names what differs.
    """
    if not folder.definition.exists():
        return
    _compare(read_yaml(folder.definition), space.to_dict(), str(folder.path))


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    old, new = _flat(_renewed(before)), _flat(now)
    # A list may grow or shrink: its trials are compared with each other, whichever of them are asked for today.
    free = (*FREE_TO_CHANGE, "first_trials") if now["study"]["sampler"] == LISTED else FREE_TO_CHANGE
    changed = [p for p in sorted(old.keys() | new.keys()) if old.get(p) != new.get(p) and not _is_free(p, free)]
    if changed:
        shown = "; ".join(f"{p}: {old.get(p, 'absent')} -> {new.get(p, 'absent')}" for p in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"this study was started with other settings ({shown}{more}); its trials could not be compared with new ones",
            where=where,
            todo="repeat the first command to continue it, or start another study with --name",
        )


def _renewed(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored definition with the fields that later versions added, at their defaults."""
    try:
        return read_space(stored, source="stored study").to_dict()
    except UserError:
        return stored


def _is_free(path: str, free: tuple[str, ...]) -> bool:
    return path.startswith(free) or (path.startswith("recipes.") and path.endswith(".data.root"))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): values}


def stored_trial(study: optuna.Study, number: int) -> FrozenTrial:
    """One trial as it is stored, whatever their number; not to be changed."""
    storage = study._storage
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that gave a result; see ``counts_as_finished``."""
    return [t for t in study.get_trials(deepcopy=False) if counts_as_finished(t)]


def counts_as_finished(trial: FrozenTrial) -> bool:
    """True when it is complete, stopped early, or infeasible. One that failed for another reason is made up for by a new one."""
    return trial.state.is_finished() and (trial.state != TrialState.FAIL or trial.user_attrs.get("failure") in INFEASIBLE)


def best_value(trial: FrozenTrial) -> float | None:
    """The trial's best validation Dice at any epoch: the epoch whose weights are kept."""
    return max(trial.intermediate_values.values(), default=None)


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ran their whole budget, best first; a trial stopped early is never ranked before one of them."""
    return sorted(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=rank)


def rank(trial: FrozenTrial) -> tuple[float, int]:
    """What complete trials are sorted by: the value, best first, then the number."""
    return -float(trial.value or 0.0), trial.number
