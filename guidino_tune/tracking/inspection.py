"""Whether MLflow can be reached, asked within seconds and without changing anything."""

from __future__ import annotations

import os
import shlex
import socket
from urllib.parse import urlsplit

from guidino_tune.errors import UserError, redacted
from guidino_tune.tracking.client import connect, explain, is_server, sqlite_file

MLFLOW_EXPERIMENT = "guidino_tune"
"""Of all studies, so that they can be compared, unless ``MLFLOW_EXPERIMENT_NAME`` names another one, such as that of a team."""

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Where databases listen unless the URL says otherwise."""


def experiment_name() -> str:
    """The MLflow experiment of new studies and models, as MLflow's own tools take it; a study that is in one stays there."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or MLFLOW_EXPERIMENT


def reach(uri: str, timeout: int = 5) -> str:
    """Asks MLflow for its experiments.

    Args:
        uri: An http(s) address or a database URL, as ``tracking_uri`` gives it.
        timeout: For an answer, in seconds.

    Returns:
        What is there, in a few words and without password.

    Raises:
        UserError: It cannot be reached or cannot be used, and why.
    """
    place = redacted(uri)
    file = sqlite_file(uri)
    if file and not file.exists():
        return f"{place}: the first search creates it"
    try:
        if not is_server(uri):
            _knock(uri, timeout)
        found = connect(uri, timeout).search_experiments()
    except Exception as error:  # whatever MLflow, SQLAlchemy or a database driver raises means the same here
        todo = "start it (cluster/mlflow.sh), or correct or unset MLFLOW_TRACKING_URI; a search runs without it and sends its records later"
        if "db upgrade" in str(error):
            todo = f"another version of MLflow wrote it: make a copy, then run `mlflow db upgrade {shlex.quote(place)}`"
        raise UserError(explain(error, uri), todo=todo) from None
    return f"{place}: answers, {len(found)} experiment{'' if len(found) == 1 else 's'}"


def unreachable(uri: str, timeout: int = 5) -> str | None:
    """Why MLflow cannot be used just now, in one line without password; ``None`` when it answers. See ``reach``."""
    try:
        reach(uri, timeout)
    except UserError as error:
        return error.what
    return None


def deleted(uri: str) -> str:
    """The command that restores the experiment in force if somebody deleted it in the MLflow at ``uri``; empty when nobody did."""
    file = sqlite_file(uri)
    if file and not file.exists():
        return ""
    found = connect(uri).get_experiment_by_name(experiment_name())
    return "" if found is None or found.lifecycle_stage == "active" else f"mlflow experiments restore -x {found.experiment_id}"


def _knock(uri: str, timeout: int) -> None:
    """Fails at once where a database driver would wait for minutes."""
    parts = urlsplit(uri)
    port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname and port:
        socket.create_connection((parts.hostname, port), timeout).close()
