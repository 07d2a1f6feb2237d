"""Connecting to Ray: the cluster of a job, a running one on this machine, or a new one of our own."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from guidino_tune.config import Resources
from guidino_tune.errors import UserError
from guidino_tune.running.environment import protect_token
from guidino_tune.running.inspection import forget_dead_cluster
from guidino_tune.stopping import stop_signals
from guidino_tune.study.nodes import NODE
from guidino_tune.training.folder import write_text


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search will use: executor, trials side by side, CPUs and GPUs of one worker, and what the cluster has."""

    executor: str
    concurrent: int
    cpus: int
    gpus: float
    cluster_cpus: float
    cluster_gpus: float


@contextlib.contextmanager
def connected() -> Iterator[str]:
    """A Ray cluster for the time of a block; gives the dashboard's address, empty when there is none.

    Raises:
        UserError: A cluster is named but cannot be joined.
    """
    import ray

    mine, dashboard = not ray.is_initialized(), ""
    if mine:
        protect_token()  # its folder, before Ray makes a token
        try:
            with stop_signals():  # Ray puts a handler of its own in the place of ours, which is back afterwards
                # The dashboard's state service is what frees the CPUs of Ray Train trials that are stopped early.
                address = "local" if forget_dead_cluster(os.environ) else None
                context = ray.init(address, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
            dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else ""
        except (KeyboardInterrupt, SystemExit):
            ray.shutdown()
            raise KeyboardInterrupt from None  # Ray's handler exits
        except (ConnectionError, RuntimeError, ValueError, PermissionError) as error:
            raise UserError(
                f"cannot join the Ray cluster: {str(error).splitlines()[0]}",
                where=os.environ.get("RAY_ADDRESS", "this machine"),
                todo="check RAY_ADDRESS and RAY_AUTH_MODE, or see: guidino-tune doctor",
            ) from None
        protect_token()
    try:
        yield dashboard
    finally:
        if mine:
            ray.shutdown()


def plan(resources: Resources) -> Plan:
    """Fits the trials to the connected cluster.

    Raises:
        UserError: One trial needs more than the cluster has.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    per_worker = resources.gpus_per_worker if resources.gpus_per_worker is not None else _fraction(resources) if gpus else 0.0
    kind = resources.executor
    if kind == "auto":
        kind = "train" if resources.workers > 1 or per_worker else "actor"
    if kind == "actor" and resources.workers > 1:
        raise UserError(
            "the actor executor has one worker", where="resources.workers", todo="use resources.executor: train, or resources.workers: 1"
        )
    cpus_per_worker = resources.cpus_per_worker or _share(nodes, per_worker)
    # A worker lives on one node: what is left over on several nodes together carries none.
    places = sum(_places(node, cpus_per_worker, per_worker) for node in nodes)
    fits = places // resources.workers
    if not fits:
        raise UserError(
            f"one trial needs {resources.workers} worker(s) with {cpus_per_worker} CPU(s) and {per_worker:g} GPU(s) on one node each; "
            f"the cluster's {len(nodes)} node(s) with {cpus:g} CPUs and {gpus:g} GPUs in all carry {places}",
            where="resources",
            todo="lower resources.workers, cpus_per_worker or gpus_per_worker (or raise trials_per_gpu), or add nodes",
        )
    return Plan(kind, min(resources.concurrent or fits, fits), cpus_per_worker, per_worker, cpus, gpus)


def _fraction(resources: Resources) -> float:
    """The part of a GPU that one trial of ``trials_per_gpu`` gets; a whole one where nothing was said or measured."""
    sharing = resources.trials_per_gpu if isinstance(resources.trials_per_gpu, int) else 1
    # Ray rounds to four places, so that six times 1/6 would be more than one GPU.
    return math.floor(1e4 / sharing) / 1e4


def _share(nodes: list[dict[str, float]], per_worker: float) -> int:
    """CPUs of one worker: its GPU's share on the node that has the fewest for it, or one without GPUs."""
    with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= per_worker > 0]
    return max(1, min((int(node.get("CPU", 0.0) // _slots(node, per_worker)) for node in with_gpus), default=1))


def _places(node: dict[str, float], cpus: int, gpus: float) -> int:
    """How many workers a node carries."""
    by_cpu = int(node.get("CPU", 0.0) // cpus)
    return min(by_cpu, _slots(node, gpus)) if gpus else by_cpu


def _slots(node: dict[str, float], gpus: float) -> int:
    """How many workers the GPUs of a node carry; what is left over on several GPUs together carries none."""
    there = node.get("GPU", 0.0)
    return int(there) * int(1 / gpus + 1e-6) if gpus < 1 else int(there / gpus + 1e-6)


def elsewhere(avoided: Sequence[str]) -> dict[str, str]:
    """The label selector of nodes that are not avoided; empty, for any node, where no other one is alive."""
    import ray

    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in avoided] if avoided else []
    return {"ray.io/node-id": f"!in({', '.join(avoided)})"} if others else {}


def note_node(folder: Path) -> None:
    """Notes in the folder of a trial on which node this process runs."""
    import ray

    name = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    write_text(folder / NODE, f"{platform.node()} {name}".strip())
