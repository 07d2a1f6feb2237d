"""The address of a study's page, found without MLflow's own library, whose import takes seconds; nothing is changed or made."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import urllib.error
import urllib.request
from urllib.parse import quote, urlsplit

from guidino_tune.tracking.client import is_server, sqlite_file
from guidino_tune.tracking.views import page

PATIENCE = 2.0
"""Seconds for a server to answer."""


def page_address(uri: str, experiment: str, study_id: str) -> str:
    """The page of a study, see ``views.page``; empty where the MLflow at ``uri`` is away, or does not have the experiment.

    Args:
        uri: An http(s) address or a database URL.
        experiment: Its name in MLflow.
        study_id: As in the tag ``guidino.study_id`` of its runs.
    """
    number = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, sqlite3.Error):
        number = _asked(uri, experiment) if is_server(uri) else _read(uri, experiment)
    return page(uri, number, study_id) if number else ""


def _read(uri: str, name: str) -> str:
    file = sqlite_file(uri)
    if file is None or not file.is_file():
        return ""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as database:
        row = database.execute("SELECT experiment_id FROM experiments WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else ""


def _asked(uri: str, name: str) -> str:
    parts = urlsplit(uri)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    request = urllib.request.Request(f"{place}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(name)}")
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return str(json.load(answer)["experiment"]["experiment_id"])
