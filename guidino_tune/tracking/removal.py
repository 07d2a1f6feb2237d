"""The runs of a study that is deleted: MLflow's own bin for them, and their files where these are ours."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from guidino_tune.errors import UserError, redacted
from guidino_tune.tracking.client import connect, sqlite_file
from guidino_tune.tracking.views import TAG, view_name

PAGE = 1000
"""Runs in one answer of MLflow."""


@dataclass(frozen=True, slots=True)
class TrackedRuns:
    """What MLflow has of a study.

    Attributes:
        runs: Ids of its runs, the study's own and those of its trials.
        experiments: Ids of the experiments that they are in.
        folders: Their files, where these lie in the folder that was asked for; those of a server are its own.
    """

    runs: tuple[str, ...]
    experiments: tuple[str, ...]
    folders: tuple[Path, ...]


def runs_of(uri: str, study_id: str, artifacts: Path) -> TrackedRuns:
    """Looks for them in the MLflow at ``uri``, which must answer; models that were registered have runs of their own.

    Raises:
        UserError: MLflow refuses.
    """
    if (file := sqlite_file(uri)) and not file.exists():  # to ask would make one
        return TrackedRuns((), (), ())
    with _refusals(uri):
        return _found(connect(uri), study_id, artifacts)


def _found(client: Any, study_id: str, artifacts: Path) -> TrackedRuns:
    found = list[Any]()
    known = [experiment.experiment_id for experiment in client.search_experiments()]
    token: str | None = ""
    while known and token is not None:
        query = f"tags.`guidino.study_id` = '{study_id.replace(chr(39), '_')}'"
        page = client.search_runs(known, query, max_results=PAGE, page_token=token or None)
        found, token = [*found, *page], page.token or None
    folders = [folder for run in found if (folder := _local(run.info.artifact_uri)) and folder.is_relative_to(artifacts)]
    return TrackedRuns(
        tuple(run.info.run_id for run in found),
        tuple(sorted({run.info.experiment_id for run in found})),
        tuple(run_folder for folder in folders if (run_folder := folder.parent).exists() and run_folder != artifacts),
    )


def remove_runs(uri: str, study_id: str, found: TrackedRuns) -> None:
    """Puts the runs into MLflow's bin, where ``mlflow gc`` or ``mlflow runs restore`` finds them, and removes their files and the view.

    Raises:
        UserError: MLflow refuses.
    """
    if not found.runs:
        return
    client = connect(uri)
    with _refusals(uri):
        for run in found.runs:
            client.delete_run(run)
    for folder in found.folders:
        shutil.rmtree(folder, ignore_errors=True)
    for experiment in found.experiments:
        with contextlib.suppress(Exception):  # a study without a saved view, or a server on which tags of experiments stay
            client.delete_experiment_tag(experiment, TAG + view_name(study_id))


@contextlib.contextmanager
def _refusals(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        why = redacted(" ".join(str(error).split()))[:300]
        todo = "see to it that you may delete runs there, and run it again; the study itself is whole"
        raise UserError(f"MLflow refuses ({why})", where=redacted(uri), todo=todo) from None


def _local(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.netloc in ("", "localhost") else None
