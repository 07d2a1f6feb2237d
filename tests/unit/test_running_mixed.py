"""GPUs of several kinds that come and go: whose nodes are gone waits for none of them, and who needs a whole GPU gets one."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
import ray.train.torch
from ray import cloudpickle
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.tune.experiment import Trial as TuneTrial
from study_helpers import dice, drive
from synthetic_curves import synthetic_space

from guidino_tune.config import Resources
from guidino_tune.running import cluster, elastic, executors
from guidino_tune.running.cluster import Packed, Worker
from guidino_tune.running.tune_adapter import StudyScheduler, StudySearcher
from guidino_tune.running.worker_groups import GroupNotStarted
from guidino_tune.study.driver import Driver


class Nodes:
    """A faked cluster, with the type of GPU of each node, and its clock."""

    def __init__(self, patch: pytest.MonkeyPatch, **kinds: str) -> None:
        self.kinds, self.time = kinds, 1000.0
        patch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": n, "Resources": self.has(n)} for n in self.kinds])
        patch.setattr(time, "monotonic", lambda: self.time)
        patch.setattr(cluster, "_own", False)

    def has(self, name: str) -> dict[str, float]:
        return {"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{self.kinds[name]}": 1.0}


class Tune:
    """What Tune does with a searcher and a scheduler, on the faked nodes."""

    def __init__(self, driver: Driver, plan: cluster.Plan, *, executor: str = "actor") -> None:
        self.driver, self.plan, self.executor, self.trials = driver, plan, executor, list[Any]()
        self.said: list[str] = []
        driver.warn = self.said.append
        self.scheduler, self.places = StudyScheduler(driver, plan), elastic.Places(plan, lambda text: None)
        self.places.bound = self.scheduler.bound
        self.searcher = StudySearcher(driver, self.places.now)

    def get_trials(self) -> list[Any]:
        return self.trials

    def stop_trial(self, trial: Any) -> None:
        trial.status = TuneTrial.TERMINATED

    def add(self, key: str) -> Any:
        """The next trial that the searcher gives, with what it books; ``None`` when it gives none."""
        if not (config := self.searcher.suggest(key)):
            return None
        bundles = [self.plan.booked] if self.executor == "actor" else [{"CPU": 0.01}]
        trial = SimpleNamespace(
            trial_id=key, status=TuneTrial.PENDING, config=config | {"executor": self.executor}, booked=None,
            placement_group_factory=SimpleNamespace(bundles=bundles), is_finished=lambda: trial.status == TuneTrial.TERMINATED,
        )  # fmt: skip
        trial.update_resources = lambda group: setattr(trial, "booked", group)
        self.trials.append(trial)
        self.scheduler.on_trial_add(self, trial)
        return trial

    def runs(self, trial: Any, node: str) -> None:
        trial.status = TuneTrial.RUNNING
        number = trial.config["number"]
        folder = Path(trial.config["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "node").write_text(f"host {node}")
        last = max(self.driver.seen[number], default=0)
        assert self.driver.report(trial.trial_id, dice(last + 1, 0.5))

    def lacks_memory(self, trial: Any) -> None:
        self.driver.fail(trial.trial_id, "out-of-memory", "CUDA out of memory")
        self.ends(trial)

    def ends(self, trial: Any) -> None:
        trial.status = TuneTrial.TERMINATED
        self.searcher.on_trial_complete(trial.trial_id)


def driven(path: Path, **options: Any) -> Driver:
    return drive(path, synthetic_space(9, trials=90, sampler="random", pruner="none"), has_others=lambda *left: True, **options)


def test_a_trial_booked_for_a_type_that_is_gone_is_booked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, small="T4", large="H100")
    plan = cluster.plan(Resources(trials_per_gpu=1, executor="actor"), Packed({"T4": 2, "H100": 4}))
    tune = Tune(driven(tmp_path), plan)
    begun = [tune.add(str(n)) for n in range(6)]
    typed = [trial for trial in begun if trial.config["accelerator"] == "T4"]
    assert len(typed) == 2
    assert all(trial.config["pinned"] for trial in begun)
    for trial in begun[:-1]:
        trial.status = TuneTrial.RUNNING
    waiting = tune.add("6")
    assert waiting.config["accelerator"] == "T4"
    del nodes.kinds["small"]
    nodes.time += elastic.LOOK
    tune.scheduler.choose_trial_to_run(tune)
    assert waiting.status == TuneTrial.TERMINATED
    assert tune.driver.orphans[0].number == waiting.config["number"]


def test_a_trial_whose_only_nodes_are_gone_begins_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, small="T4", large="H100")
    tune = Tune(driven(tmp_path, roomier=lambda node: ["large"]), cluster.plan(Resources(trials_per_gpu=2, executor="actor")))
    first = tune.add("0")
    tune.runs(first, "small")
    tune.lacks_memory(first)
    again = tune.add("1")
    assert (again.config["number"], again.config["only"]) == (first.config["number"], ["large"])
    assert (again.config["gpus"], again.booked._kwargs["bundle_label_selector"]) == (1.0, [{"ray.io/node-id": "in(large)"}])
    del nodes.kinds["large"]
    nodes.time += elastic.LOOK
    tune.scheduler.choose_trial_to_run(tune)
    assert again.status == TuneTrial.TERMINATED
    anew = tune.add("2")
    assert (anew.config["number"], anew.config["only"], anew.booked) == (first.config["number"], [], None)
    nodes.time += elastic.LOOK
    tune.scheduler.choose_trial_to_run(tune)
    assert anew.status == TuneTrial.PENDING


@pytest.mark.parametrize("executor", ["actor", "train"])
def test_who_needs_a_whole_gpu_gets_it_beside_trials_that_share(executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the GPU that became free was taken by the next trial that was content with a part."""
    nodes = Nodes(monkeypatch, small="T4", large="H100")
    monkeypatch.setattr(elastic, "_Booking", lambda booked: SimpleNamespace(is_there=False, close=lambda: None))
    tune = Tune(
        driven(tmp_path, roomier=lambda node: ["large"]), cluster.plan(Resources(trials_per_gpu=4, executor=executor)), executor=executor
    )
    where = [(tune.add(str(n)), ("small", "large")[n % 2]) for n in range(8)]
    for trial, node in where:
        tune.runs(trial, node)
    tune.lacks_memory(where[0][0])
    alone = tune.add("alone")
    assert (alone.config["only"], alone.config["gpus"]) == (["large"], 1.0)
    alone.status = TuneTrial.PENDING if executor == "actor" else TuneTrial.RUNNING  # its controller
    assert [line for line in tune.said if "needs a whole GPU: until it has one, no other trial begins on large" in line] == tune.said[1:]
    assert len(tune.said) == 2
    begun = list[Any]()
    for trial, node in where[1:]:
        if node == "large":
            tune.ends(trial)
            nodes.time += elastic.LOOK
            while trial := tune.add(f"beside {len(tune.trials)}"):
                begun.append(trial.config["avoided"])
                tune.runs(trial, "small")
    assert begun == [["large"]]  # in the place that it left on the small one
    tune.runs(alone, "large")
    assert tune.places.now() > len(tune.driver.running)
    assert tune.add("then").config["avoided"] == []


def test_nothing_is_kept_free_where_no_gpu_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Nodes(monkeypatch, small="T4", large="H100")
    tune = Tune(driven(tmp_path, roomier=lambda node: ["large"]), cluster.plan(Resources(gpus_per_worker=1, executor="actor")))
    first = tune.add("0")
    tune.runs(first, "small")
    tune.lacks_memory(first)
    assert tune.add("1").config["only"] == ["large"]
    assert (len(tune.said), tune.scheduler.bound()) == (1, math.inf)  # that it was interrupted


def test_tune_keeps_a_copy_of_what_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What prints holds a lock, which cannot be copied."""
    Nodes(monkeypatch, small="T4")
    lock = threading.RLock()
    tune = Tune(driven(tmp_path), cluster.plan(Resources(gpus_per_worker=1)))
    tune.driver.warn = lambda text: lock.release()
    for part in (tune.scheduler, tune.searcher):
        assert cloudpickle.dumps(part)


def test_a_group_is_booked_for_a_type_that_carries_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, a="T4", b="T4", c="H100")
    plan = cluster.plan(Resources(trials_per_gpu=1, workers=2), Packed({"T4": 1, "H100": 1}))
    taken = {Worker(8, 1.0, "T4"): 1}
    assert plan.freest([nodes.has(name) for name in nodes.kinds], taken).accelerator == "T4"  # it waits for the other group of two
    assert plan.freest([nodes.has("a"), nodes.has("c")], {}).accelerator is None


class Trainer:
    """Ray Train, whose workers find no place."""

    limits: list[int]
    names: list[str]

    def __init__(self, *_: Any, run_config: Any, scaling_config: Any, **__: Any) -> None:
        self.limits.append(run_config.failure_config.controller_failure_limit)
        self.names.append(run_config.name)
        self.scaling = scaling_config

    def fit(self) -> None:
        if len(self.limits) == 3:
            ray.nodes = list  # type: ignore[assignment]
        raise ray.train.ControllerError(WorkerGroupStartupTimeoutError(1))


@pytest.mark.parametrize("pinned", [True, False])
def test_a_group_whose_nodes_are_gone_waits_for_ever_only_for_what_was_asked_for(
    pinned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node of its type was reclaimed: Ray Train began the group again and again inside the same trial."""
    Nodes(monkeypatch, small="T4")
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(Trainer, "limits", [], raising=False)
    monkeypatch.setattr(Trainer, "names", [], raising=False)
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(executors.tune, "report", told.append)
    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", ray.train.UserCallback)  # it asks for Tune's session
    monkeypatch.setattr(executors, "on_nodes_network", lambda: None)
    config = {
        "number": 3, "folder": str(tmp_path), "ray_folder": str(tmp_path), "cpus": 2, "gpus": 0.5, "accelerator": "T4", "workers": 1,
        "max_failures": 2, "avoided": [], "only": [], "pinned": pinned,
    }  # fmt: skip
    if not pinned:
        with pytest.raises(GroupNotStarted):
            executors.train_trial(config)
        assert Trainer.limits == [-1]
        return
    executors.train_trial(config)
    assert Trainer.limits == [executors.STARTS] * 3
    assert len(set(Trainer.names)) == 3
    assert [(t["failure"], t["message"]) for t in told] == [("preempted", "the nodes where it may be are gone")]
