"""How much disk the views and tokens of a whole study may take, and what to do where that is more than there is."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from guidino_tune import paths
from guidino_tune.config import DINOGuide, Experiment, Resources
from guidino_tune.config.epochs import batches_per_pass, steps_per_epoch
from guidino_tune.data.room import budget_of
from guidino_tune.data.views import passes_ahead
from guidino_tune.models import build_model
from guidino_tune.training.tokens import kept_layers

CELL = 16
"""Pixels of an image, along each side, for one token."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What some trials of a study share.

    Attributes:
        name: In words.
        passes: Over the training cases, that lie there together when a trial of full budget was trained; each is made once.
        bytes_per_pass: On the disk.
        kept: Bytes besides: tokens of the validation images.
    """

    name: str
    passes: int
    bytes_per_pass: int
    kept: int = 0

    @property
    def bytes(self) -> int:
        """If some trial of this kind is trained to its end."""
        return self.passes * self.bytes_per_pass + self.kept


def kinds(experiments: Iterable[Experiment], train: int, validation: int, workers: int = 1, *, once: bool = False) -> list[Kind]:
    """All that the trials of a study may make, the images first.

    Args:
        experiments: That the study may run.
        train: Training cases.
        validation: Validation cases.
        workers: That share a batch.
        once: What a trial was trained on is removed again.
    """
    images: dict[str, Kind] = {}
    tokens: dict[str, Kind] = {}
    known: dict[tuple[object, ...], tuple[str, int]] = {}
    for experiment in experiments:
        data, guide, passes = experiment.data, experiment.guide, _passes(experiment, train, workers, once)
        size, seed = data.image_size, f", seed {experiment.training.seed}"
        name = f"images of {size} px{seed}"
        images[name] = _longer(images.get(name), Kind(name, passes, train * size**2 * (2 * data.channels + 1)))
        if not isinstance(guide, DINOGuide) or guide.trained != "frozen":
            continue
        options = [getattr(experiment.segmenter, option, None) for option in ("layers", "final_norm")]
        network = (guide.backbone, guide.weights, experiment.segmenter.kind, size, experiment.gate, *options)
        if network not in known:
            known[network] = _tokens(experiment)
        layers, width = known[network]
        precision = "" if experiment.training.precision == "auto" else f" in {experiment.training.precision}"
        name = f"tokens of {Path(guide.backbone).name}, {layers}{precision}, {size} px{seed}"
        each = width * (size // CELL) ** 2 * 2
        tokens[name] = _longer(tokens.get(name), Kind(name, passes, train * each, validation * each))
    return [*images.values(), *sorted(tokens.values(), key=lambda kind: -kind.bytes)]


def _longer(one: Kind | None, other: Kind) -> Kind:
    return other if one is None or other.passes > one.passes else one


def _passes(experiment: Experiment, train: int, workers: int, once: bool) -> int:
    training, cycle = experiment.training, experiment.data.view_cycle
    batches = max(1, batches_per_pass(train, training.batch_size, workers))
    steps = steps_per_epoch(training.steps_per_epoch, batches)
    begun = -(-training.epochs * steps // batches)
    if once and not cycle:
        # The pass before an epoch's first one is removed when the next epoch begins.
        return max(
            min(far.stop, begun) - max(0, far.start - 1) for _, far in (passes_ahead(e, steps, batches) for e in range(training.epochs))
        )
    return min(begun, cycle or begun)


def _tokens(experiment: Experiment) -> tuple[str, int]:
    """The layers whose tokens are kept, in words, and their channels together; of a network without memory for its weights."""
    assert isinstance(experiment.guide, DINOGuide)
    with torch.device("meta"):
        model = build_model(dataclasses.replace(experiment, guide=dataclasses.replace(experiment.guide, weights="random", sha256=None)))
    assert model.backbone is not None
    shape = model.backbone.shape
    layers = kept_layers(model.feature_request, shape.num_layers)
    words = f"layers {', '.join(map(str, layers))} and the last" if layers else "the last layer"
    return words, shape.width + sum(shape.layer_widths[layer] for layer in layers)


def in_words(found: Iterable[Kind], resources: Resources) -> list[str]:
    """A line for the folder and its space, one for each kind, and what to do where they do not fit."""
    folder = Path(resources.views_folder or paths.views())
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    asked = None if resources.views_gigabytes is None else int(resources.views_gigabytes * 1e9)
    budget = budget_of(asked, shutil.disk_usage(there).free)
    said = "half of what the disk has for them, at most 200 GB" if asked is None else "resources.views_gigabytes"
    lines = [f"{folder}, at most {_size(budget)} ({said})"]
    found = list(found)
    lines += [f"{kind.name}: up to {_size(kind.bytes)} ({kind.passes} passes of {_size(kind.bytes_per_pass)})" for kind in found]
    whole = sum(kind.bytes for kind in found)
    if resources.share_views == "once":
        lines.append("so much of each trial at work: what it was trained on is removed, unless data.view_cycle repeats it")
    elif len(found) > 1:
        lines.append(f"together up to {_size(whole)}, if a trial of each kind is trained to its end")
    if whole > budget:
        most = max((kind.passes for kind in found), default=1)
        fitting = int(most * budget / whole)
        cycle = f"data.view_cycle={fitting} repeats the views of {fitting} passes, which fit" if fitting else "one pass alone does not fit"
        lines.append(
            f"more than there is: what fewest trials read is removed, and made again where it is needed, which takes time and changes no "
            f"result; to avoid it raise resources.views_gigabytes, name a larger disk (resources.views_folder), or repeat views ({cycle})"
        )
    return lines


def _size(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"
