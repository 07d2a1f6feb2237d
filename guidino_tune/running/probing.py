"""Which models of a space are largest, and what two training steps of one really take."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from guidino_tune import targets
from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.known_backbones import adopt
from guidino_tune.losses import SegmentationLoss
from guidino_tune.models import build_model
from guidino_tune.models.precision import autocast_in
from guidino_tune.space.parameters import get_path, has_path
from guidino_tune.training.compile_choice import ways_for
from guidino_tune.training.compiling import NONE, Compiled
from guidino_tune.training.failures import failure_kind
from guidino_tune.training.kernels import quick_kernels
from guidino_tune.training.optimisers import make_optimizer

MOST_PROBES = 8
"""A probe takes a new process and its imports, so of many models only the largest are measured."""

SMI = 20.0
"""Seconds that the driver's tool has for an answer."""

CONTEXT = 400 * 2**20
"""Bytes that CUDA's context and torch's kernels take of a GPU at the least; what others give back between two looks hides them."""

GRAPH_STEPS = 4
"""Of a compiled network: a CUDA graph is recorded in the second, with memory of its own."""

RANK, PROTOTYPES = "guide.lora.rank", "guide.tokenbook.num_prototypes"

Shape = dict[str, Any]
"""Those fields of an experiment on which the memory of its training depends, by path; see ``About.memory``."""


def shape_of(experiment: Experiment, workers: int) -> Shape:
    """What decides about the memory of one of an experiment's workers, by path; fields that are idle in it are left out."""
    values = experiment.effective()
    known = ((path, about.memory) for path, about in experiment.known_fields() if about.memory)
    shape = {path: decides(get_path(values, path)) for path, decides in known if has_path(values, path)}
    return shape | {"training.batch_size": -(-experiment.training.batch_size // workers)}


def shapes(experiments: Iterable[Experiment], workers: int) -> list[Experiment]:
    """One experiment for each distinct shape; the largest LoRA rank and the most prototypes stand for all others."""
    found: dict[str, Experiment] = {}
    for experiment in experiments:
        shape = shape_of(experiment, workers)
        key = digest({**shape, RANK: shape.get(RANK, 0) > 0, PROTOTYPES: None})
        found[key] = _larger(found.get(key, experiment), experiment)
    return list(found.values())


def _larger(one: Experiment, other: Experiment) -> Experiment:
    guide = one.guide
    if not isinstance(guide, DINOGuide) or not isinstance(other.guide, DINOGuide):
        return one
    lora = dataclasses.replace(guide.lora, rank=max(guide.lora.rank, other.guide.lora.rank))
    book = dataclasses.replace(guide.tokenbook, num_prototypes=max(one.num_prototypes, other.num_prototypes))
    return dataclasses.replace(one, guide=dataclasses.replace(guide, lora=lora, tokenbook=book))


def largest_shapes(found: Sequence[Experiment], workers: int) -> list[Experiment]:
    """The ``MOST_PROBES`` largest by ``estimate``, largest first; one of those that differ in the gate's place or the TokenBook only."""

    @functools.cache
    def size(experiment: Experiment) -> int:
        return estimate(experiment, workers)

    families: dict[str, list[Experiment]] = {}
    for experiment in found:
        shape = shape_of(experiment, workers)
        gate, rank = bool(shape.get("guide.gate")), shape.get(RANK, 0) > 0
        key = digest({p: v for p, v in shape.items() if not p.startswith("guide.tokenbook")} | {"guide.gate": gate, RANK: rank})
        families.setdefault(key, []).append(experiment)
    # An estimate takes a third of a second: any member tells families apart, and only those of the largest are compared.
    largest = sorted(families.values(), key=lambda members: size(members[0]), reverse=True)[:MOST_PROBES]
    return sorted((max(members, key=size) for members in largest), key=size, reverse=True)


def estimate(experiment: Experiment, workers: int = 1) -> int:
    """Bytes of weights, gradients, optimiser and of what the backward pass needs, in float32; good enough to rank networks.

    Counted on the meta device: no weights are read and nothing is computed.
    """
    saved = 0

    def count(x: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += 0 if isinstance(x, nn.Parameter) else x.numel() * x.element_size()
        return x

    size, batch = experiment.data.image_size, -(-experiment.training.batch_size // workers)
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        model = build_model(_with_random_weights(experiment)).train()
        model(torch.empty(batch, experiment.data.channels, size, size))
    weights = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    return saved + sum(4 * taken if trained else taken for taken, trained in weights)


def _with_random_weights(experiment: Experiment) -> Experiment:
    guide = experiment.guide
    if not isinstance(guide, DINOGuide):
        return experiment
    return dataclasses.replace(experiment, guide=dataclasses.replace(guide, weights="random", sha256=None))


def probe(
    values: Mapping[str, Any],
    workers: int,
    cpus: int,
    device: str,
    backbones: Sequence[Any] = (),
    own_code: dict[str, list[str]] | None = None,
) -> int | None:
    """Peak memory of this process in bytes over two training steps; ``None`` when there is not enough.

    Args:
        values: Of the experiment.
        workers: Among which a batch is shared out.
        cpus: Threads.
        device: Of the model.
        backbones: What is known of them, from ``known.packed``.
        own_code: From ``targets.packed``.
    """
    others = taken_on_gpus() if device == "cuda" else {}
    adopt(backbones)
    targets.adopt(own_code or {})
    torch.set_num_threads(cpus)
    if device == "cpu":
        # A trial's process has its imports too.
        from guidino_tune.training import loop  # noqa: F401
    end = quick_kernels(torch.device(device))  # cuDNN's quickest algorithms take memory of their own
    try:
        trained = _two_steps(Experiment.from_dict(values), workers, torch.device(device))
    except Exception as error:
        if failure_kind(error) != "out-of-memory":
            raise
        return None
    finally:
        end()
    buckets = trained if workers > 1 else 0  # DDP's second copy of the gradients
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        # What is taken but not torch's own: the context, the kernels, the libraries; without what others had before.
        before = others.get(f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}", 0)
        beside = max(CONTEXT, total - free - torch.cuda.memory_reserved() - before)
        return torch.cuda.max_memory_reserved() + beside + buckets
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) + buckets


def taken_on_gpus() -> dict[str, int]:
    """Bytes that are taken on each GPU of this node, by whomever, by its UUID; empty where the driver's tool does not tell.

    Asked before this process is there itself: what others take is not to be counted as a trial's. Numbers would not do, for those of the
    tool are not CUDA's where there are several types of GPU.
    """
    command = ["nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=SMI, check=True).stdout
        rows = (line.split(",") for line in told.splitlines())
        return {uuid.strip(): int(used) * 2**20 for uuid, used in rows}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def _two_steps(experiment: Experiment, workers: int, device: torch.device) -> int:
    """Trains on noise as the training loop does; the optimiser's state comes with the first step, the peak with the second.

    Where a trial may compile (``auto``), the peak is that of compiled steps after others, which is the most that it can take.

    Returns:
        Bytes of the trained weights.
    """
    training, section = experiment.training, experiment.data
    model = build_model(experiment).to(device).train()
    if training.channels_last:
        model.segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = SegmentationLoss(experiment.loss, section.num_classes, section.has_ignored).to(device)
    optimizer = make_optimizer(model.named_parameters(), training)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batch, size = -(-training.batch_size // workers), section.image_size
    compiled = Compiled(model.segmenter, training.compile, batch)
    images = torch.randn(batch, section.channels, size, size, device=device)
    if training.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, section.num_classes + 1, (batch, 1, size, size), device=device).float()

    def steps(number: int) -> None:
        for _ in range(number):
            with autocast_in(training.precision, device):
                prediction = model(images)
            total = loss(prediction.logits, prediction.guide, masks)["total"]
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            if training.grad_clip is not None:
                nn.utils.clip_grad_norm_(parameters, training.grad_clip, foreach=True)
            optimizer.step()
        total.item()  # waits for the device, so that an error belongs to this probe

    steps(2 if compiled.way == NONE else GRAPH_STEPS)
    if training.compile == "auto":
        # The first way is the one that takes most; a trial where it fails runs as it is, in what was measured before.
        for way in ways_for(model.segmenter, device, 1)[:1]:
            with suppress(Exception):
                compiled.take(way)
                steps(GRAPH_STEPS)
    return sum(p.numel() * p.element_size() for p in parameters)


def backbone_bytes(experiment: Experiment) -> int:
    """Of an experiment's backbone; 0 without one."""
    with torch.device("meta"):
        backbone = build_model(_with_random_weights(experiment)).backbone
    return sum(p.numel() * p.element_size() for p in backbone.parameters()) if backbone else 0


def describe(experiment: Experiment, workers: int) -> str:
    """A shape in words."""
    guide = experiment.guide
    backbone = f" on {guide.backbone}" if isinstance(guide, DINOGuide) else ""
    size, batch = experiment.data.image_size, -(-experiment.training.batch_size // workers)
    return f"{experiment.name}{backbone} with {batch} image(s) of {size} x {size}"


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits, the same for equal values everywhere."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
