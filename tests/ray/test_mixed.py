"""A cluster of two kinds of GPU: how many trials each carries, and where one goes that the small kind has no memory for.

The nodes only say that they have GPUs. Their trials compute on the processor, and what they tell of their memory stands in the test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import tune
from small_searches import slow_space, study_folder, trials_of

from guidino_tune.running import executors, hardware, tune_adapter
from guidino_tune.running.cluster import Packed, Plan
from guidino_tune.running.hardware import Card, Hardware
from guidino_tune.search import main as search
from guidino_tune.workflows import search as searching

MEMORY = {"T4": 16 * 10**9, "H100": 80 * 10**9}


@pytest.fixture
def gpus(cluster: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The type of GPU of each node, by Ray's id: one with a T4, and one with an H100."""
    started: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "nodes.txt"
    ray_start = [str(Path(sys.executable).with_name("ray")), "start", f"--address={cluster}", "--block", "--object-store-memory=100000000"]

    def there() -> dict[str, str]:
        return {n["NodeID"]: kind for n in ray.nodes() for kind in MEMORY if n["Alive"] and f"accelerator_type:{kind}" in n["Resources"]}

    try:
        with log.open("w") as file:
            for number, kind in enumerate(MEMORY, 1):
                options = ["--num-cpus=2", "--num-gpus=1", f'--resources={{"accelerator_type:{kind}": 1}}']
                started.append(subprocess.Popen([*ray_start, *options], stdout=file, stderr=file))
                deadline = time.monotonic() + 45
                while len(there()) < number:
                    assert time.monotonic() < deadline, log.read_text()
                    assert started[-1].poll() is None, log.read_text()
                    time.sleep(0.1)
        yield there()
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="the nodes are to have no GPU that works")
def test_each_kind_carries_its_own_number_and_what_is_too_large_goes_to_the_larger_alone(
    home: Path, tmp_path: Path, demo: Path, gpus: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    booked = tmp_path / "booked"
    booked.mkdir()

    class OnProcessor(executors.TrialActor):
        """Writes down what it got; on the T4 it finds too little memory in its second epoch, once all have begun, and in its third."""

        def _step(self, told: dict[str, Any]) -> None:
            number, kind = self.config["number"], gpus[ray.get_runtime_context().get_node_id()]
            share = ray.get_runtime_context().get_assigned_resources()["GPU"]
            with (booked / f"{number} {kind} {share:g}").open("a") as file:
                file.write(f"{self.config['reported']} {self.config['gpus']:g}\n")
            self.config = {**self.config, "gpus": 0.0}
            if self.run and kind == "T4":
                deadline = time.monotonic() + 60
                while len(list(booked.iterdir())) < 3 and time.monotonic() < deadline:
                    time.sleep(0.05)
                raise RuntimeError("CUDA out of memory")
            super()._step(told)

    def trainable(plan: Plan) -> Any:
        return tune.with_resources(OnProcessor, plan.booked)

    asked: list[list[str]] = []

    def ask(nodes: list[str], seconds: float) -> dict[str, Hardware]:
        asked.append(nodes)
        return {node: Hardware((Card(gpus[node], MEMORY[gpus[node]], True),), True) for node in nodes}

    monkeypatch.setattr(tune_adapter, "trainable", trainable)
    monkeypatch.setattr(hardware, "ask", ask)
    monkeypatch.setattr(searching, "pack", lambda space, folder, console: (space.resources, Packed({"T4": 1, "H100": 2})))
    file = slow_space(tmp_path, demo, epochs=3, trials=3, pruner="none")
    values = yaml.safe_load(file.read_text())
    values["resources"] |= {"trials_per_gpu": 1, "cpus_per_worker": 1, "concurrent": 3}
    file.write_text(yaml.safe_dump(values))
    assert search([str(file)]) == 0
    printed = capsys.readouterr().out
    assert "3 trials side by side" in printed
    trials = trials_of(home, "small")
    assert [t.state.name for t in trials] == ["COMPLETE"] * 3
    begun = {path.name: path.read_text().split("\n")[0] for path in booked.iterdir()}
    assert sorted(name.split()[1:] for name in begun) == [["H100", "0.5"], ["H100", "0.5"], ["H100", "1"], ["T4", "1"]]
    assert all(first.split()[1] == name.split()[2] for name, first in begun.items())  # a trial knows what it got
    (moved,) = (int(name.split()[0]) for name in begun if name.endswith("H100 1"))
    assert begun[f"{moved} H100 1"] == "2 1"  # from its checkpoint: the second epoch worked in two parts
    assert [r.epoch for r in study_folder(home, "small").trial(moved).history()] == [1, 2, 3]
    (line,) = (line for line in printed.splitlines() if "was interrupted" in line)
    assert f"trial {moved} was interrupted and goes on from its checkpoint (out-of-memory: node " in line
    assert "once more where a trial has most memory, by itself" in line
    assert [sorted(nodes) for nodes in asked] == [sorted(gpus)]


def test_a_node_tells_what_it_is_while_all_of_it_is_taken(gpus: dict[str, str]) -> None:
    holder = ray.remote(num_cpus=2, num_gpus=1)(lambda: time.sleep(60)).remote()
    other = ray.remote(num_cpus=2, num_gpus=1)(lambda: time.sleep(60)).remote()
    try:
        deadline = time.monotonic() + 30
        while ray.available_resources().get("GPU", 0) > 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        hardware._known.clear()
        found = hardware.ask(list(gpus))
        assert found == dict.fromkeys(gpus, hardware.look())
        asked = hardware.ask([*gpus, "0" * 56], seconds=5)
        assert asked == found  # one that is gone
    finally:
        for task in (holder, other):
            ray.cancel(task, force=True)
