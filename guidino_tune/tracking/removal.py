"""The runs of a study that is deleted: MLflow's own bin for them, and their files where these are ours."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from guidino_tune.tracking.client import connect
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
    """Looks for them in the MLflow at ``uri``, which must answer; models that were registered have runs of their own."""
    client, found = connect(uri), list[Any]()
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
    """Puts the runs into MLflow's bin, where ``mlflow gc`` or ``mlflow runs restore`` finds them, and removes their files and the view."""
    client = connect(uri)
    for run in found.runs:
        client.delete_run(run)
    for folder in found.folders:
        shutil.rmtree(folder, ignore_errors=True)
    for experiment in found.experiments:
        with contextlib.suppress(Exception):  # a study without a saved view, or a server on which tags of experiments stay
            client.delete_experiment_tag(experiment, TAG + view_name(study_id))


def _local(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") and parts.netloc in ("", "localhost") else None
