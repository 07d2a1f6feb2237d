"""``ui`` with a small server in the place of MLflow's: it answers, its address is told, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from test_list_and_show import make

from guidino_tune.errors import UserError
from guidino_tune.study.store import stored_study
from guidino_tune.workflows import ui

# A server with a worker that would outlive it.
SERVER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
import http.server
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def group(leader: int) -> list[str]:
    """The living processes of a group."""
    told = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    return [line for line in told if line.split()[1] == str(leader) and not line.split()[2].startswith("Z")]


def test_a_server_is_there_once_it_answers_and_gone_with_all_its_processes(tmp_path: Path) -> None:
    port = ui.free_port(0)
    with ui.served([sys.executable, "-c", SERVER, str(port)], f"http://127.0.0.1:{port}/") as server:
        assert len(group(server.pid)) == 2
        assert not ui._is_free(port)
    assert group(server.pid) == []


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(UserError, match="ended with exit code 3: no luck"), ui.served(
        [sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"], "http://127.0.0.1:9/"
    ):  # fmt: skip
        pass


def test_a_port_that_is_taken_is_not_used() -> None:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert ui.free_port(port) != port
        with pytest.raises(UserError, match="another program listens"):
            ui.show_pages(None, Console(quiet=True), port=port, browser=False)


def test_what_is_no_port_is_told() -> None:
    with pytest.raises(UserError, match="is no port: these end at 65535"):
        ui.show_pages(None, Console(quiet=True), port=70000, browser=False)
    assert 0 < ui.free_port(65536) <= 65535  # beside the last one


def test_the_page_of_an_mlflow_server_is_told_without_starting_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("mine", trials=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:sesame@127.0.0.1:9")
    console = Console(record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    assert ui.show_pages(stored_study("mine"), console, browser=False) == 0
    told = console.export_text()
    assert told.startswith("MLflow: http://***@127.0.0.1:9")
    assert "sesame" not in told


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    code = f"""
import sys
from rich.console import Console
from guidino_tune.cli import parser, run
from guidino_tune.workflows import ui
def command(options):
    with ui.served([sys.executable, "-c", {SERVER!r}, sys.argv[1]], f"http://127.0.0.1:{{sys.argv[1]}}/") as server:
        print(server.pid, flush=True)
        server.wait()
    return 0
sys.exit(run(command, parser("ui", "", ""), []))
"""
    port = ui.free_port(0)
    process = subprocess.Popen([sys.executable, "-c", code, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    leader = int(process.stdout.readline())
    assert len(group(leader)) == 2
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, see stopping.py
    assert process.wait(30) == 130
    until = time.monotonic() + 10
    while group(leader) and time.monotonic() < until:
        time.sleep(0.05)
    assert group(leader) == []
