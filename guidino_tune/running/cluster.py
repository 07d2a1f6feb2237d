"""Connecting to Ray: the cluster of a job, a running one on this machine, or a new one of our own."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from guidino_tune.config import Resources
from guidino_tune.errors import UserError
from guidino_tune.running.environment import protect_token
from guidino_tune.running.inspection import known_cluster
from guidino_tune.stopping import stop_signals
from guidino_tune.study.nodes import NODE
from guidino_tune.training.folder import write_text

_own = False
"""Whether this process has started the cluster that it is connected to: nobody adds a node to that one, or takes one away."""


class NoRoom(UserError):
    """The nodes that are there now carry no trial."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search will use.

    Attributes:
        executor: ``actor`` or ``train``.
        concurrent: Trials side by side, as the cluster is now.
        cpus: Of one worker.
        gpus: Of one worker.
        cluster_cpus: What the cluster has.
        cluster_gpus: What the cluster has.
        workers: Of one trial.
        most: Trials side by side at most, however large the cluster becomes; ``None``: as many as fit.
        accelerator: Type of its GPUs; ``None``: any.
    """

    executor: str
    concurrent: int
    cpus: int
    gpus: float
    cluster_cpus: float
    cluster_gpus: float
    workers: int = 1
    most: int | None = None
    accelerator: str | None = None

    @property
    def booked(self) -> dict[str, float]:
        """What a worker books on its node."""
        typed = {accelerator_resource(self.accelerator): 0.001} if self.accelerator else {}
        return {"CPU": float(self.cpus)} | ({"GPU": self.gpus} if self.gpus else {}) | typed


def accelerator_resource(accelerator: str) -> str:
    """What Ray gives a node that has GPUs of this type, as a resource of which everybody takes next to nothing."""
    return f"accelerator_type:{accelerator}"


@contextlib.contextmanager
def connected() -> Iterator[str]:
    """A Ray cluster for the time of a block; gives the dashboard's address, empty when there is none.

    Raises:
        UserError: A cluster is named but cannot be joined.
    """
    import ray

    global _own
    mine, dashboard = not ray.is_initialized(), ""
    if mine:
        protect_token()  # its folder, before Ray makes a token
        try:
            with stop_signals():  # Ray puts a handler of its own in the place of ours, which is back afterwards
                # The dashboard's state service is what frees the CPUs of Ray Train trials that are stopped early.
                own = known_cluster(os.environ) in ("", "local")
                context = ray.init("local" if own else None, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
            _own = own
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
            _own = False


def may_change() -> bool:
    """Whether nodes may join the connected cluster, or leave it: whenever somebody else has started it."""
    return not _own


def plan(resources: Resources) -> Plan:
    """Fits the trials to the connected cluster.

    Raises:
        NoRoom: One trial needs more than the cluster has.
        UserError: The executor cannot have so many workers.
    """
    nodes = node_resources(resources.accelerator)
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    per_worker = _gpus_per_worker(resources, bool(gpus))
    kind = resources.executor
    if kind == "auto":
        kind = "train" if resources.workers > 1 or per_worker else "actor"
    if kind == "actor" and resources.workers > 1:
        raise UserError(
            "the actor executor has one worker", where="resources.workers", todo="use resources.executor: train, or resources.workers: 1"
        )
    cpus_per_worker = resources.cpus_per_worker or _share(nodes, per_worker)
    places = count_places(nodes, cpus_per_worker, per_worker)
    fits = places // resources.workers
    if not fits:
        kind_of_gpu = f" of type {resources.accelerator}" if resources.accelerator else ""
        raise NoRoom(
            f"one trial needs {resources.workers} worker(s) with {cpus_per_worker} CPU(s) and {per_worker:g} GPU(s) on one node each; "
            f"the cluster's {len(nodes)} node(s){kind_of_gpu} with {cpus:g} CPUs and {gpus:g} GPUs in all carry {places}",
            where="resources",
            todo="lower resources.workers, cpus_per_worker or gpus_per_worker (or raise trials_per_gpu, or leave it out where there are "
            "no GPUs), or add nodes",
        )
    side_by_side = min(resources.concurrent or fits, fits)
    return Plan(kind, side_by_side, cpus_per_worker, per_worker, cpus, gpus, resources.workers, resources.concurrent, resources.accelerator)


def node_resources(accelerator: str | None = None) -> list[dict[str, float]]:
    """What each living node of the connected cluster has, such as ``{"CPU": 8.0, "GPU": 1.0}``; of those with GPUs of this type alone."""
    import ray

    wanted = accelerator_resource(accelerator) if accelerator else None
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and (wanted is None or wanted in node["Resources"])]


def count_places(nodes: list[dict[str, float]], cpus: int, gpus: float) -> int:
    """How many workers nodes carry. Each lives on one node: what is left over on several nodes together carries none."""
    return sum(_places(node, cpus, gpus) for node in nodes)


def _gpus_per_worker(resources: Resources, there: bool) -> float:
    """What was said; else the part of a GPU that one trial of ``trials_per_gpu`` gets, and a whole one where nothing was said or measured.

    Without GPUs ``there``, none, unless ``trials_per_gpu`` is a number or their type is named: then they are waited for.
    """
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    sharing = resources.trials_per_gpu if isinstance(resources.trials_per_gpu, int) else None
    if sharing is None:
        return 1.0 if there or resources.accelerator else 0.0
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


def others(avoided: Collection[str], cpus: int, gpus: float, accelerator: str | None = None) -> list[str]:
    """Ray's ids of the nodes that are not avoided, and that carry a worker.

    Args:
        avoided: Ray's ids.
        cpus: Of the worker.
        gpus: Of the worker.
        accelerator: Type of its GPUs; ``None``: any.
    """
    import ray

    nodes = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in avoided]
    typed = [(name, has) for name, has in nodes if accelerator is None or accelerator_resource(accelerator) in has]
    return [name for name, has in typed if count_places([has], cpus, gpus)]


def elsewhere(avoided: Collection[str], cpus: int, gpus: float, accelerator: str | None = None) -> dict[str, str]:
    """The label selector of nodes that are not avoided; empty, for any node, where no other one carries a worker; see ``others``."""
    found = others(avoided, cpus, gpus, accelerator) if avoided else []
    return {"ray.io/node-id": f"!in({', '.join(avoided)})"} if found else {}


def has_others(node: str, booked: Plan) -> bool:
    """Whether a node that is not this one, as ``this_node`` names it, carries a worker of this plan."""
    return bool(others([node.rpartition(" ")[2]], booked.cpus, booked.gpus, booked.accelerator))


def this_node() -> str:
    """Host name and Ray's id of the node that this process runs on."""
    import ray

    name = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    return f"{platform.node()} {name}".strip()


def note_node(folder: Path) -> None:
    """Notes in the folder of a trial on which node this process runs."""
    write_text(folder / NODE, this_node())
