"""What the nodes of a cluster compute with: asked on each of them, for a cluster may mix GPUs of several kinds and ages.

What follows from the answers is told by functions of a description of the nodes, which need no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from guidino_tune.running.cluster import Plan, accelerator_resource, living

ANSWER = 60.0
"""Seconds that a node has to tell what it is; it may have to start a process, which imports torch."""

BRIEF = 5.0
"""Seconds for an answer while trials run: nothing of the search goes on meanwhile."""

SILENT = 300.0
"""Seconds for which a node that did not answer is not asked again."""

ALIKE = 0.95
"""GPUs, or nodes, that have so much of the largest one's memory count as large as it."""


MPS = Path("/tmp/nvidia-mps")
"""Where NVIDIA's MPS daemon has its pipes, unless it was told otherwise."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU.

    Attributes:
        name: As the driver names it.
        memory: In bytes.
        bf16: Whether it multiplies bf16 natively.
        fp16: Whether it has tensor cores for fp16.
    """

    name: str
    memory: int
    bf16: bool
    fp16: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a node computes with.

    Attributes:
        cards: Its GPUs that work.
        bf16: Whether its processor multiplies bf16 natively.
    """

    cards: tuple[Card, ...]
    bf16: bool

    def computes_bf16(self, gpus: bool) -> bool | None:
        """Whether trials on its ``gpus``, or else on its processor, compute in bf16 natively; ``None`` where it has no GPU that works."""
        if not gpus:
            return self.bf16
        return all(card.bf16 for card in self.cards) if self.cards else None

    @property
    def computes_fp16(self) -> bool:
        """Whether all of its GPUs, of which it has some, compute in fp16 quickly; those that do so in bf16 do."""
        return bool(self.cards) and all(card.bf16 or card.fp16 for card in self.cards)


_known: dict[str, Hardware] = {}
"""By Ray's id of the node, which no other node ever gets."""

_silent: dict[str, float] = {}
"""Until when nodes that did not answer are not asked again."""


def look() -> Hardware:
    """What this process sees of its node."""
    import torch

    from guidino_tune.models.precision import has_fp16, use_bf16

    cards = []
    for number in range(torch.cuda.device_count()):
        device, about = torch.device("cuda", number), torch.cuda.get_device_properties(number)
        with torch.cuda.device(device):  # the question is of the current one
            cards.append(Card(about.name, about.total_memory, use_bf16("auto", device), has_fp16(device)))
    return Hardware(tuple(cards), use_bf16("auto", torch.device("cpu")))


def ask(nodes: Collection[str], seconds: float = ANSWER) -> dict[str, Hardware]:
    """Asks nodes, all at once; books nothing, so that busy ones answer as well.

    Args:
        nodes: Ray's ids.
        seconds: How long an answer is waited for.

    Returns:
        By Ray's id; without the nodes that do not answer in time, or did not a short while ago.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tasks = {}
    for node in nodes:
        if node not in _known and time.monotonic() >= _silent.get(node, 0.0):
            place = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            # A process of its own, which then ends: whoever has looked at a GPU holds some of its memory.
            remote = ray.remote(num_cpus=0, num_gpus=0, max_calls=1, max_retries=1, scheduling_strategy=place)(look)  # type: ignore[call-overload]
            tasks[remote.remote()] = node
    done, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=seconds) if tasks else ([], [])
    for task in late:
        ray.cancel(task, force=True)
    for task in done:
        try:
            _known[tasks[task]] = ray.get(task)
        except ray.exceptions.RayError:  # it went away, or its torch does not work: its trials will tell
            continue
    _silent.update({node: time.monotonic() + SILENT for node in tasks.values() if node not in _known})
    return {node: _known[node] for node in nodes if node in _known}


def mps_is_on(environment: Mapping[str, str]) -> bool:
    """Whether NVIDIA's MPS daemon runs on this machine: processes that share a GPU then compute at the same time, else in turns."""
    return (Path(environment.get("CUDA_MPS_PIPE_DIRECTORY") or MPS) / "control").exists()


def sharing_line(environment: Mapping[str, str]) -> str:
    """How trials that share a GPU of this machine get on; all processes of a search find the daemon by the same variable."""
    if mps_is_on(environment):
        return "trials that share a GPU compute at the same time (MPS)"
    return "trials that share a GPU take turns on it: no MPS daemon runs here (to start one before the search: nvidia-cuda-mps-control -d)"


def precision_of(booked: Plan) -> tuple[str, str]:
    """The precision in which all nodes of a plan train quickly, and a line that says why.

    Args:
        booked: Of the trials; the cluster is connected.
    """
    import ray

    nodes, gpus = [name for name, has in living().items() if booked.worker_on(has).places(has)], bool(booked.gpus)
    here = ray.get_runtime_context().get_node_id()
    if not gpus and nodes == [here]:
        return common_precision({"this machine": look().bf16})  # the driver has imported torch anyway
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    found = ask(nodes)
    told = {f"{hosts[node]} {node[:8]}": found[node].computes_bf16(gpus) if node in found else None for node in nodes}
    fp16 = gpus and all(found[node].computes_fp16 for node in found if found[node].cards)
    return common_precision(told, fp16=fp16)


def common_precision(told: Mapping[str, bool | None], *, fp16: bool = False) -> tuple[str, str]:
    """The precision that all nodes have in common, and a line that says why.

    Args:
        told: By a node's name, whether it computes in bf16; ``None``: nothing is known of it.
        fp16: All of which something is known compute in fp16 quickly, on GPUs: taken where bf16 is not common to all, in place of fp32.
    """
    known = {name: native for name, native in told.items() if native is not None}
    unable = [name for name, native in known.items() if not native]
    if known and not unable:
        silent = f" ({len(told) - len(known)} did not answer)" if len(known) < len(told) else ""
        return "bf16", f"precision bf16, in which {_every(known)} computes{silent}; kept with the study"
    if known and fp16:
        lacking = f"{len(unable)} cannot compute in bf16 ({_listed(unable)})"
        return "fp16", f"precision fp16 with a scaled loss for all trials, for of {len(known)} GPU nodes {lacking}; kept with the study"
    if len(unable) < len(known):
        return "fp32", (
            f"precision fp32 for all trials, for of {len(known)} nodes {len(unable)} cannot compute in bf16 ({_listed(unable)}); kept with "
            "the study. Otherwise name a type of GPU (resources.accelerator), or have bf16 emulated there (training.precision=bf16)"
        )
    return "fp32", f"precision fp32, for {'no node' if known else 'nobody knows of a node that'} computes in bf16; kept with the study"


def _every(names: Collection[str]) -> str:
    return next(iter(names)) if len(names) == 1 else f"each of {len(names)} nodes"


def _listed(names: Iterable[str]) -> str:
    first, *more = names
    return f"{first} and {len(more)} more" if more else first


def roomier(node: str, booked: Plan) -> list[str]:
    """Where a trial that ran out of memory on a node has more of it: Ray's ids of the nodes with the most, for it alone.

    Args:
        node: As ``this_node`` names it.
        booked: The plan of the search.

    Returns:
        None where it had the largest GPU to itself, or, without GPUs, was on the largest node.
    """
    here, nodes = node.rpartition(" ")[2], {name: has for name, has in living().items() if booked.worker_on(has).places(has)}
    if here not in nodes:
        return []
    if not booked.gpus:
        return most_memory({name: has.get("memory", 0.0) for name, has in nodes.items()}, here, shared=False)
    memory = {name: min(card.memory for card in found.cards) for name, found in ask(list(nodes), BRIEF).items() if found.cards}
    largest = most_memory(memory, here, shared=booked.worker_on(nodes[here]).gpus < 1)
    return largest if sum(booked.alone.places(nodes[name]) for name in largest) >= booked.workers else []


def most_memory(memory: Mapping[str, float], here: str, *, shared: bool) -> list[str]:
    """The nodes with the most memory, unless a trial had one of them.

    Args:
        memory: Of each node, or of its GPUs, by its name; what is not known is left out.
        here: Where the trial was.
        shared: Whether it shared that memory with other trials.
    """
    most = max(memory.values(), default=0.0)
    largest = [name for name, there in memory.items() if there >= ALIKE * most]
    return largest if here in memory and (shared or here not in largest) else []


def cards_by_type(nodes: Mapping[str, Mapping[str, float]], found: Mapping[str, Hardware]) -> dict[str, Card]:
    """The smallest GPU of each type in a cluster.

    Args:
        nodes: What each node has, by Ray's id.
        found: What each node told.

    Returns:
        By the type's name as Ray has it; empty for those of which Ray knows none. Largest memory first.
    """
    smallest: dict[str, Card] = {}
    prefix = accelerator_resource("")
    for name, has in nodes.items():
        kind = next((resource.removeprefix(prefix) for resource in has if resource.startswith(prefix)), "")
        for card in found[name].cards if name in found else ():
            smallest[kind] = min(smallest.get(kind, card), card, key=lambda known: known.memory)
    return dict(sorted(smallest.items(), key=lambda item: -item[1].memory))
