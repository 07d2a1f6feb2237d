"""What nodes of several kinds have in common, and where a trial finds most memory; told of descriptions of nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from guidino_tune.config import Resources
from guidino_tune.running import cluster, hardware
from guidino_tune.running.hardware import Card, Hardware, cards_by_type, common_precision, most_memory

GB = 10**9
SMALL, LARGE = "1" * 56, "2" * 56
"""Ids as Ray has them."""
H100, T4 = Card("NVIDIA H100 80GB HBM3", 80 * GB, True), Card("Tesla T4", 16 * GB, False)


def test_nodes_whose_gpus_lack_bf16_settle_on_fp16_where_all_can() -> None:
    old = Card("Tesla P100", 16 * GB, False)
    v100 = Card("V100", 32 * GB, False, True)
    assert Hardware((v100, H100), True).computes_fp16
    assert not Hardware((v100, old), True).computes_fp16
    assert not Hardware((), True).computes_fp16
    found, why = common_precision({"a": True, "b": False, "c": None}, fp16=True)
    assert found == "fp16"
    assert "of 2 GPU nodes 1 cannot compute in bf16 (b)" in why
    assert common_precision({"a": True, "b": None}, fp16=True)[0] == "bf16"
    assert common_precision({"a": None}, fp16=True)[0] == "fp32"


@pytest.mark.parametrize(
    ("told", "precision", "words"),
    [
        ({"a": True}, "bf16", "in which a computes"),
        ({"a": True, "b": True}, "bf16", "each of 2 nodes computes; kept"),
        ({"a": True, "b": None}, "bf16", "a computes (1 did not answer)"),
        ({"a": True, "b": False, "c": False}, "fp32", "of 3 nodes 2 cannot compute in bf16 (b and 1 more)"),
        ({"a": False}, "fp32", "no node computes in bf16"),
        ({"a": None}, "fp32", "nobody knows of a node"),
        ({}, "fp32", "nobody knows"),
    ],
)
def test_one_precision_for_all(told: dict[str, bool | None], precision: str, words: str) -> None:
    found, why = common_precision(told)
    assert found == precision
    assert words in why
    assert "kept with the study" in why


def test_trials_compute_where_they_are() -> None:
    mixed = Hardware((H100, T4), bf16=True)
    assert mixed.computes_bf16(gpus=False)
    assert mixed.computes_bf16(gpus=True) is False
    assert Hardware((H100,), bf16=False).computes_bf16(gpus=True)
    assert Hardware((), bf16=True).computes_bf16(gpus=True) is None  # it says that it has GPUs, and none works


def test_the_smallest_of_a_type_counts_and_the_largest_type_comes_first() -> None:
    short = Card("A100-SXM4-40GB", 40 * GB, True)
    nodes = {
        "t": {"accelerator_type:T4": 1.0},
        "a": {"accelerator_type:A100": 1.0},
        "b": {"accelerator_type:A100": 1.0},
        "gone": {},
        "x": {},
    }
    found = {
        "t": Hardware((T4,), False), "a": Hardware((Card("A100", 80 * GB, True),), True), "b": Hardware((short, short), True),
        "x": Hardware((H100,), True),
    }  # fmt: skip
    assert cards_by_type(nodes, found) == {"": H100, "A100": short, "T4": T4}
    assert list(cards_by_type(nodes, found)) == ["", "A100", "T4"]


@pytest.mark.parametrize(
    ("memory", "shared", "expected"),
    [
        ({"here": 24, "large": 80, "larger": 82}, False, ["large", "larger"]),  # alike
        ({"here": 80, "small": 24}, False, []),  # it had the most
        ({"here": 80, "small": 24}, True, ["here"]),  # but not to itself
        ({"here": 24}, True, ["here"]),
        ({"other": 80}, False, []),  # nothing is known of where it was
        ({}, True, []),
    ],
)
def test_where_there_is_most_memory(memory: dict[str, float], shared: bool, expected: list[str]) -> None:
    assert most_memory(memory, "here", shared=shared) == expected


class Cluster:
    """Nodes of a faked cluster, and what each would tell."""

    def __init__(self, patch: pytest.MonkeyPatch, **nodes: tuple[dict[str, float], tuple[Card, ...]]) -> None:
        import ray

        patch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": n, "Resources": has} for n, (has, _) in nodes.items()])
        patch.setattr(hardware, "ask", lambda asked, seconds: {n: Hardware(nodes[n][1], True) for n in asked})


def gpu_node(kind: str, count: float = 1.0) -> dict[str, float]:
    return {"CPU": 8.0, "GPU": count, f"accelerator_type:{kind}": 1.0}


def test_a_trial_moves_from_the_small_gpu_to_the_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, small=(gpu_node("T4"), (T4,)), large=(gpu_node("H100"), (H100,)), head=({"CPU": 64.0}, ()))
    whole = cluster.plan(Resources(gpus_per_worker=1))
    assert hardware.roomier("host small", whole) == ["large"]
    assert hardware.roomier("host large", whole) == []
    assert hardware.roomier("host head", whole) == hardware.roomier("", whole) == []
    packed = cluster.plan(Resources(trials_per_gpu=1), cluster.Packed({"H100": 4}))
    assert hardware.roomier("host large", packed) == ["large"]  # it shared it
    assert hardware.roomier("host small", packed) == ["large"]


def test_a_group_moves_where_it_fits_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"gpus_per_worker": 1, "workers": 2}
    Cluster(monkeypatch, small=(gpu_node("T4", 2), (T4, T4)), large=(gpu_node("H100"), (H100,)))
    assert hardware.roomier("host small", cluster.plan(Resources(**asked))) == []
    Cluster(monkeypatch, small=(gpu_node("T4", 2), (T4, T4)), large=(gpu_node("H100", 2), (H100, H100)))
    assert hardware.roomier("host small", cluster.plan(Resources(**asked))) == ["large"]


def test_without_gpus_it_is_the_node_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, small=({"CPU": 4.0, "memory": 8.0 * GB}, ()), large=({"CPU": 4.0, "memory": 64.0 * GB}, ()))
    plan = cluster.plan(Resources())
    assert hardware.roomier("host small", plan) == ["large"]
    assert hardware.roomier("host large", plan) == []


def test_a_node_that_does_not_answer_is_not_waited_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial that ran out of memory stopped the whole search for a minute."""
    import ray

    asked, waited, now = list[str](), list[float](), [1000.0]

    class Task:
        def __init__(self, node: str) -> None:
            self.node = node

        def remote(self) -> str:
            asked.append(self.node)
            return self.node

    def wait(tasks: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        waited.append(timeout)
        return [t for t in tasks if t == LARGE], [t for t in tasks if t != LARGE]

    monkeypatch.setattr(hardware, "_known", {})
    monkeypatch.setattr(hardware, "_silent", {})
    monkeypatch.setattr(hardware.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray, "remote", lambda scheduling_strategy, **rest: lambda look: Task(scheduling_strategy.node_id))
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", lambda task: Hardware((H100,), True))
    monkeypatch.setattr(ray, "cancel", lambda task, force: None)
    there = [{"Alive": True, "NodeID": name, "Resources": gpu_node(kind)} for name, kind in ((SMALL, "T4"), (LARGE, "H100"))]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    plan = cluster.plan(Resources(gpus_per_worker=1))
    for _ in range(3):
        assert hardware.roomier(f"host {LARGE}", plan) == []
    assert (sorted(asked), waited) == ([SMALL, LARGE], [hardware.BRIEF])
    now[0] += hardware.SILENT
    hardware.roomier(f"host {LARGE}", plan)
    assert asked[2:] == [SMALL]


@pytest.mark.parametrize("named", [False, True])
def test_the_daemon_by_which_trials_share_a_gpu_is_seen(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)} if named else {}
    monkeypatch.setattr(hardware, "MPS", tmp_path)
    assert "take turns" in hardware.sharing_line(environment)
    assert "nvidia-cuda-mps-control -d" in hardware.sharing_line(environment)
    os.mkfifo(tmp_path / "control")
    assert "same time (MPS)" in hardware.sharing_line(environment)
    assert not hardware.mps_is_on({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "other")})
