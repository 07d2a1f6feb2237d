"""What a search books in the connected cluster, and on which of its nodes."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from guidino_tune.config import Resources
from guidino_tune.errors import UserError
from guidino_tune.study.nodes import NODE
from guidino_tune.training.folder import write_text

_own = False
"""Whether this process has started the cluster that it is connected to: nobody adds a node to that one, or takes one away."""

Node = Mapping[str, float]
"""What a node has, such as ``{"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}``."""


class NoRoom(UserError):
    """The nodes that are there now carry no trial."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What one worker books on its node.

    Attributes:
        cpus: Cores.
        gpus: GPUs, or a part of one.
        accelerator: Type of its GPUs; ``None``: any.
        memory: Bytes of the node's memory; 0: it is not looked at.
    """

    cpus: int
    gpus: float = 0.0
    accelerator: str | None = None
    memory: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Worker:
        """As what a trial's process is told says it."""
        return cls(config["cpus"], config["gpus"], config.get("accelerator"), config.get("memory", 0))

    @property
    def booked(self) -> dict[str, float]:
        """As Ray takes it."""
        found = {"CPU": float(self.cpus), "GPU": self.gpus, "memory": float(self.memory)}
        typed = {accelerator_resource(self.accelerator): 0.001} if self.accelerator else {}
        return {name: taken for name, taken in found.items() if taken} | typed

    def places(self, node: Node) -> int:
        """How many such workers a node carries, by CPUs, GPUs and memory."""
        if self.accelerator and accelerator_resource(self.accelerator) not in node:
            return 0
        found = [int(node.get("CPU", 0.0) // self.cpus)]
        found += [_slots(node, self.gpus)] if self.gpus else []
        found += [int(node.get("memory", 0.0) // self.memory)] if self.memory else []
        return min(found)


@dataclass(frozen=True, slots=True)
class Packed:
    """How many trials share a device, as it was measured.

    Attributes:
        shares: Trials per GPU by the GPU's type, where types differ in it; on any other GPU ``resources.trials_per_gpu`` holds.
        memory: Bytes that a worker takes of its node's memory; 0: not measured.
    """

    shares: Mapping[str, int] = field(default_factory=dict)
    memory: int = 0


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
        memory: Of a worker, in bytes; 0: not looked at.
        kinds: Workers on GPUs of a type that carries another number of trials, by that type.
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
    memory: int = 0
    kinds: Mapping[str, Worker] = field(default_factory=dict)

    @property
    def worker(self) -> Worker:
        """A worker on any node that has no kind of its own."""
        return Worker(self.cpus, self.gpus, self.accelerator, self.memory)

    @property
    def alone(self) -> Worker:
        """A worker that shares no GPU."""
        return replace(self.worker, gpus=max(1.0, self.gpus) if self.gpus else 0.0)

    @property
    def shares_gpus(self) -> bool:
        """Whether trials share a GPU anywhere."""
        return any(0 < worker.gpus < 1 for worker in (self.worker, *self.kinds.values()))

    @property
    def booked(self) -> dict[str, float]:
        """What such a worker books on its node."""
        return self.worker.booked

    def worker_on(self, node: Node) -> Worker:
        """What a worker books on this node."""
        return next((kind for name, kind in self.kinds.items() if accelerator_resource(name) in node), self.worker)

    def places(self, nodes: Sequence[Node]) -> int:
        """How many workers nodes carry. Each lives on one node: what is left over on several nodes together carries none."""
        return sum(self.worker_on(node).places(node) for node in nodes)

    def freest(self, nodes: Sequence[Node], taken: Mapping[Worker, int]) -> Worker:
        """What the next trial is to book: the kind of worker of which most places are free.

        Args:
            nodes: Where it may be.
            taken: Trials that are under way, by what their workers book.
        """
        there = Counter[Worker]()
        for node in nodes:
            worker = self.worker_on(node)
            there[worker] += worker.places(node)
        free = {worker: places - taken.get(worker, 0) * self.workers for worker, places in there.items() if places >= self.workers}
        return max(free, key=free.__getitem__, default=self.worker)


def accelerator_resource(accelerator: str) -> str:
    """What Ray gives a node that has GPUs of this type, as a resource of which everybody takes next to nothing."""
    return f"accelerator_type:{accelerator}"


def uses_actors(resources: Resources) -> bool:
    """Whether each trial is trained by one reused process."""
    return resources.executor == "actor" or (resources.executor == "auto" and resources.workers == 1)


def note_own(own: bool) -> None:
    """Notes whether the cluster that this process is in now is its own."""
    global _own
    _own = own


def may_change() -> bool:
    """Whether nodes may join the connected cluster, or leave it: whenever somebody else has started it."""
    return not _own


def plan(resources: Resources, packed: Packed | None = None) -> Plan:
    """Fits the trials to the connected cluster.

    Args:
        resources: Of the space.
        packed: What was measured of its trials.

    Raises:
        NoRoom: One trial needs more than the cluster has.
        UserError: The executor cannot have so many workers.
    """
    nodes, packed = node_resources(resources.accelerator), packed or Packed()
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    per_worker = _gpus_per_worker(resources, bool(gpus))
    kind = "actor" if uses_actors(resources) else "train" if resources.executor == "auto" else resources.executor
    if kind == "actor" and resources.workers > 1:
        raise UserError(
            "the actor executor has one worker", where="resources.workers", todo="use resources.executor: train, or resources.workers: 1"
        )
    found = Plan(
        kind, 0, resources.cpus_per_worker or _share(nodes, per_worker), per_worker, cpus, gpus, resources.workers, resources.concurrent,
        resources.accelerator,
        # A trial that takes more memory than any node has books all that the largest node has: there it is tried, alone.
        memory=int(min(packed.memory, max((node.get("memory", 0.0) for node in nodes), default=0.0))),
        kinds={name: _kind(nodes, name, each, resources) for name, each in packed.shares.items()},
    )  # fmt: skip
    places = found.places(nodes)
    fits = places // resources.workers
    if not fits:
        kind_of_gpu = f" of type {resources.accelerator}" if resources.accelerator else ""
        raise NoRoom(
            f"one trial needs {resources.workers} worker(s) with {found.cpus} CPU(s) and {per_worker:g} GPU(s) on one node each; "
            f"the cluster's {len(nodes)} node(s){kind_of_gpu} with {cpus:g} CPUs and {gpus:g} GPUs in all carry {places}",
            where="resources",
            todo="lower resources.workers, cpus_per_worker or gpus_per_worker (or raise trials_per_gpu, or leave it out where there are "
            "no GPUs), or add nodes",
        )
    return replace(found, concurrent=min(resources.concurrent or fits, fits))


def _kind(nodes: Sequence[Node], accelerator: str, sharing: int, resources: Resources) -> Worker:
    """A worker on GPUs of a type that each carry so many trials."""
    gpus = _part(sharing)
    typed = [node for node in nodes if accelerator_resource(accelerator) in node]
    return Worker(resources.cpus_per_worker or _share(typed, gpus), gpus, accelerator)


def node_resources(accelerator: str | None = None) -> list[dict[str, float]]:
    """What each living node of the connected cluster has, such as ``{"CPU": 8.0, "GPU": 1.0}``; of those with GPUs of this type alone."""
    import ray

    wanted = accelerator_resource(accelerator) if accelerator else None
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and (wanted is None or wanted in node["Resources"])]


def _gpus_per_worker(resources: Resources, there: bool) -> float:
    """What was said; else the part of a GPU that one trial of ``trials_per_gpu`` gets, and a whole one where nothing was said or measured.

    Without GPUs ``there``, none, unless ``trials_per_gpu`` is a number or their type is named: then they are waited for.
    """
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    sharing = resources.trials_per_gpu if isinstance(resources.trials_per_gpu, int) else None
    if sharing is None:
        return 1.0 if there or resources.accelerator else 0.0
    return _part(sharing)


def _part(sharing: int) -> float:
    """Of a GPU, for each of so many. Ray rounds to four places, so that six times 1/6 would be more than one GPU."""
    return math.floor(1e4 / sharing) / 1e4


def _share(nodes: Sequence[Node], per_worker: float) -> int:
    """CPUs of one worker: its GPU's share on the node that has the fewest for it, or one without GPUs."""
    with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= per_worker > 0]
    return max(1, min((int(node.get("CPU", 0.0) // _slots(node, per_worker)) for node in with_gpus), default=1))


def _slots(node: Node, gpus: float) -> int:
    """How many workers the GPUs of a node carry; what is left over on several GPUs together carries none."""
    there = node.get("GPU", 0.0)
    return int(there) * int(1 / gpus + 1e-6) if gpus < 1 else int(there / gpus + 1e-6)


def living(avoided: Collection[str] = ()) -> dict[str, dict[str, float]]:
    """What each living node has, by Ray's id; without those that are avoided."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in avoided}


def others(avoided: Collection[str], worker: Worker, workers: int = 1) -> list[str]:
    """Ray's ids of the nodes that are not avoided, and that carry this worker; none where all of them carry fewer than so many."""
    places = {name: worker.places(has) for name, has in living(avoided).items()}
    return [name for name, number in places.items() if number] if sum(places.values()) >= workers else []


def elsewhere(avoided: Collection[str], worker: Worker, only: Collection[str] = (), workers: int = 1) -> dict[str, str]:
    """The label selector of the nodes where a trial's workers may be; empty, for any node, where these do not carry all of them.

    Args:
        avoided: Ray's ids of nodes where they are not to be.
        worker: What each books.
        only: Ray's ids of the nodes where alone they are to be; none: on any that is not avoided.
        workers: Of the trial.
    """
    there = places_for(avoided, worker, only, workers) if only or avoided else []
    if only:
        return {"ray.io/node-id": f"in({', '.join(sorted(there))})"} if there else {}
    return {"ray.io/node-id": f"!in({', '.join(avoided)})"} if there else {}


def places_for(avoided: Collection[str], worker: Worker, only: Collection[str] = (), workers: int = 1) -> list[str]:
    """Ray's ids of the nodes where a trial's workers may be now; see ``elsewhere``."""
    return others({*avoided, *(living().keys() - set(only))} if only else avoided, worker, workers)


def has_others(*nodes: str, booked: Plan) -> bool:
    """Whether nodes that are none of these, as ``this_node`` names them, carry a trial of this plan."""
    return booked.places(list(living([node.rpartition(" ")[2] for node in nodes]).values())) >= booked.workers


def this_node() -> str:
    """Host name and Ray's id of the node that this process runs on."""
    import ray

    name = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
    return f"{platform.node()} {name}".strip()


def note_node(folder: Path) -> None:
    """Notes in the folder of a trial on which node this process runs."""
    write_text(folder / NODE, this_node())
