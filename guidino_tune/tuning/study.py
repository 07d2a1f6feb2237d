"""The study and its folder: the only state of a search, opened, resumed or extended by the same call."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from guidino_tune.config import Study
from guidino_tune.config.parsing import read_yaml
from guidino_tune.data.rules import RULES
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, read_space
from guidino_tune.training.failures import INFEASIBLE
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.tuning.journal import mend_journal, open_storage, sync_to_disk
from guidino_tune.tuning.locking import hold, holder
from guidino_tune.tuning.objectives import directions, feasible
from guidino_tune.tuning.outcomes import REPEATED, Outcomes, as_key
from guidino_tune.tuning.sampling import LATEST, RecentTPESampler, RepeatingRandomSampler

SAMPLERS: dict[str, Callable[[Space, int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda space, seed: RecentTPESampler(
        seed=seed,
        n_startup_trials=space.study.startup_trials,
        multivariate=True,
        group=True,
        constant_liar=True,
        latest=LATEST if len(space.study.objectives) == 1 else None,
    ),
    "random": lambda space, seed: RepeatingRandomSampler(seed),
    "listed": lambda space, seed: ListedSampler(space.first_trials),
}
"""From a space and the seed of the study."""

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
        self.rules = path / RULES
        self.ledger = path / "mlflow-sent.jsonl"
        self.best = path / "best.yaml"
        self.reports = path / "reports"
        self.ray = path / "ray"

    def trial(self, number: int) -> TrialFolder:
        """The folder of one trial."""
        return TrialFolder(self.path / "trials" / f"{number:05d}")

    def lock(self, work: str = "search", todo: str = "wait for it, stop it, or start another study with --name") -> Any:
        """Holds the study for this process until it ends, however it ends.

        Args:
            work: What is done with the study under this lock, for the message to who comes second.
            todo: What that person can do.

        Raises:
            UserError: Another process works on this study.
        """
        return hold(self.path / "driver.lock", work, todo)

    def holder(self) -> str:
        """Who holds the study; empty when nobody does."""
        return holder(self.path / "driver.lock")


def open_study(space: Space, folder: StudyFolder, storage: str | None = None) -> optuna.Study:
    """Creates the study, or opens it again after checking that it is the same search.

    Args:
        space: What is searched; its first trials are queued when the study is new.
        folder: Of the study.
        storage: A database URL for teams; by default a journal file in the folder.

    Raises:
        UserError: The folder holds a study of another space; the storage cannot be opened, or its trials are in another one.
    """
    wanted = space.to_dict()
    check_same_search(space, folder)
    mend_journal(folder.journal)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=space.study.name,
        storage=open_storage(folder.journal, storage, name=space.study.name, new=not folder.definition.exists()),
        directions=directions(space.study),
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = SAMPLERS[space.study.sampler](space, space.study.seed)
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


def is_stopped(study: optuna.Study, settings: Study, trial: FrozenTrial) -> bool:
    """True when a running trial is to end at its newest epoch, which a driver that died could not say, or not record.

    Optuna's pruner notes that a trial has passed a rung before it compares, and does not compare a second time.
    """
    last, epochs = trial.last_step, trial.user_attrs.get("epochs", 0)
    if last not in rungs(settings, epochs)[:-1]:
        return False
    key = f"completed_rung_{rungs(settings, epochs).index(last)}"
    if key not in trial.system_attrs:
        return study.pruner.prune(study, trial)
    values = sorted(t.system_attrs[key] for t in study.get_trials(deepcopy=False) if key in t.system_attrs)
    return bool(trial.system_attrs[key] < values[-max(1, len(values) // settings.reduction_factor)])


class ListedSampler(optuna.samplers.BaseSampler):
    """Gives every listed set of values to one trial: those without a result first that were tried least often.

    A set that failed twice the same way is not given again, see ``guidino_tune.tuning.outcomes``.

    Args:
        listed: Values by path; all have the same paths.

    Attributes:
        outcomes: Of the run that asks; ``None`` counts those of earlier runs.
    """

    def __init__(self, listed: Sequence[Values]) -> None:
        self.listed = listed
        self.outcomes: Outcomes | None = None
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
            lost = (self.outcomes or Outcomes(others, 0)).hopeless
            open_sets = [
                values
                for values in unfinished(self.listed, [t for t in others if t.state == TrialState.RUNNING or counts_as_finished(t)])
                # A driver may have died between two values of a set.
                if as_key(values) not in lost and trial.params.items() <= values.items()
            ]
            if not open_sets:
                raise RuntimeError("every listed trial has its result or runs; nothing is left to ask for")
            tried = Counter(as_key(t.params) for t in others)
            self._chosen[trial.number] = min(open_sets, key=lambda values: tried[as_key(values)])
        return self._chosen[trial.number][param_name]


def unfinished(listed: Sequence[Values], trials: Sequence[FrozenTrial]) -> list[Values]:
    """The listed sets of values that none of these trials has."""
    known = {as_key(trial.params) for trial in trials}
    return [values for values in listed if as_key(values) not in known]


def remaining(study: optuna.Study, space: Space, outcomes: Outcomes | None = None) -> int:
    """How many trials are still to be finished; listed ones that failed twice the same way are not.

    Args:
        study: The study.
        space: What it searches.
        outcomes: Of the run that asks; ``None`` asks for a run to come.
    """
    if space.study.sampler == LISTED:
        lost = (outcomes or Outcomes(study.get_trials(deepcopy=False), 0)).hopeless
        return sum(as_key(values) not in lost for values in unfinished(space.first_trials, finished(study)))
    return max(0, space.study.trials - len(finished(study)))


def without_result(study: optuna.Study, space: Space) -> list[str]:
    """A line for each listed set of values whose trials all failed through no fault of theirs, with the last reason."""
    if space.study.sampler != LISTED:
        return []
    failed = {as_key(t.params): t for t in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))}
    tried = [(values, failed[as_key(values)]) for values in unfinished(space.first_trials, finished(study)) if as_key(values) in failed]
    return [f"no result: {dict(values)} ({t.user_attrs.get('failure')}: {t.user_attrs.get('message', '')[:200]})" for values, t in tried]


def orphans(study: optuna.Study, space: Space) -> list[FrozenTrial]:
    """Trials that a dead driver left running; of a list only those that are asked for now."""
    running = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
    if space.study.sampler == LISTED:
        # One whose driver died while it got its values has some of them, or none.
        return [t for t in running if any(t.params.items() <= values.items() for values in space.first_trials)]
    return running


def check_there(folder: StudyFolder) -> None:
    """Raises where no study is.

    Raises:
        UserError: Names the studies that there are.
    """
    if not folder.definition.exists():
        known = ", ".join(sorted(p.parent.name for p in folder.path.parent.glob("*/study.yaml")))
        todo = f"studies: {known}" if known else "run `guidino-tune search` first, or name --home"
        raise UserError("no such study", where=str(folder.path), todo=todo)


def load_study(folder: StudyFolder, storage: str | None = None) -> optuna.Study:
    """Opens an existing study to read it.

    Raises:
        UserError: There is none, or its trials are in another storage.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_there(folder)
    name = read_yaml(folder.definition)["study"]["name"]
    try:
        return optuna.load_study(study_name=name, storage=open_storage(folder.journal, storage, name=name))
    except KeyError:
        raise UserError(
            f"the journal holds no study {name!r}", where=str(folder.journal), todo="restore the file from a copy, or search again"
        ) from None


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
        moved = any(".guide.backbone" in path for path in changed)
        elsewhere = ", and name the folder of a backbone that has only moved by --backbone DIR" if moved else ""
        raise UserError(
            f"this study was started with other settings ({shown}{more}); its trials could not be compared with new ones",
            where=where,
            todo=f"repeat the first command to continue it{elsewhere}, or start another study with --name",
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
    """True when it is complete, stopped early, or infeasible. One that failed for another reason is made up for by a new one.

    So is one that was not run because its values had failed twice before.
    """
    if trial.state == TrialState.FAIL:
        return trial.user_attrs.get("failure") in INFEASIBLE and REPEATED not in trial.user_attrs
    return trial.state.is_finished()


def best_value(trial: FrozenTrial) -> float | None:
    """The trial's best validation Dice at any epoch: the epoch whose weights are kept."""
    return max(trial.intermediate_values.values(), default=None)


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ran their whole budget within the constraints, best Dice first; one stopped early is never ranked before them."""
    return sorted(filter(feasible, study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))), key=rank)


def front(study: optuna.Study) -> list[FrozenTrial]:
    """The Pareto front of a study with several objectives, best Dice first: no trial is better in one and as good in all others.

    Only trials that ran their whole budget within the constraints count; a study with one objective has no front.
    """
    return sorted(study.best_trials, key=rank) if len(study.directions) > 1 else []


def rank(trial: FrozenTrial) -> tuple[float, ...]:
    """What complete trials are sorted by: Dice, best first, then other objectives, which are all minimised, then the number."""
    several = trial.values if len(trial.values) > 1 else []
    return -float((best_value(trial) if several else trial.value) or 0.0), *several, trial.number
