"""A study is deleted: its folder, its trials in a database, and what MLflow has of it."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import optuna
from rich.console import Console

from guidino_tune import paths
from guidino_tune.data.openings import openings
from guidino_tune.errors import UserError, redacted
from guidino_tune.study.journal import database
from guidino_tune.study.optuna_private import storage
from guidino_tune.study.store import StoredStudy, stored_study
from guidino_tune.study.trials import tried
from guidino_tune.tracking.inspection import unreachable
from guidino_tune.tracking.removal import TrackedRuns, remove_runs, runs_of
from guidino_tune.workflows.track import PROBE, mlflow_uri


@dataclass(frozen=True, slots=True)
class Doomed:
    """What would be deleted.

    Attributes:
        stored: The study.
        storage: Database of its trials; ``None``: the journal in its folder.
        size: Bytes in its folder.
        checkpoints: Bytes of these that are weights and checkpoints.
        tracked: What MLflow has; ``None`` where it does not answer.
        why: Why it does not.
    """

    stored: StoredStudy
    storage: str | None
    size: int
    checkpoints: int
    tracked: TrackedRuns | None
    why: str = ""

    @property
    def lines(self) -> list[str]:
        """What goes, and what stays, a line each."""
        name, folder = self.stored.study.study_name, self.stored.folder.path
        lines = [
            f"{len(tried(self.stored.study))} trials"
            + (f", in the database {redacted(self.storage)}" if self.storage else ", in the journal in its folder"),
            f"folder {folder}: {as_size(self.size)}, of which {as_size(self.checkpoints)} are weights and checkpoints",
        ]
        if self.tracked is None:
            lines.append(f"stays: its runs in MLflow, which does not answer ({self.why})")
        else:
            files = sum(map(size_of, self.tracked.folders))
            lines.append(f"{len(self.tracked.runs)} runs in MLflow{f', with {as_size(files)} of files' if files else ''}")
        if self.stored.folder.comparison.path.exists():
            lines.append("what compare trained goes with the folder, and so does the model that it made (compare/model)")
        if opened := len(openings(self.stored.folder.split)):
            lines.append(f"the record that its sealed test was opened ({opened} time{'s' if opened > 1 else ''}) goes: exports lose it too")
        lines.append("stays: registered models, exports, and what retrain trained")
        return [f"study {name!r}:", *(f"  {line}" for line in lines)]


def doomed(name: str, url: str | None = None) -> Doomed:
    """Looks at a study that is to be deleted; changes nothing.

    Raises:
        UserError: There is none, or a process works on it.
    """
    stored = stored_study(name, url)
    if holder := stored.holder or stored.folder.comparison.holder():
        raise _at_work(stored, holder)
    why = unreachable(mlflow_uri(), PROBE) or ""
    tracked = None if why else runs_of(mlflow_uri(), _study_id(stored), paths.home() / "mlartifacts")
    files = [file for file in stored.folder.path.rglob("*") if file.is_file() and not file.is_symlink()]
    heavy = [file for file in files if file.suffix in (".safetensors", ".pt", ".bin")]
    size, weights = (sum(file.stat().st_size for file in some) for some in (files, heavy))
    return Doomed(stored, database(url), size, weights, tracked, why)


def delete_study(what: Doomed, console: Console) -> None:
    """Deletes it: first what MLflow has, then its trials in a database, then its folder. A second call goes on where one was stopped.

    Raises:
        UserError: A process works on it now.
    """
    name, folder = what.stored.study.study_name, what.stored.folder
    with contextlib.ExitStack() as held:
        if not folder.definition.exists():
            raise UserError(f"study {name!r} was deleted meanwhile", where=str(folder.path), todo="nothing is left to do")
        for place in (folder, folder.comparison):
            if place.path.exists():
                held.enter_context(place.lock("deletion", "wait for its end"))
        # The question may have stood for hours: a driver on another machine may have come to the study's database since.
        if elsewhere := what.stored.elsewhere:
            raise _at_work(what.stored, elsewhere)
        if what.tracked is not None:
            remove_runs(mlflow_uri(), _study_id(what.stored), what.tracked)
        if what.storage:
            optuna.delete_study(study_name=name, storage=storage(what.stored.study))
        # Under another name at once: a search that begins now makes a study of its own, and half a folder is no study.
        gone = folder.path.with_name(f".{folder.path.name}.{uuid.uuid4().hex[:8]}.deleted")
        folder.path.rename(gone)
        (gone / folder.definition.name).unlink(missing_ok=True)
    try:
        shutil.rmtree(gone, ignore_errors=True)
    finally:  # interrupted, too: no command finds it again
        if gone.exists():
            console.print(f"left: {gone}, which was not removed whole; remove it", style="yellow", highlight=False, soft_wrap=True)
    console.print(f"deleted: study {name!r}, {as_size(what.size)}", highlight=False, soft_wrap=True)
    if what.tracked is None:
        console.print("left: its runs in MLflow, which did not answer; delete them on its page", style="yellow", highlight=False)
    elif what.tracked.runs:
        console.print(
            f"left: {len(what.tracked.runs)} runs in MLflow's bin, out of sight and without files of ours; `mlflow gc` empties it",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def as_size(size: float) -> str:
    """Such as ``1.4 GB``."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _at_work(stored: StoredStudy, holder: str) -> UserError:
    name = stored.study.study_name
    return UserError(f"study {name!r} is at work ({holder})", where=str(stored.folder.path), todo="stop it first, or wait for its end")


def _study_id(stored: StoredStudy) -> str:
    return str(stored.study.user_attrs.get("id") or stored.study.study_name)
