"""How many trials share a GPU, or a node without GPUs, by what the largest models of a space really take."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from guidino_tune import targets
from guidino_tune.config import DINOGuide, Experiment, Resources
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import packed
from guidino_tune.running.cluster import accelerator_resource
from guidino_tune.running.probing import (
    MOST_PROBES,
    backbone_bytes,
    describe,
    digest,
    gpus,
    largest_shapes,
    probe,
    shape_of,
    shapes,
)
from guidino_tune.space.check import examples
from guidino_tune.space.space import Space
from guidino_tune.training.folder import write_text

GPU_PART, NODE_PART = 0.9, 0.8
"""How much of a GPU's or a node's memory the trials may fill; the rest is for fragmentation, and for what no probe sees."""

MOST_PER_GPU = 8
"""More trials than this gain nothing on one GPU: they only wait for each other."""

KEPT_BACKBONES = 2
"""Frozen backbones that a reused actor keeps from trial to trial."""

CONTROLLERS = 10**9
"""Bytes of the processes that Ray Train runs for a trial beside its workers."""

UPPER_DRAWS = 48
"""Random choices that are combined with the upper ends of all ranges."""

_GB = 1e9


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """Where trials run: the smallest GPU of a cluster, or its smallest node.

    Attributes:
        name: Of the GPU, or ``cpu``.
        memory: Of the GPU, or what the node had available when Ray started there; in bytes.
        cpus: Of the node for each GPU, or of the node.
        node: Ray's id of the node.
    """

    name: str
    memory: int
    cpus: int
    node: str

    @property
    def is_gpu(self) -> bool:
        """Whether this is a GPU."""
        return self.name != "cpu"


def pack(space: Space, folder: Path, console: Console) -> Resources:
    """The resources of a space, with a measured number where ``trials_per_gpu`` is ``auto``.

    With GPUs ``trials_per_gpu`` becomes a number; without, ``concurrent`` gets an upper limit. Measurements are kept in ``memory.json`` in
    the study's folder, so that a search that goes on measures nothing again. Needs a connected Ray cluster.

    Args:
        space: What will be searched.
        folder: Of the study.
        console: For one line of results, and notes.
    """
    asked = space.resources
    if asked.trials_per_gpu != "auto":
        return asked
    import ray

    typed = accelerator_resource(asked.accelerator) if asked.accelerator else "CPU"
    nodes = [node for node in ray.nodes() if node["Alive"] and typed in node["Resources"]]
    with_gpus = [node for node in nodes if node["Resources"].get("GPU")]
    if with_gpus and asked.workers > 1:
        console.print("trials_per_gpu: 1, for two workers of one trial cannot share a GPU", highlight=False)
        return dataclasses.replace(asked, trials_per_gpu=1)
    with console.status("measuring the memory of the largest models"):
        device = _smallest_gpu(with_gpus) if with_gpus else _smallest_node(nodes)
        found = shapes(candidates(space), asked.workers)
        known = _Known(folder / "memory.json")
        largest = known.largest(found, asked.workers)
        peaks, notes = _peaks(largest, _kept_backbones(found, asked, device), known, device, asked)
    for note in notes:
        console.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
    if len(largest) < len(found):
        console.print(f"note: of {len(found)} model shapes only the {len(largest)} largest were measured", style="yellow", highlight=False)
    if device.is_gpu:
        each = trials_per_gpu(peaks.values(), device.memory, device.cpus // (asked.cpus_per_worker or 1))
        packed, decision = dataclasses.replace(asked, trials_per_gpu=each), f"{each} trial(s) per GPU"
    else:
        fits = max(1, processes_per_node(peaks.values(), device.memory) * len(nodes) // asked.workers)
        packed = dataclasses.replace(asked, trials_per_gpu=None, concurrent=min(asked.concurrent or fits, fits))
        decision = f"at most {packed.concurrent} trial(s) side by side"
    top = max(peaks, key=peaks.__getitem__, default="")
    taken = f"the largest, {top}, takes {peaks[top] / _GB:.2f} of {device.memory / _GB:.1f} GB" if top else "none could be measured"
    console.print(f"memory of {len(largest)} model shape(s) on {device.name}: {taken}; {decision}", highlight=False, soft_wrap=True)
    return packed


def trials_per_gpu(peaks: Iterable[int], memory: int, cpus: int) -> int:
    """How many trials share a GPU.

    Args:
        peaks: Bytes of every kind of trial that fits at all; none: nothing is known, so trials do not share.
        memory: Of the GPU, in bytes.
        cpus: Of the node for this GPU, counted in what one trial needs.

    Returns:
        1 to ``MOST_PER_GPU``.
    """
    return max(1, min(MOST_PER_GPU, cpus, int(GPU_PART * memory / max(peaks, default=memory))))


def processes_per_node(peaks: Iterable[int], memory: int) -> int:
    """How many training processes a node without GPUs carries by its memory, at least 1; arguments as in ``trials_per_gpu``."""
    return max(1, int(NODE_PART * memory / max(peaks, default=memory)))


def candidates(space: Space) -> list[Experiment]:
    """Experiments that the space may give, and such with every range at its upper end, which random draws only come near to."""
    found, generator = examples(space), random.Random(0)
    for _ in range(0 if space.study.is_list else UPPER_DRAWS):
        values, _ = space.walk(lambda _, parameter: generator.choice(parameter.choices) if parameter.choices else parameter.ends[-1])
        with suppress(UserError):  # two upper ends need not fit each other
            found.append(space.experiment(values))
    return found


class _Known:
    """What was measured before, in ``memory.json``."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values: dict[str, dict[str, Any]] = {"peaks": {}, "largest": {}}
        with suppress(OSError, ValueError):  # a missing or damaged file costs some new measurements
            self.values |= json.loads(file.read_text(encoding="utf-8"))

    def largest(self, found: Sequence[Experiment], workers: int) -> list[Experiment]:
        """The shapes to be measured; ranking hundreds of them takes a minute, so their choice is kept."""
        if len(found) <= MOST_PROBES:
            return list(found)
        by_key = {digest(shape_of(e, workers)): e for e in found}
        key = digest(sorted(by_key))
        if key not in self.values["largest"]:
            chosen = largest_shapes(found, workers)
            self._keep("largest", key, [digest(shape_of(e, workers)) for e in chosen])
        return [by_key[k] for k in self.values["largest"][key]]

    def peak(self, experiment: Experiment, device: Device, resources: Resources) -> tuple[int | None, str]:
        """Bytes of one worker's process; ``None`` and the reason when it does not fit, or could not be measured."""
        shape = shape_of(experiment, resources.workers)
        key, why = digest([shape, device.name]), "does not fit into the memory, even alone; its trials may be infeasible"
        if key in self.values["peaks"]:
            return self.values["peaks"][key]["bytes"], why
        import ray

        try:
            peak = _measured(experiment, device, resources)
        except ray.exceptions.OutOfMemoryError:  # Ray ended it before the system would have
            peak = None
        except ray.exceptions.RayError as error:
            return None, f"could not be measured ({str(error).strip().splitlines()[-1]})"
        self._keep("peaks", key, {"bytes": peak, "device": device.name, "shape": shape})
        return peak, why

    def _keep(self, part: str, key: str, value: Any) -> None:
        self.values[part][key] = value
        write_text(self.file, json.dumps(self.values, indent=1))


def _measured(experiment: Experiment, device: Device, resources: Resources) -> int | None:
    """Runs the probe in a process of its own, with what a trial gets, or a whole GPU."""
    cpus = resources.cpus_per_worker or 1
    result: int | None = _on_node(device.node, probe, cpus, int(device.is_gpu))(
        experiment.to_dict(), resources.workers, cpus, "cuda" if device.is_gpu else "cpu", packed(), targets.packed()
    )
    return result


def _on_node(node: str, function: Callable[..., Any], cpus: int, gpus: int) -> Callable[..., Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    # One call for each process: the peak of a process is that of all it ever did. Never again: running out of memory is the result.
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1, max_retries=0, scheduling_strategy=place)(function)  # type: ignore[call-overload]
    return lambda *arguments: ray.get(remote.remote(*arguments))


def _peaks(
    largest: Sequence[Experiment], kept: Mapping[str, int], known: _Known, device: Device, resources: Resources
) -> tuple[dict[str, int], list[str]]:
    """Bytes of every kind of trial by its description, and notes on those that have no peak."""
    peaks, notes = dict[str, int](), list[str]()
    for experiment in largest:
        name = describe(experiment, resources.workers)
        peak, why = known.peak(experiment, device, resources)
        if peak is None:
            notes.append(f"{name}: {why}")
            continue
        guide = experiment.guide
        # A frozen trial's own backbone is in its peak, and is one of those that are kept.
        own = guide.backbone if isinstance(guide, DINOGuide) and guide.trained == "frozen" else None
        others = sorted((size for backbone, size in kept.items() if backbone != own), reverse=True)
        beside = sum(others[: KEPT_BACKBONES - (own is not None)])
        if not device.is_gpu and not _is_reused(resources, device):
            beside += CONTROLLERS
        peaks[name] = max(peaks.get(name, 0), peak + beside)  # several shapes may have the same description
    return peaks, notes


def _kept_backbones(found: Sequence[Experiment], resources: Resources, device: Device) -> dict[str, int]:
    """Bytes of the frozen backbones that a trial may find loaded in its process."""
    frozen = {e.guide.backbone: e for e in found if isinstance(e.guide, DINOGuide) and e.guide.trained == "frozen"}
    return {name: backbone_bytes(e) for name, e in frozen.items()} if _is_reused(resources, device) else {}


def _is_reused(resources: Resources, device: Device) -> bool:
    return resources.executor == "actor" or (resources.executor == "auto" and not device.is_gpu and resources.workers == 1)


def _smallest_gpu(nodes: Sequence[Mapping[str, Any]]) -> Device:
    """The GPU with the least memory, and the fewest CPUs for each GPU of any node. Waits until the GPUs of each node are free."""
    cpus = min(int(node["Resources"].get("CPU", 0) // node["Resources"]["GPU"]) for node in nodes)
    seen = [
        (memory, name, node["NodeID"])
        for node in nodes
        for name, memory in _on_node(node["NodeID"], gpus, 0, int(node["Resources"]["GPU"]))()
    ]
    memory, name, node = min(seen)
    return Device(name, memory, max(1, cpus), node)


def _smallest_node(nodes: Sequence[Mapping[str, Any]]) -> Device:
    def memory(node: Mapping[str, Any]) -> int:
        # Ray keeps a part for objects; trials put none there.
        return int(node["Resources"].get("memory", 0) + node["Resources"].get("object_store_memory", 0))

    node = min(nodes, key=memory)
    return Device("cpu", memory(node), int(node["Resources"].get("CPU", 1)), node["NodeID"])
