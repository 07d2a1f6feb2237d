"""How many trials share a GPU, or a node without GPUs, by what the largest models of a space really take."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from guidino_tune import targets
from guidino_tune.config import DINOGuide, Experiment, Resources
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import packed
from guidino_tune.running.cluster import Packed, accelerator_resource, uses_actors
from guidino_tune.running.hardware import ask, cards_by_type
from guidino_tune.running.probing import MOST_PROBES, backbone_bytes, describe, digest, largest_shapes, probe, shape_of, shapes
from guidino_tune.space.check import examples
from guidino_tune.space.space import Space
from guidino_tune.training.folder import write_text

GPU_PART = 0.9
"""How much of a GPU's memory the trials may fill; the rest is for fragmentation, and for what no probe sees. Of a node's memory Ray keeps
three tenths back for objects, of which trials have none."""

FREE = 30.0
"""Seconds for which a free GPU of the type with the most memory is waited for; those of the other types have a second each."""

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
    """What trials run on: GPUs of one type, or the smallest node.

    Attributes:
        name: Of the GPU, or ``cpu``.
        memory: Of the GPU, or of the node for its processes; in bytes.
        cpus: Of a node for each of these GPUs, or of the node.
        kind: Ray's name of the GPU's type, empty where Ray knows none; or Ray's id of the node.
        group: Ray's booking of one such GPU, to measure on.
    """

    name: str
    memory: int
    cpus: int
    kind: str
    group: Any = None

    @property
    def is_gpu(self) -> bool:
        """Whether this is a GPU."""
        return self.name != "cpu"


def pack(space: Space, folder: Path, console: Console) -> tuple[Resources, Packed]:
    """The resources of a space, with measured numbers where ``trials_per_gpu`` is ``auto``.

    With GPUs ``trials_per_gpu`` becomes a number, that of the type which carries fewest; without, it is known how much of a node's memory a
    worker takes. Measurements are kept in ``memory.json`` in the study's folder, so that a search that goes on measures nothing again.
    Needs a connected Ray cluster, and a free GPU of it, for which it waits a while; without one, trials do not share GPUs.

    Args:
        space: What will be searched.
        folder: Of the study.
        console: For one line of results, and notes.
    """
    asked = space.resources
    if asked.trials_per_gpu != "auto":
        return asked, Packed()
    import ray

    typed = accelerator_resource(asked.accelerator) if asked.accelerator else "CPU"
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"] and typed in node["Resources"]}
    with_gpus = {name: has for name, has in nodes.items() if has.get("GPU")}
    if with_gpus and asked.workers > 1:
        console.print("trials_per_gpu: 1, for two workers of one trial cannot share a GPU", highlight=False)
        return dataclasses.replace(asked, trials_per_gpu=1), Packed()
    whole = dataclasses.replace(asked, trials_per_gpu=1)
    with console.status("measuring the memory of the largest models"):
        devices = _gpus(with_gpus) if with_gpus else [_smallest_node(nodes)]
        if not devices:
            _note(console, "no node tells what its GPUs are; trials_per_gpu: 1")
            return whole, Packed()
        found = shapes(candidates(space), asked.workers)
        known = _Known(folder / "memory.json")
        largest = known.largest(found, asked.workers)
        with _bench(largest, known, devices, asked) as device:
            if device is None:
                _note(console, "no GPU is free to measure on, so trials share none in this run (trials_per_gpu=N says how many are to)")
                return whole, Packed()
            peaks, notes = _peaks(largest, _kept_backbones(found, asked), known, device, asked)
    for note in notes:
        _note(console, note)
    if len(largest) < len(found):
        _note(console, f"of {len(found)} model shapes only the {len(largest)} largest were measured")
    if device.is_gpu:
        each = shares(devices, peaks.values(), asked.cpus_per_worker or 1, beyond=device.memory if notes else math.inf)
        fewest = min(each.values())
        mixed = len(set(each.values())) > 1
        packed = Packed(shares={kind: number for kind, number in each.items() if kind} if mixed else {})
        resources = dataclasses.replace(asked, trials_per_gpu=fewest)
        decision = ", ".join(f"{n} on {kind or 'others'}" for kind, n in each.items()) if mixed else str(fewest)
        decision += " trial(s) per GPU"
    else:
        packed = Packed(memory=max(peaks.values(), default=0))
        resources = dataclasses.replace(asked, trials_per_gpu=None)
        decision = f"a node of this size carries {max(1, device.memory // packed.memory)} by its memory" if packed.memory else "no bound"
    top = max(peaks, key=peaks.__getitem__, default="")
    taken = f"the largest, {top}, takes {peaks[top] / _GB:.2f} of {device.memory / _GB:.1f} GB" if top else "none could be measured"
    console.print(f"memory of {len(largest)} model shape(s) on {device.name}: {taken}; {decision}", highlight=False, soft_wrap=True)
    return resources, packed


def _note(console: Console, text: str) -> None:
    console.print(f"note: {text}", style="yellow", highlight=False, soft_wrap=True)


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


def shares(devices: Iterable[Device], peaks: Collection[int], cpus: int, *, beyond: float) -> dict[str, int]:
    """How many trials share a GPU of each type, by the type's name.

    Args:
        devices: One of each type.
        peaks: As in ``trials_per_gpu``; measured on one of them, they hold for all.
        cpus: Of one trial.
        beyond: Bytes of a GPU on which some kind of trial did not fit: how much it takes of a larger one is not known.
    """
    return {d.kind: 1 if d.memory > beyond else trials_per_gpu(peaks, d.memory, d.cpus // cpus) for d in devices}


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

    def has(self, experiment: Experiment, device: Device, workers: int) -> bool:
        """Whether an experiment was measured on such a device."""
        return digest([shape_of(experiment, workers), device.name]) in self.values["peaks"]

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


@contextmanager
def _bench(largest: Sequence[Experiment], known: _Known, devices: Sequence[Device], resources: Resources) -> Iterator[Device | None]:
    """Where the probes run: nowhere, if one of the devices was measured on before; else on a GPU that is free, if one is.

    Args:
        largest: What is to be measured.
        known: What was measured before.
        devices: One of each type, the one with the most memory first.
        resources: Of the search.

    Yields:
        The device, booked for the time of the block, or ``None``.
    """
    before = next((d for d in devices if all(known.has(e, d, resources.workers) for e in largest)), None)
    if before or not devices[0].is_gpu:
        yield before or devices[0]
        return
    for device, seconds in zip(devices, (FREE, *[1.0] * len(devices)), strict=False):
        if group := _booked(device, resources, seconds):
            try:
                yield dataclasses.replace(device, group=group)
            finally:
                _give_back(group)
            return
    yield None


def _booked(device: Device, resources: Resources, seconds: float) -> Any:
    """A whole GPU of this type for one probe after the other; ``None`` where none is free in time."""
    import ray.util

    typed = {accelerator_resource(device.kind): 0.001} if device.kind else {}
    group = ray.util.placement_group([{"CPU": resources.cpus_per_worker or 1, "GPU": 1, **typed}])
    if group.wait(seconds):
        return group
    _give_back(group)
    return None


def _give_back(group: Any) -> None:
    import ray.util

    ray.util.remove_placement_group(group)


def _measured(experiment: Experiment, device: Device, resources: Resources) -> int | None:
    """Runs the probe in a process of its own, with what a trial gets, or a whole GPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

    on_gpu, cpus = device.group is not None, resources.cpus_per_worker or 1
    place = PlacementGroupSchedulingStrategy(device.group) if on_gpu else NodeAffinitySchedulingStrategy(device.kind, soft=False)
    # One call for each process: the peak of a process is that of all it ever did. Never again: running out of memory is the result.
    booked = {"num_cpus": cpus, "num_gpus": int(on_gpu), "max_calls": 1, "max_retries": 0, "scheduling_strategy": place}
    task = ray.remote(**booked)(probe).remote(  # type: ignore[call-overload]
        experiment.to_dict(), resources.workers, cpus, "cuda" if on_gpu else "cpu", packed(), targets.packed()
    )
    result: int | None = ray.get(task)
    return result


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
        if not device.is_gpu and not uses_actors(resources):
            beside += CONTROLLERS
        peaks[name] = max(peaks.get(name, 0), peak + beside)  # several shapes may have the same description
    return peaks, notes


def _kept_backbones(found: Sequence[Experiment], resources: Resources) -> dict[str, int]:
    """Bytes of the frozen backbones that a trial may find loaded in its process."""
    frozen = {e.guide.backbone: e for e in found if isinstance(e.guide, DINOGuide) and e.guide.trained == "frozen"}
    return {name: backbone_bytes(e) for name, e in frozen.items()} if uses_actors(resources) else {}


def _gpus(nodes: Mapping[str, Mapping[str, float]]) -> list[Device]:
    """One device for each type of GPU: its least memory, and the fewest CPUs of any of its nodes; the most memory first."""
    cards, found = cards_by_type(nodes, ask(list(nodes))), list[Device]()
    for kind, card in cards.items():
        typed = [has for has in nodes.values() if (accelerator_resource(kind) in has if kind else True)]
        cpus = min(int(has.get("CPU", 0) // has["GPU"]) for has in typed)
        found.append(Device(card.name, card.memory, max(1, cpus), kind))
    return found


def _smallest_node(nodes: Mapping[str, Mapping[str, float]]) -> Device:
    name, has = min(nodes.items(), key=lambda node: node[1].get("memory", 0))
    return Device("cpu", int(has.get("memory", 0)), int(has.get("CPU", 1)), name)
