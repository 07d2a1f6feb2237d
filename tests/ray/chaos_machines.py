"""What the chaos harness runs on: a Ray cluster of several nodes on this machine, an MLflow server, and a view of their processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

MARK = "CHAOS_RUN"
"""Variable that every process of a run inherits."""

HERE = {"node_ip_address": "127.0.0.1"}
"""Where nodes listen: nobody else can reach them."""

AT_WORK = re.compile(r"^ray::(?!IDLE|DashboardAgent|RuntimeEnvAgent|_AutoscalingCoordinatorActor)")
"""Titles of Ray's processes that do something for a search; idle ones, and services of a node or of the whole cluster, may stay."""

WORKERS = {"actor": re.compile("^ray::(TrialActor|ResourceTrainable)"), "train": re.compile("RayTrainWorker")}
"""Titles of the processes that train, by executor."""


class TooSlow(AssertionError):
    """Something did not happen in its time."""


def wait(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str], pause: float = 0.05) -> Any:
    """The first true value of ``condition``; ``what`` is awaited, in words.

    Raises:
        TooSlow: There is none within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TooSlow(f"{what if isinstance(what, str) else what()}: not within {seconds:.0f} s")
        time.sleep(pause)
    return value


class Server:
    """An MLflow server on a port of its own, which it keeps over its deaths."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and returns at once."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | quiet
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def answers(self) -> bool:
        """True when it is up."""
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Kills the server with its workers, which are a group of their own."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Machines:
    """A head node without CPUs and two nodes that carry the trials, on the loopback address.

    Nodes tell the head every second that they live, not every three, so that the death of one is known within seconds.

    Args:
        cpus: Of each of the two nodes; a trial takes one.
    """

    def __init__(self, cpus: int = 1) -> None:
        from guidino_tune.running import prepare_environment

        self.cpus = cpus
        self.mark = os.environ[MARK] = uuid.uuid4().hex
        # As on macOS: without it, drivers look for the cluster at this machine's address in the network.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        prepare_environment()
        from ray.cluster_utils import Cluster

        health = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "_system_config": health, "dashboard_port": 0, **HERE},
        )
        self.session = str(self.cluster.head_node.get_session_dir_path())
        os.environ["RAY_ADDRESS"] = self.cluster.address
        self.nodes = [self.cluster.add_node(num_cpus=self.cpus, **HERE) for _ in range(2)]
        self.seen: set[psutil.Process] = set()

    def processes(self) -> list[psutil.Process]:
        """Everything that was started here and still runs; this process itself is left out."""
        found = [p for p in psutil.process_iter() if p.pid != os.getpid() and self._is_ours(p)]
        self.seen.update(found)
        return found

    def titled(self, pattern: re.Pattern[str]) -> list[psutil.Process]:
        """Processes of ours whose title matches, oldest first."""
        return sorted((p for p in self.processes() if pattern.search(title(p))), key=lambda p: p.create_time())

    def node_of(self, process: psutil.Process) -> Any:
        """The node that a worker process lives on, or ``None``."""
        parents = {p.pid for p in _parents(process)}
        return next((node for node in self.nodes if raylet(node).pid in parents), None)

    def replace(self, node: Any) -> None:
        """Clears away what is left of a node whose raylet was killed, and adds another one."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=self.cpus, **HERE))

    def all_free(self) -> bool:
        """True when no CPU is taken."""
        state = self.cluster.global_state
        return bool(state.available_resources().get("CPU", 0.0) == state.cluster_resources().get("CPU", 0.0) == self.cpus * len(self.nodes))

    def shutdown(self) -> list[str]:
        """Ends the cluster; titles of processes that stay nevertheless."""
        self.processes()
        self.cluster.shutdown()
        os.environ.pop("RAY_ADDRESS", None)
        try:
            wait(lambda: not [p for p in self.seen if alive(p)] and not self.processes(), 30, "the end of all processes", pause=0.5)
        except TooSlow:
            return titles(list(self.seen))
        return []

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            # Ray writes titles over the environment of its workers; their output goes into the session's folder.
            return process.environ().get(MARK) == self.mark or os.readlink(f"/proc/{process.pid}/fd/1").startswith(self.session)
        except (psutil.Error, OSError):
            return False


def raylet(node: Any) -> Any:
    """The process of a node's raylet."""
    return node.all_processes["raylet"][0].process


def title(process: psutil.Process) -> str:
    """Its command line; empty when it has ended."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def titles(processes: list[psutil.Process]) -> list[str]:
    """Of those that are alive."""
    return [f"{p.pid} {title(p)}" for p in processes if alive(p)]


def alive(process: psutil.Process) -> bool:
    """True while it runs; one that ended and was not yet waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def kill(process: psutil.Process) -> None:
    """Ends it at once, and returns when it has ended."""
    process.send_signal(signal.SIGKILL)
    wait(lambda: not alive(process), 20, f"the end of process {process.pid}", pause=0.005)


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.Error:
        return []
