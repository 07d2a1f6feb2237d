"""``cluster/mlflow.sh`` as people start it: who reaches the server, and what it asks of them."""

from __future__ import annotations

import http.client
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from guidino_tune.errors import UserError
from guidino_tune.tracking.inspection import reach

pytestmark = pytest.mark.timeout(600)
SCRIPT = Path(__file__).parents[2] / "cluster" / "mlflow.sh"
PASSWORD = "planted-word-42"


@contextmanager
def started(home: Path, *options: str, **variables: str) -> Iterator[int]:
    """The script's server, by its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | variables
    environment |= {"GUIDINO_TUNE_HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPT), *options, "--port", str(port), "--workers", "1"]
    home.mkdir(exist_ok=True)
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while status(port, "/health") != 200:
            assert process.poll() is None, (home / "server.log").read_text()
            assert time.monotonic() < deadline, (home / "server.log").read_text()
            time.sleep(0.2)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server and its workers: a group of its own
        process.wait()


def status(port: int, path: str, **headers: str) -> int:
    """Status of the answer to a request; 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def listeners(port: int) -> set[str]:
    """Local addresses that listen on a port, in the kernel's hexadecimal notation."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                found.add(address.rpartition(":")[0])
    return found


def _reached(uri: str) -> str:
    """``reach``, asked again where a busy machine gave no answer in time."""
    for _ in range(5):
        try:
            return reach(uri, 60)
        except UserError as error:
            if "no answer in time" not in str(error):
                raise
    return reach(uri, 60)


@pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="needs pip install 'mlflow[auth]'")
def test_a_command_that_stands_alone_is_known_by_its_first_line(tmp_path: Path) -> None:
    """As pip puts it into ``~/.local/bin``: without a Python beside it."""
    (tmp_path / "cluster").mkdir()
    shutil.copy(SCRIPT, tmp_path / "cluster")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "mlflow"
    for first, told in ((f"#!{sys.executable}", "no users yet"), ("#!/no/such/python", "cannot tell with which Python")):
        command.write_text(f"{first}\n")
        command.chmod(0o700)
        environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
        done = subprocess.run(
            ["bash", tmp_path / "cluster" / SCRIPT.name, "--auth"], capture_output=True, text=True, env=environment, timeout=60
        )
        assert told in done.stderr
        assert done.returncode in (1, 2)


LIST = "/api/2.0/mlflow/experiments/search?max_results=1"


def test_the_server_is_for_this_machine_and_for_pages_of_its_own(tmp_path: Path) -> None:
    with started(tmp_path / "home") as port:
        assert listeners(port) == {"0100007F"}  # 127.0.0.1
        assert status(port, LIST) == 200
        # A page of somebody else's, whose name was made to lead to 127.0.0.1, has its own name in the request.
        assert status(port, LIST, Host="evil.example") == 403
        assert status(port, LIST, Host=f"evil.example:{port}") == 403
        assert (tmp_path / "home" / "mlflow.db").exists()


def test_in_a_container_it_answers_under_its_services_name_and_through_a_tunnel(tmp_path: Path) -> None:
    """With the options of ``cluster/compose.yaml``, which are those of ``cluster/kubernetes``; on 127.0.0.1, for this is a test."""
    script, *options = yaml.safe_load((SCRIPT.parent / "compose.yaml").read_text())["services"]["mlflow"]["command"]
    assert script == SCRIPT.name
    with started(tmp_path / "home", *options, "--host", "127.0.0.1") as port:
        asked = ("mlflow:5000", "localhost:5000", "127.0.0.1:18000", "evil.example:5000", "10.1.2.3:5000")
        assert [status(port, LIST, Host=name) for name in asked] == [200, 200, 200, 403, 403]
        assert status(port, "/health", Host="10.1.2.3:5000") == 200  # a probe of Kubernetes asks for the pod's address


@pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="needs pip install 'mlflow[auth]'")
def test_with_accounts_the_server_asks_for_name_and_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "half of 50%"  # a sign that configuration files give a meaning
    home.mkdir()
    (home / "mlflow-auth.key").touch(0o600)  # the first start was killed in the wrong moment
    with started(home, "--auth", MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD) as port:
        uri = f"http://127.0.0.1:{port}"
        assert listeners(port) == {"0100007F"}
        assert status(port, LIST) == 401
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-wrong-password")
        with pytest.raises(UserError) as refused:
            reach(uri, 60)
        assert "a-wrong-password" not in str(refused.value)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        assert "answers" in _reached(uri)
        assert len((home / "mlflow-auth.key").read_text().strip()) == 64
        for name in ("mlflow-auth.key", "mlflow-auth.ini", "mlflow-auth.db"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert not [file for file in home.rglob("*") if file.is_file() and PASSWORD.encode() in file.read_bytes()]
