"""The scripts of ``cluster/``, started as a person starts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ADDRESS, below, end, raylets
from optuna.trial import TrialState
from small_searches import slow_space, study_folder, trials_of

SCRIPTS = Path(__file__).parents[2] / "cluster"


def typed(line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, by somebody who has set nothing for Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, env=environment, cwd=SCRIPTS.parent)


def shell(line: str) -> str:
    """What such a line prints."""
    done = typed(line)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(condition: Callable[[], bool], timeout: float = 120) -> float:
    """Waits; gives the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout
        time.sleep(0.1)
    return time.monotonic() - begun


def epochs(home: Path) -> int:
    return sum(t.last_step or 0 for t in trials_of(home, "small"))


@pytest.mark.timeout(400)
def test_a_job_of_the_literal_command_is_stopped_in_good_order_and_goes_on(
    head: Callable[..., None], home: Path, tmp_path: Path, demo: Path
) -> None:
    head("--num-cpus=1", command=["bash", str(SCRIPTS / "head.sh")])
    assert f"cluster/worker.sh {ADDRESS}" in (tmp_path / "head.txt").read_text()
    file = slow_space(tmp_path, demo, epochs=4000, trials=2, pruner="none")
    space = yaml.safe_load(file.read_text())
    space["resources"]["concurrent"] = 1
    space["study"]["validate_every"] = 1
    file.write_text(yaml.safe_dump(space))
    command = f"{file} --home {home}"
    before = 0
    for submit in (
        f"source cluster/env.sh && ray job submit --no-wait -- python -m guidino_tune.search {command}",
        f"cluster/submit.sh --no-wait {command}",
    ):
        job = re.findall(r"'(raysubmit_\w+)' submitted", shell(submit))[0]
        until(lambda least=before + 5: epochs(home) > least)  # type: ignore[misc]
        shell(f"source cluster/env.sh && ray job stop {job}")
        log = shell(f"source cluster/env.sh && ray job logs {job}")
        assert "Nothing is lost: run it again to go on from here" in log
        assert "Traceback" not in log
        assert not study_folder(home, "small").ray.exists()
        (trial,) = trials_of(home, "small")
        assert trial.state == TrialState.RUNNING
        history = [r.epoch for r in study_folder(home, "small").trial(0).history()]
        assert history == [*range(1, len(history) + 1)]
        assert len(history) > before
        before = epochs(home)

    kept = typed("cluster/submit.sh --keep kvasirr 2>&1")
    assert kept.returncode == 2  # a command that is refused is not submitted again, and says why
    assert "did you mean 'kvasir'" in kept.stdout
    assert kept.stdout.count("submitted successfully") == 1


@pytest.mark.timeout(400)
def test_a_worker_waits_for_its_head_and_comes_back_after_it_was_given_up(head: Callable[..., None], tmp_path: Path) -> None:
    log = tmp_path / "worker.txt"
    command = ["bash", str(SCRIPTS / "worker.sh"), "--rejoin", ADDRESS, "--num-cpus=1", "--object-store-memory=100000000"]
    with log.open("w") as file:
        worker = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    before: list[int] = []
    try:
        until(lambda: f"waiting for the head at {ADDRESS}, at most 300 s" in log.read_text())
        head("--num-cpus=1", command=["bash", str(SCRIPTS / "head.sh")])
        import ray

        ray.init(ADDRESS, log_to_driver=False)

        def alive() -> int:
            return sum(node["Alive"] for node in ray.nodes())

        until(lambda: alive() == 2)
        before = below(worker.pid)
        (raylet,) = raylets(worker.pid)
        os.kill(raylet, signal.SIGSTOP)  # as a machine whose network is away
        try:
            assert until(lambda: alive() == 1) < 30  # Ray's own settings: a minute
        finally:
            os.kill(raylet, signal.SIGCONT)
        until(lambda: alive() == 2)
        assert "this node is out of the cluster: joining again" in log.read_text()
        (other,) = raylets(worker.pid)
        assert other != raylet
        worker.terminate()
        worker.wait(60)
        assert not Path(f"/proc/{other}").exists()
        until(lambda: alive() == 1)
    finally:
        end(worker, before)
        if "ray" in locals():
            ray.shutdown()
