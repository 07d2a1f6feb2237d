"""Searches on clusters that change: nodes that join and leave, and an autoscaler that adds them when they are asked for."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ADDRESS, Command, below, end, raylets
from optuna.trial import FrozenTrial, TrialState
from small_searches import slow_space, study_folder, trials_of

RAY = str(Path(sys.executable).with_name("ray"))


def elastic_space(tmp_path: Path, demo: Path, epochs: int = 200) -> str:
    """Trials that take long enough for a process to start on another node."""
    file = slow_space(tmp_path, demo, epochs=epochs, trials=100, pruner="none", name="elastic")
    space = yaml.safe_load(file.read_text())
    space["resources"] = {"executor": "actor", "cpus_per_worker": 1}
    file.write_text(yaml.safe_dump(space))
    return str(file)


def stopped(command: Command) -> str:
    """Stops a search as Ctrl-C does; gives what it has printed."""
    command.process.send_signal(signal.SIGINT)
    command.wait()
    return command.log.read_text()


def nodes_of(home: Path) -> set[str]:
    return {t.user_attrs["node"] for t in trials_of(home, "elastic") if "node" in t.user_attrs}


def running(home: Path) -> list[FrozenTrial]:
    return [t for t in trials_of(home, "elastic") if t.state == TrialState.RUNNING]


def test_an_autoscaler_adds_the_first_node_and_another_one(
    head: Callable[..., None], home: Path, tmp_path: Path, demo: Path, start: Callable[..., Command]
) -> None:
    worker = {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    config = {
        "cluster_name": "fake", "max_workers": 2, "idle_timeout_minutes": 5, "upscaling_speed": 10.0,
        "provider": {
            "type": "fake_multinode", "gcs_address": ADDRESS, "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {}, "docker": {}, "file_mounts": {},
        "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [], "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, "worker": worker,
        },
    }  # fmt: skip
    file = tmp_path / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(config))
    head("--num-cpus=0", f"--autoscaling-config={file}", RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1")
    command = start("guidino_tune.search", elastic_space(tmp_path, demo))
    command.until(lambda: len(nodes_of(home)) == 2)
    printed = " ".join(stopped(command).split())
    assert "carry 0: waiting 15 minutes for nodes (resources.wait_for_nodes)" in printed
    assert "1 trials side by side (actor executor; 1 worker(s) of 1 CPU(s)" in printed
    assert "2 trials side by side, 1 before" in printed


def test_a_node_that_joins_is_used_at_once_and_one_that_leaves_costs_no_epoch(
    head: Callable[..., None], home: Path, tmp_path: Path, demo: Path, start: Callable[..., Command]
) -> None:
    head("--num-cpus=1")
    command = start("guidino_tune.search", elastic_space(tmp_path, demo))
    command.until(lambda: bool(nodes_of(home)))
    first = nodes_of(home)
    log = tmp_path / "node.txt"
    with log.open("w") as file:
        node = subprocess.Popen(
            [RAY, "start", f"--address={ADDRESS}", "--num-cpus=1", "--block", "--object-store-memory=100000000"], stdout=file, stderr=file
        )
    try:
        command.until(lambda: "Ray runtime started" in log.read_text())
        command.until(lambda: "2 trials side by side" in command.log.read_text(), timeout=15)
        command.until(lambda: bool(nodes_of(home) - first))
        there = (nodes_of(home) - first).pop()
        command.until(lambda: any(t.user_attrs.get("node") == there and 2 < (t.last_step or 0) < 100 for t in running(home)))
    finally:
        left = below(node.pid)
        for raylet in raylets(node.pid):
            os.kill(raylet, signal.SIGKILL)  # the end of a machine, which is announced by nobody
        end(node, left)
    command.until(lambda: "goes on from its checkpoint (preempted: " in command.log.read_text(), timeout=60)
    moved = int(command.log.read_text().partition("goes on from its checkpoint")[0].rpartition("trial ")[2].split()[0])
    command.until(lambda: trials_of(home, "elastic")[moved].state == TrialState.COMPLETE)
    assert trials_of(home, "elastic")[moved].user_attrs["node"] in first
    printed = " ".join(stopped(command).split())
    assert "2 node(s) now: 2 trials side by side, 1 before" in printed
    assert "1 node(s) now: 1 trials side by side, 2 before" in printed
    assert "Traceback" not in printed
    trials = trials_of(home, "elastic")
    assert not [t.number for t in trials if t.state == TrialState.FAIL]
    for trial in trials:
        epochs = [r.epoch for r in study_folder(home, "elastic").trial(trial.number).history()]
        assert epochs == [*range(1, len(epochs) + 1)]


def may_mount() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def blind_node(home: Path, tmp_path: Path) -> Iterator[None]:
    """A node with one CPU that does not see the studies' folder."""
    log = tmp_path / "node.txt"
    join = [RAY, "start", f"--address={ADDRESS}", "--num-cpus=1", "--block", "--object-store-memory=100000000"]
    (home / "studies").mkdir(parents=True, exist_ok=True)
    hidden = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(home / "studies")]
    with log.open("w") as file:
        node = subprocess.Popen([*hidden, *join], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        end(node)


@pytest.mark.skipif(not may_mount(), reason="needs to mount, in a namespace of its own")
def test_a_node_without_the_shared_folder_costs_no_trial(
    head: Callable[..., None], home: Path, tmp_path: Path, demo: Path, start: Callable[..., Command]
) -> None:
    head("--num-cpus=1")
    with blind_node(home, tmp_path):
        command = start("guidino_tune.search", elastic_space(tmp_path, demo, epochs=50), "--trials", "3")
        assert command.wait() == 0
    printed = " ".join(command.log.read_text().split())
    assert "the study's folder is not there" in printed
    assert "mount GUIDINO_TUNE_HOME on every node" in printed
    assert "Traceback" not in printed
    trials = trials_of(home, "elastic")
    assert [t.state for t in trials if t.state != TrialState.RUNNING] == [TrialState.COMPLETE] * 3
    assert not [t for t in trials if t.state == TrialState.FAIL]


HOLD = """
import ray
ray.init(log_to_driver=False)
group = ray.util.placement_group([{"CPU": 2}])
print(group.wait(60), flush=True)
input()
"""
"""Takes two CPUs, which only the head has, until it is told to end."""


@pytest.mark.skipif(not may_mount(), reason="needs to mount, in a namespace of its own")
def test_a_group_over_two_nodes_of_which_one_is_unfit_begins_again_on_the_other(
    head: Callable[..., None], home: Path, tmp_path: Path, demo: Path, start: Callable[..., Command]
) -> None:
    head("--num-cpus=3")
    file = slow_space(tmp_path, demo, epochs=2, trials=1, pruner="none", name="elastic")
    space = yaml.safe_load(file.read_text())
    space["resources"] = {
        "executor": "train",
        "workers": 2,
        "cpus_per_worker": 1,
        "concurrent": 1,
        "max_failures": 50,
    }  # none of which is for this
    file.write_text(yaml.safe_dump(space))
    with blind_node(home, tmp_path):
        holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"True\n"  # one CPU is left on each node
            command = start("guidino_tune.search", str(file))
            command.until(lambda: "the study's folder is " in command.log.read_text())
            holder.communicate(b"\n", timeout=30)
            assert command.wait() == 0
        finally:
            if holder.poll() is None:
                holder.kill()
                holder.wait()
    printed = " ".join(command.log.read_text().split())
    assert "trial 0 was interrupted and goes on from its checkpoint (environment: node " in printed
    assert "mount GUIDINO_TUNE_HOME on every node" in printed
    assert "Traceback" not in printed
    (trial,) = trials_of(home, "elastic")
    assert trial.state == TrialState.COMPLETE
    assert [r.epoch for r in study_folder(home, "elastic").trial(0).history()] == [1, 2]
