"""The study and its folder: the only state of a search, opened, resumed or extended by the same call."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import yaml
from optuna.trial import TrialState

from guidino_tune import paths
from guidino_tune.config.parsing import read_yaml
from guidino_tune.config.study import PRUNERS, SAMPLERS
from guidino_tune.data.rules import RULES
from guidino_tune.errors import UserError
from guidino_tune.space.space import Space, read_space
from guidino_tune.study.growing import OTHERWISE, grow, growth
from guidino_tune.study.journal import database, mend_journal, open_storage, sync_to_disk
from guidino_tune.study.lease import lease_holder
from guidino_tune.study.locking import Hold, held_since, holder, place
from guidino_tune.study.objectives import directions
from guidino_tune.study.precision import SETTLED, as_defined
from guidino_tune.study.promotion import queue_first
from guidino_tune.study.pruners import make_pruner
from guidino_tune.study.samplers import make_sampler
from guidino_tune.training.folder import TrialFolder, write_text

BEGUN_BY = "rules"
"""Attribute of a study: by which rules it was begun. Without it every trial keeps its weights, whatever ``study.keep_weights`` says, and
batch normalisation of several GPUs is each worker's own; from 1 on neither is."""

VIEWS = "share_views"
"""Attribute of a study: the ``way`` in which its trials get their views, in the place of ``resources.share_views=auto``, and ``why``."""

FREE_TO_CHANGE = (
    "study.trials",
    "study.time_budget",
    "study.stop",
    "study.keep_weights",
    "resources.",
    "experiment.data.root",
    "experiment.segmenter.pretrained",
)
"""What may differ when a study goes on: everything else decides which trials are comparable. Of a file its SHA-256 does, not the place.
Parameters may grow, see ``guidino_tune.study.growing``."""


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
        self.held: Hold | None = None

    def trial(self, number: int) -> TrialFolder:
        """The folder of one trial."""
        return TrialFolder(self.path / "trials" / f"{number:05d}")

    def split_of(self, number: int) -> Path:
        """The split of one trial: that of all."""
        return self.split

    @property
    def comparison(self) -> StudyFolder:
        """What ``compare`` trained; it is held by itself, so that a study goes on while it is compared."""
        return StudyFolder(self.path / "compare")

    def lock(self, work: str = "search", todo: str = "wait for it, stop it, or start another study with another study.name") -> Hold:
        """Holds the study for this process until it ends, however it ends; ``open_study`` then holds it in its database as well.

        Args:
            work: What is done with the study under this lock, for the message to who comes second.
            todo: What that person can do.

        Raises:
            UserError: Another process works on this study.
        """
        self.held = Hold(self.path / "driver.lock", work, todo)
        return self.held

    def holder(self) -> str:
        """Who holds the study; empty when nobody does."""
        return holder(self.path / "driver.lock")

    def held_since(self) -> float | None:
        """When it took the study; ``None`` where that is not known."""
        return held_since(self.path / "driver.lock")


class StoredStudy(NamedTuple):
    """A study as it is kept: where it lives, its trials, and what it searches."""

    folder: StudyFolder
    study: optuna.Study
    space: Space

    @property
    def holder(self) -> str:
        """Who works on it, on this machine or, of a study in a database, on any; empty when nobody does."""
        return self.folder.holder() or self.elsewhere

    @property
    def elsewhere(self) -> str:
        """Who works on it from another folder, of a study in a database; empty when nobody does."""
        return lease_holder(self.study, place(self.folder.path))


def folder_of(name: str | Path) -> StudyFolder:
    """The folder of a study by its name in the home folder; or by its path, which is a ``Path`` or has a slash in it."""
    return StudyFolder(Path(name).expanduser().absolute() if isinstance(name, Path) or "/" in name else paths.studies() / name)


def stored_study(name: str | Path, storage: str | None = None) -> StoredStudy:
    """Opens an existing study to read it, while it runs too.

    Args:
        name: See ``folder_of``.
        storage: Database URL of the study; by default the journal in its folder.

    Raises:
        UserError: There is none, its definition or journal is damaged, or its trials are in another storage.
    """
    folder = folder_of(name)
    study = load_study(folder, storage)
    return StoredStudy(folder, study, read_space(read_yaml(folder.definition), source=str(folder.definition)))


def open_study(space: Space, folder: StudyFolder, storage: str | None = None, settled: str = "") -> optuna.Study:
    """Creates the study, or opens it again after checking that it is the same search.

    Args:
        space: What is searched; its first trials are queued when the study is new.
        folder: Of the study.
        storage: A database URL for teams; by default a journal file in the folder.
        settled: What a new study has in the place of the precision ``auto``; see ``study.precision``.

    Raises:
        UserError: The folder holds a study of another space; the storage cannot be opened, or its trials are in another one; the folder is
            locked by this process, and a driver elsewhere works on the same study in the database.
    """
    wanted = space.to_dict()
    grown = check_same_search(space, folder)
    mend_journal(folder.journal)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if grown:
        former = stored_study(folder.path, storage)
        grow(former.study, former.space, space, folder.journal)
    study = optuna.create_study(
        study_name=space.study.name,
        storage=open_storage(folder.journal, storage, name=space.study.name, new=not folder.definition.exists()),
        directions=directions(space.study),
        load_if_exists=True,
        pruner=make_pruner(space.study),
    )
    if folder.held:
        folder.held.lease(study)
    # A database may hold a study that another folder started.
    if "definition" in study.user_attrs:
        _compare(study.user_attrs["definition"], space, str(storage or folder.path), may_grow=False)
        before = (study.user_attrs["definition"].get("resources") or {}).get("share_views", True)
        if before != "auto" and VIEWS not in study.user_attrs:  # begun by a version that settled nothing
            study.set_user_attr(VIEWS, {"way": before, "why": ""})
    if "definition" not in study.user_attrs:
        study.set_user_attr(BEGUN_BY, 1)
        with warnings.catch_warnings():  # for people who look with Optuna's own tools
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(space.study.objectives))
    if settled:  # before the definition, with which a study is no longer new
        study.set_user_attr(SETTLED, settled)
    study.set_user_attr("definition", wanted)
    if not space.study.is_list:
        queue_first(study, space.first_trials)
    sync_to_disk(study)
    # Written last: a study without it is created again from the start, and queues nothing twice.
    write_text(folder.definition, yaml.safe_dump(wanted, sort_keys=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        begun = sum(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))
        study.sampler = make_sampler(space, begun)
    return study


def as_begun(space: Space, folder: StudyFolder) -> Space:
    """The space with sampler, pruner, precision and compilation of the study in the folder, where the space leaves them to ``auto``."""
    if not folder.definition.exists():
        return space
    definition = read_yaml(folder.definition)
    space, before = as_defined(space, definition), definition.get("study") or {}
    kept = {
        name: before[name]
        for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS))
        if getattr(space.study, name) == "auto" and before.get(name) in known
    }
    return dataclasses.replace(space, study=dataclasses.replace(space.study, **kept))


def stored_definition(folder: StudyFolder, name: str, storage: str | None) -> Mapping[str, Any] | None:
    """What a study was begun with, also where another folder began it in a database; ``None`` of one that is new.

    Raises:
        UserError: The database cannot be opened.
    """
    if folder.definition.exists():
        return read_yaml(folder.definition)
    if database(storage) is None and not folder.journal.exists():
        return None
    try:
        study = optuna.load_study(study_name=name, storage=open_storage(folder.journal, storage, name=name, new=True))
    except KeyError:
        return None
    found: Mapping[str, Any] | None = study.user_attrs.get("definition")
    return found


def check_there(folder: StudyFolder) -> None:
    """Raises where no study is.

    Raises:
        UserError: Names the studies that there are.
    """
    if not folder.definition.exists():
        known = ", ".join(sorted(p.parent.name for p in folder.path.parent.glob("*/study.yaml")))
        todo = f"studies: {known}" if known else "search first, or name the folder that holds it as GUIDINO_TUNE_HOME"
        raise UserError("no such study", where=str(folder.path), todo=todo)


def load_study(folder: StudyFolder, storage: str | None = None) -> optuna.Study:
    """Opens an existing study to read it.

    Raises:
        UserError: There is none, its definition names none, or its trials are in another storage.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_there(folder)
    settings = read_yaml(folder.definition).get("study")
    name = settings.get("name") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        raise UserError(
            "study.name is missing, so its trials cannot be found",
            where=str(folder.definition),
            todo="restore the file from a copy, or put the name in that the study was searched with",
        )
    try:
        return optuna.load_study(study_name=name, storage=open_storage(folder.journal, storage, name=name))
    except KeyError:
        raise UserError(
            f"the journal holds no study {name!r}", where=str(folder.journal), todo="restore the file from a copy, or search again"
        ) from None


def check_same_search(space: Space, folder: StudyFolder) -> list[str]:
    """Raises when the folder holds a study whose trials could not be compared with new ones.

    Returns:
        A line for each parameter that has grown since: earlier trials are to be told again, see ``guidino_tune.study.growing``.

    Raises:
        UserError: Names what differs.
    """
    if not folder.definition.exists():
        return []
    return _compare(read_yaml(folder.definition), space, str(folder.path), may_grow=folder.journal.exists())


def _compare(before: Mapping[str, Any], space: Space, where: str, *, may_grow: bool) -> list[str]:
    former = _renewed(before)
    old, new = _flat(former.to_dict() if former else before), _flat(space.to_dict())
    grown = growth(former, space) if former else {}
    # A list may grow or shrink: its trials are compared with each other, whichever of them are asked for today.
    free = (*FREE_TO_CHANGE, *(["first_trials"] if space.study.is_list else []), *(f"space.{path}." for path in grown if may_grow))
    changed = [p for p in sorted(old.keys() | new.keys()) if old.get(p) != new.get(p) and not _is_free(p, free)]
    if changed:
        shown = "; ".join(f"{p}: {old.get(p, 'absent')} -> {new.get(p, 'absent')}" for p in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        moved = any(".guide.backbone" in path for path in changed)
        elsewhere = ", and name the folder of a backbone that has only moved by --backbone DIR" if moved else ""
        kept = "; the space of a study in a database stays as it is" if grown and not may_grow else ""
        raise UserError(
            f"this study was started with other settings ({shown}{more}); its trials could not be compared with new ones{kept}",
            where=where,
            todo=f"repeat the first search to continue it{elsewhere}, {OTHERWISE.format(name=space.study.name)}",
        )
    return list(grown.values())


def _renewed(stored: Mapping[str, Any]) -> Space | None:
    """A stored definition with the fields that later versions added, at their defaults; ``None`` where this version cannot read it."""
    try:
        return read_space(stored, source="stored study")
    except UserError:
        return None


def _is_free(path: str, free: tuple[str, ...]) -> bool:
    return path.startswith(free) or (path.startswith("recipes.") and path.endswith(".data.root"))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): values}


def known_studies() -> list[str]:
    """Names of the studies in the home folder."""
    return sorted(file.parent.name for file in paths.studies().glob("*/study.yaml"))
