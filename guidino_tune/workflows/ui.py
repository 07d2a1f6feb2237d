"""MLflow's pages, and where it is installed Optuna's dashboard, for as long as this process lives; on this machine alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console

from guidino_tune.errors import UserError, redacted
from guidino_tune.study.journal import database
from guidino_tune.study.store import StoredStudy
from guidino_tune.tracking.client import is_server
from guidino_tune.tracking.inspection import experiment_name
from guidino_tune.tracking.links import page_address
from guidino_tune.tracking.views import LOCAL
from guidino_tune.workflows.track import mlflow_uri

HOST, PORT, LAST_PORT = "127.0.0.1", 5000, 65535
PATIENCE = 120.0
"""Seconds for a server to answer for the first time: MLflow imports a lot, and may have to bring its database up to date."""

GRACE = 5.0
"""Seconds for a server to end by itself."""


def show_pages(stored: StoredStudy | None, console: Console, *, port: int | None = None, browser: bool = True) -> int:
    """Serves and opens the pages until Ctrl-C; of an MLflow server elsewhere it opens the page and ends.

    Args:
        stored: The study whose page is opened; ``None``: the first page.
        console: Where the addresses are printed.
        port: Of MLflow; ``None``: 5000, or another free one.
        browser: Whether to open one, where there is a display.

    Returns:
        The exit code: that of a server that ended by itself, else 0.

    Raises:
        UserError: The port is taken, or a server does not start.
    """
    uri = mlflow_uri()
    if is_server(uri):
        _tell(console, "MLflow", _address(uri, stored, redacted(uri)), browser)
        return 0
    with contextlib.ExitStack() as stack:
        chosen = port or free_port(PORT)
        if port and port > LAST_PORT:
            raise UserError(f"is no port: these end at {LAST_PORT}", where=f"--port {port}", todo="choose another one, or leave it out")
        if port and not _is_free(port):
            raise UserError("another program listens there", where=f"--port {port}", todo="choose another one, or leave it out")
        base = f"http://{HOST}:{chosen}"
        # Without MLFLOW_TRACKING_URI, a database with a password would stand on the command line for all to see.
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(chosen), "--workers", "1"]
        main = stack.enter_context(served(command, f"{base}/health", MLFLOW_BACKEND_STORE_URI=uri, MLFLOW_DISABLE_TELEMETRY="true"))
        _tell(console, "MLflow", _address(uri, stored, base), browser)
        if stored and (program := shutil.which("optuna-dashboard", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))):
            second = free_port(chosen + 1)
            place = database() or str(stored.folder.journal)
            if redacted(place) == place:
                stack.enter_context(served([program, place, "--host", HOST, "--port", str(second)], f"http://{HOST}:{second}/dashboard"))
                _tell(console, "Optuna", f"http://{HOST}:{second}/dashboard", browser=False)
        console.print("Ctrl-C ends it", highlight=False)
        with contextlib.suppress(KeyboardInterrupt):
            return main.wait()
    return 0


@contextlib.contextmanager
def served(command: Sequence[str], address: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server until the block ends, and with it all processes that it started.

    Args:
        command: Of the server.
        address: Where it answers once it is ready.
        environment: Variables for it.

    Raises:
        UserError: It does not start.
    """
    with tempfile.TemporaryFile() as said:
        # In a session of its own: a Ctrl-C is ours to handle, and its processes are found again as a group.
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=os.environ | environment, start_new_session=True
        )
        try:
            _await(server, address, said)
            yield server
        finally:
            _end(server)


def free_port(first: int) -> int:
    """``first`` where nobody listens on it, else, and for 0 or where it is no port, one that the system gives."""
    if 0 < first <= LAST_PORT and _is_free(first):
        return first
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError:
            return False
        return True


def _await(server: subprocess.Popen[bytes], address: str, said: IO[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=2).close()
            return
        time.sleep(0.2)
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    what = "does not answer" if server.poll() is None else f"ended with exit code {server.returncode}"
    raise UserError(f"the server {what}: {' '.join(lines[-3:])[:400]}", where=address, todo="put that right, and run it again")


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the whole group: a server's workers outlive it otherwise."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            server.wait(GRACE)
    server.wait()


def _address(uri: str, stored: StoredStudy | None, base: str) -> str:
    if stored is None:
        return base
    study_id = str(stored.study.user_attrs.get("id") or stored.study.study_name).replace("'", "_")
    return page_address(uri, experiment_name(), study_id).replace(LOCAL, base, 1) or base


def _tell(console: Console, what: str, address: str, browser: bool) -> None:
    console.print(f"{what}: {address}", highlight=False, soft_wrap=True)
    has_display = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if browser and has_display:
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(address)
