"""The way to MLflow: where it is, how to reach it quietly and with short timeouts, and what its errors mean.

``mlflow`` itself is imported on first use (a second), so that importing this module costs nothing.
"""

from __future__ import annotations

import functools
import getpass
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from guidino_tune import paths
from guidino_tune.errors import UserError, redacted
from guidino_tune.tracking.snapshots import Plain

THREAD_NAME = "guidino-tune-mlflow"
PERMANENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"}
DENIED = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
MAX_TEXT = 5_900  # MLflow takes 6000 characters in a parameter and 8000 in a tag
MAX_KEY = 250
OWN = "sqlite:///$GUIDINO_TUNE_HOME/mlflow.db"
"""Stands for the database in the home folder where it is written down."""

_our_timeout: list[str] = []  # what we set last: another value is the user's


def tracking_uri(default_db: Path) -> str:
    """``$MLFLOW_TRACKING_URI``, or an SQLite file by its absolute path (trials run in other folders, and a relative one would follow)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path(default_db).expanduser().absolute())


def sqlite_uri(file: Path) -> str:
    """The URL of a database file, for SQLAlchemy 2.1 and later (earlier ones decode nothing)."""
    if not set("%?") & set(str(file)):
        return f"sqlite:///{file}"
    # With its slashes encoded too: MLflow makes the folder above the path as it is written, which must be no other than the real one.
    return f"sqlite:///{quote(str(file), safe='')}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a database URL as ``sqlite_uri`` gives it; ``None`` for every other place, and for SQLite's own ``file:`` URLs."""
    if not uri.startswith("sqlite:///") or uri.startswith("sqlite:///file:"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def place(uri: str) -> str:
    """What is written down about an MLflow that has something: without password, and the same after the home folder was moved."""
    return OWN if sqlite_file(uri) == paths.home() / "mlflow.db" else redacted(uri)


def same_place(before: str, uri: str) -> bool:
    """Whether ``before``, as it was written down (empty: nowhere), is the MLflow at ``uri``."""
    if before in ("", place(uri), redacted(uri)):
        return True
    file = sqlite_file(before)  # by its full path, as earlier versions wrote it: ours, if the home has left that place
    return place(uri) == OWN and file is not None and file.name == "mlflow.db" and not file.exists()


def is_server(uri: str) -> bool:
    """True for an MLflow server, false for a database that we write to ourselves."""
    return uri.startswith(("http://", "https://"))


def ui_command(uri: str) -> str:
    """What shows the runs: the server's address, or a command that can be copied into any shell on this machine."""
    if is_server(uri):
        return redacted(uri)
    beside = Path(sys.executable).with_name("mlflow")
    program = "mlflow" if not beside.exists() or shutil.which("mlflow") == str(beside) else shlex.quote(str(beside))
    # A password belongs on no screen; the variable that brought it is still there for the command to use.
    store = shlex.quote(uri) if redacted(uri) == uri else '"$MLFLOW_TRACKING_URI"'
    return f"{program} ui --backend-store-uri {store} --port 5000"


def connect(uri: str, timeout: int = 5) -> Any:
    """An ``MlflowClient``, with MLflow's chatter, usage reports and long retries switched off (variables that are set win).

    Args:
        uri: An http(s) address or a database URL.
        timeout: Of one request, in seconds.
    """
    # MLflow repeats every kind of request on its own, also those that create runs: we look before we create, so we repeat ourselves.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if os.environ.get(TIMEOUT) in (None, *_our_timeout):
        os.environ[TIMEOUT] = str(timeout)
        _our_timeout[:] = [str(timeout)]
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if file := sqlite_file(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("urllib3.connectionpool", "mlflow.store.db.utils"):
        if _not_ours not in logging.getLogger(name).filters:
            logging.getLogger(name).addFilter(_not_ours)
    return MlflowClient(uri)


def _not_ours(record: logging.LogRecord) -> bool:
    """Drops what our own thread logs about connections and databases, as ``last_error`` tells it; other threads keep theirs."""
    return record.threadName != THREAD_NAME


def find_experiment(client: Any, name: str, artifact_location: Path | None) -> str:
    """The id of the experiment ``name``, created when it is missing.

    Args:
        client: An ``MlflowClient``.
        name: Of the experiment.
        artifact_location: Folder for artifacts of a new experiment; ``None`` leaves it to the server.

    Raises:
        UserError: The experiment was deleted in MLflow.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(
                client.create_experiment(name, artifact_location=artifact_location.absolute().as_uri() if artifact_location else None)
            )
        except Exception:
            experiment = client.get_experiment_by_name(name)  # another driver was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} was deleted",
            todo=f"restore it with: mlflow experiments restore -x {experiment.experiment_id}",
        )
    return str(experiment.experiment_id)


def error_code(error: BaseException) -> str:
    """MLflow's code of an error, or an empty string."""
    return str(getattr(error, "error_code", "") or "")


def is_permanent(error: BaseException) -> bool:
    """True when sending the same again can not succeed: MLflow refuses the content, or the content can not be read."""
    if isinstance(error, FileNotFoundError | UnicodeError):
        return True
    if error_code(error):
        # A proxy that answers for an MLflow that is down says 404 or 400 too, and so does MLflow when its database is too busy.
        passing = "failed with error code" in str(error) or "QueuePool" in str(error)
        return error_code(error) in PERMANENT and not passing and not is_inactive(error)
    return not isinstance(error, OSError | UserError)


def is_unknown(error: BaseException) -> bool:
    """True when MLflow does not know the run."""
    return error_code(error) == "RESOURCE_DOES_NOT_EXIST"


def is_slow(error: BaseException) -> bool:
    """True when no answer came in time: MLflow may have done what was asked, or may still do it."""
    return "timed out" in str(error).lower() or isinstance(error, TimeoutError)


def is_inactive(error: BaseException) -> bool:
    """True when somebody deleted the run in MLflow."""
    return error_code(error) == "INVALID_PARAMETER_VALUE" and "'active' state" in str(error)


def explain(error: BaseException, uri: str) -> str:
    """One line for people: what is wrong with the MLflow at ``uri``, without traceback and without password."""
    text = " ".join(str(error).split())
    place = redacted(uri)
    if "Connection refused" in text:
        return f"{place}: nothing answers there (connection refused)"
    if "Connection aborted" in text or "Connection reset" in text:
        return f"{place}: the connection broke"
    if is_slow(error):
        return f"{place}: no answer in time"
    if "resolve" in text.lower() and "host" in text.lower():
        return f"{place}: unknown host"
    if error_code(error) in DENIED or re.search(r"\b40[13] (?:!= 200|Client Error)", text):
        return f"{place}: wrong or missing credentials (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)"
    if re.search(r"error code 507|507 Server Error|disk is full|no space left|disk quota", text, re.IGNORECASE):
        return f"{place}: its disk is full"
    if strange := re.search(r"failed with error code (\d+)|too many (\d+) error responses", text):
        return f"{place}: answers with HTTP {strange[1] or strange[2]}"  # without the body: a page that may repeat what we sent
    if database := re.search(r"\(\w+\.\w*Error\) (.+?) ?(?:\[SQL:|\(Background on|$)", text):
        text = database[1]  # without the statement and its thousand values
    return f"{place}: {redacted(text, uri)[:400] or type(error).__name__}"


def as_text(value: Plain) -> str:
    """A parameter's value as YAML writes it: ``true``, ``null``, ``0.0001``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)[:MAX_TEXT]


@functools.lru_cache(maxsize=4096)
def as_key(name: str) -> str:
    """``name`` with the characters that MLflow refuses replaced by ``_``."""
    return re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)[:MAX_KEY] or "_"


@functools.cache
def code_tags() -> dict[str, str]:
    """Who ran which code: package version, command, user, and the git commit where the package lies in a checkout.

    Computed once for the process; callers do not change it.
    """
    tags = {"mlflow.source.name": Path(sys.argv[0] or "python").name, "mlflow.source.type": "LOCAL"}
    try:
        tags["guidino.version"] = metadata.version("guidino-tune")
        tags["mlflow.user"] = getpass.getuser()
    except (metadata.PackageNotFoundError, OSError, KeyError):
        pass  # a bare container may have neither
    folder = Path(__file__).parent
    # An installed package may lie inside somebody else's checkout (a .venv): the commit counts only if git knows this very file.
    if _git(folder, "ls-files", "--error-unmatch", "snapshots.py") is not None:
        tags["mlflow.source.git.commit"] = _git(folder, "rev-parse", "HEAD") or ""
        tags["mlflow.source.git.dirty"] = str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower()
    return {key: value for key, value in tags.items() if value}


def _git(folder: Path, *args: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def as_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that MLflow takes: allowed names, and values that are not too long."""
    return {as_key(key): str(value)[:MAX_TEXT] for key, value in tags.items()}
