"""The study and its folder: the only state of a search, opened, resumed or extended by the same call."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.config import Study
from guidino_tune.config.parsing import read_yaml
from guidino_tune.errors import UserError
from guidino_tune.space.space import Space
from guidino_tune.training.failures import INFEASIBLE
from guidino_tune.training.folder import TrialFolder, write_text

SAMPLERS: dict[str, Callable[[Study], optuna.samplers.BaseSampler]] = {
    "tpe": lambda s: optuna.samplers.TPESampler(
        seed=s.seed, n_startup_trials=s.startup_trials, multivariate=True, group=True, constant_liar=True
    ),
    "random": lambda s: optuna.samplers.RandomSampler(seed=s.seed),
}

PRUNERS: dict[str, Callable[[Study], optuna.pruners.BasePruner]] = {
    "asha": lambda s: optuna.pruners.SuccessiveHalvingPruner(min_resource=s.min_epochs, reduction_factor=s.reduction_factor),
    "none": lambda s: optuna.pruners.NopPruner(),
}

FREE_TO_CHANGE = ("study.trials", "study.time_budget", "resources.", "experiment.data.root")
"""What may differ when a study goes on: everything else decides which trials are comparable."""


class StudyFolder:
    """Where a study lives: ``study.yaml``, ``optuna.journal``, ``split.json`` and a folder for each trial."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.definition = path / "study.yaml"
        self.journal = path / "optuna.journal"
        self.split = path / "split.json"
        self.ledger = path / "mlflow-sent.jsonl"
        self.best = path / "best.yaml"
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
    for values in space.first_trials:
        study.enqueue_trial(dict(values), skip_if_exists=True)
    # Written last: a study without it is created again from the start, and queues nothing twice.
    write_text(folder.definition, yaml.safe_dump(wanted, sort_keys=False))
    # A study that goes on must not draw the numbers of its first run again.
    started = sum(t.state != TrialState.WAITING for t in study.get_trials(deepcopy=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = SAMPLERS[space.study.sampler](dataclasses.replace(space.study, seed=space.study.seed + 7919 * started))
    return study


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
    return JournalStorage(JournalFileBackend(str(folder.journal)))


def check_same_search(space: Space, folder: StudyFolder) -> None:
    """Raises when the folder holds a study whose trials could not be compared with new ones.

    Raises:
        UserError: Names what differs.
    """
    if not folder.definition.exists():
        return
    _compare(read_yaml(folder.definition), space.to_dict(), str(folder.path))


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    old, new = _flat(before), _flat(now)
    changed = [p for p in sorted(old.keys() | new.keys()) if old.get(p) != new.get(p) and not p.startswith(FREE_TO_CHANGE)]
    if changed:
        shown = "; ".join(f"{p}: {old.get(p, 'absent')} -> {new.get(p, 'absent')}" for p in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"this study was started with other settings ({shown}{more}); its trials could not be compared with new ones",
            where=where,
            todo="repeat the first command to continue it, or start another study with --name",
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): values}


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that gave a result: complete, stopped early, or infeasible. One that failed for another reason is made up for by a new one."""
    return [
        t
        for t in study.get_trials(deepcopy=False)
        if t.state.is_finished() and (t.state != TrialState.FAIL or t.user_attrs.get("failure") in INFEASIBLE)
    ]


def best_value(trial: FrozenTrial) -> float | None:
    """The trial's best validation Dice at any epoch: the epoch whose weights are kept."""
    return max(trial.intermediate_values.values(), default=None)


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ran their whole budget, best first; a trial stopped early is never ranked before one of them."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE and t.value is not None]
    return sorted(complete, key=lambda t: (-float(t.value or 0.0), t.number))
