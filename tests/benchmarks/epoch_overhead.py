"""What does an epoch of a trial cost beyond the steps of its network?

    python tests/benchmarks/epoch_overhead.py --data /data/kvasir --segmenters unet,nnwnet

Ours is a whole epoch as the trial actor runs it: views and tokens read from the store that other trials have filled, transfers, steps,
metrics, report, checkpoint, and in an epoch that validates also scores, best weights and pictures. The other is the bare step (forward
pass, losses, backward pass, clipping, optimiser) of the same model as often, on batches and tokens that are in memory already. An
epoch with validation and one without take turns with it. The first line of each segmenter is their mean over a trial, weighted as the
search of Kvasir-SEG validates (HD95, once at the end, left out); --first-trial adds a line for the trial that fills the store.

16 training and 2 validation images have the proportion of Kvasir-SEG, and so have 64 and 8 for heads, whose steps are quick; what does not
depend on their number, such as a checkpoint, is spread over a fraction of its 800 images here.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import kvasir_root, parser, ratios, report, seconds_of
from torch import nn

from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.data.batches import Batch
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.store import ChunkStore
from guidino_tune.errors import UserError
from guidino_tune.losses import SegmentationLoss
from guidino_tune.models import build_model
from guidino_tune.models.precision import use_bf16
from guidino_tune.running import executors
from guidino_tune.running.drawing import VALIDATION, draw
from guidino_tune.space.space import load_space
from guidino_tune.study.pruners import rungs, validated_epochs
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.optimisers import make_optimizer
from guidino_tune.training.tokens import shared_backbone, to_features

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEGMENTERS = "unet,nnwnet,segguidino"
CYCLE = 4  # epochs of different views: of their chunks a run keeps half open at most
IMAGES = {"segguidino": 64, "segdino": 64}  # for training; a convolutional network has 16
FIRST = 2  # epochs of the first trial that count, after its first
AIM = 1.10


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs of a segmenter share."""

    experiment: Experiment
    data: SearchData
    scratch: Path


def main(argv: Iterable[str] | None = None) -> int:
    """Measures and prints; the exit code is 2 for a mistake in the arguments or the data."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.segmenters.split(","):
            try:
                experiment = experiment_of(kind, options)
                data = open_for_search(experiment.data, cache=Path(scratch) / "cache")
            except UserError as error:
                print(error, file=sys.stderr)
                return 2
            setting = Setting(experiment, data, Path(scratch))
            bare = shared_views(setting, options)
            if options.first_trial:
                first_trial(setting, bare, options)
            del bare
            gc.collect()
    return 0


def arguments(argv: Any) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--segmenters", default=SEGMENTERS, help="some, with commas; default: %(default)s")
    made.add_argument("--image-size", type=positive, default=128, help="in pixels; default: %(default)s")
    made.add_argument("--images", type=positive, help="for training, and an eighth of it for validation; default: 64 for heads, else 16")
    made.add_argument("--rounds", type=positive, default=2, help="of each epoch; default: %(default)s")
    made.add_argument("--first-trial", action="store_true", help="also that which fills the store")
    made.add_argument("--threads", type=positive, default=1, help="of torch, as CPUs of a trial; default: %(default)s")
    options = made.parse_args(argv)
    options.data = kvasir_root(options)
    return options


def experiment_of(kind: str, options: argparse.Namespace) -> Experiment:
    """The guided segmenter at its defaults, with the budget of the search of Kvasir-SEG."""
    data = {"kind": "kvasir", "root": options.data, "image_size": options.image_size}
    images = options.images or IMAGES.get(kind, 16)
    limits = {"max_train_cases": images, "max_validation_cases": max(1, images // 8), "view_cycle": CYCLE}
    guide = {"kind": "dino", "backbone": "vits16", "weights": "random"}
    epochs = load_space("kvasir").base.training.epochs
    return Experiment.from_dict(
        {"data": data | limits, "guide": guide, "segmenter": {"kind": kind}, "training": {"epochs": epochs, "steps_per_epoch": "cases"}}
    )


class Bare:
    """The bare training steps of an experiment.

    Args:
        experiment: What is trained.
        batches: Of one epoch, as the views give them; they are brought to the device, in float32 and in the memory format of the training.
    """

    def __init__(self, experiment: Experiment, batches: Iterable[Batch] = ()) -> None:
        training = experiment.training
        self.model = build_model(experiment, backbone=shared_backbone(experiment)).to(DEVICE).train()
        self.layout: Any = torch.channels_last if training.channels_last else torch.contiguous_format
        self.model.segmenter.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=use_bf16(training.precision, DEVICE))
        self.loss = SegmentationLoss(experiment.loss)
        self.optimizer = make_optimizer(self.model.named_parameters(), training)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.largest_norm = training.grad_clip or float("inf")
        self.batches = [self.on_device(batch) for batch in batches]

    def on_device(self, batch: Batch) -> Batch:
        """In the memory format of the training."""
        moved = batch.to(DEVICE)
        images, *tokens = (x.contiguous(memory_format=self.layout) for x in (moved.images, *moved.tokens))
        return replace(moved, images=images, tokens=tuple(tokens))

    def step(self, batch: Batch) -> None:
        """One, of a batch on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            prediction = self.model(batch.images, to_features(batch.tokens))
        self.loss(prediction.logits, prediction.guide, batch.masks)["total"].backward()
        nn.utils.clip_grad_norm_(self.parameters, self.largest_norm)
        self.optimizer.step()

    def epoch(self) -> None:
        """A step with each batch."""
        for batch in self.batches:
            self.step(batch)


def start(setting: Setting, name: str, store: ChunkStore) -> TrainingRun:
    """A run that saves and reports as that of the trial actor."""
    told: dict[str, Any] = {}
    reporter = executors._TuneReporter(setting.scratch / setting.experiment.segmenter.kind / name, told.update)
    return TrainingRun(setting.experiment, setting.data, reporter, device=str(DEVICE), store=store, validated=())


def epoch_of(run: TrainingRun, *, validated: bool) -> Callable[[], None]:
    """The next epoch as the trial actor runs it."""

    def call() -> None:
        run.validated = (run.epoch + 1,) if validated else ()
        run.run_epoch()  # pictures are timed by themselves

    return call


def shared_views(setting: Setting, options: argparse.Namespace) -> Bare:
    """Prints the lines of a trial that finds its views and tokens in the store; gives the bare steps."""
    experiment = setting.experiment
    run = start(setting, "shared", ChunkStore(setting.scratch / "views"))
    epochs = [list(run.views.epoch(epoch)) for epoch in range(CYCLE)]
    bare = Bare(experiment, epochs[0])
    del epochs
    run._validate(distances=False)  # fills the store with the tokens of the validation cases
    calls = [epoch_of(run, validated=False), bare.epoch, epoch_of(run, validated=True)]
    times: list[list[float]] = [[] for _ in calls]
    for number in range(1 + options.rounds):
        for call, found in zip(calls, times, strict=True):
            seconds = seconds_of(call)
            if number:
                found.append(seconds)
    step = statistics.median(times[1])
    alone = statistics.median(seconds_of(lambda: run._validate(distances=False)) for _ in range(3))
    saving = statistics.median(seconds_of(lambda: run.reporter.save(run.epoch, run._writer(), best=False)) for _ in range(3))
    picture = statistics.median(seconds_of(lambda: draw(run, run.shown, VALIDATION)) for _ in range(3))
    run.close()
    without, with_ = ratios(times[0], times[1]), ratios(times[2], times[1])
    study, budget = load_space("kvasir").study, experiment.training.epochs
    schedule, drawn = validated_epochs(study, budget), rungs(study, budget)
    share, pictures = len(schedule) / budget, len(drawn) / budget * picture / step
    mean = [(1 - share) * a + share * b + pictures for a, b in zip(without, with_, strict=True)]
    name = f"{experiment.segmenter.kind} {options.image_size}"
    note = f"{len(schedule)} of {budget} epochs validate, {len(drawn)} draw; in bare epochs, a checkpoint takes {saving / step:.3f}, "
    note += f"a picture {picture / step:.3f}"
    line(options, f"epoch {name}", f"epoch of {experiment.name}, mean over a trial / bare steps", mean, AIM, note)
    line(options, f"epoch {name} unvalidated", "epoch that does not validate / bare steps", without)
    note = f"validation alone takes {alone / step:.3f}"
    line(options, f"epoch {name} validated", "epoch that validates / bare steps", with_, note=note)
    return bare


def first_trial(setting: Setting, bare: Bare, options: argparse.Namespace) -> None:
    """Prints the line of a trial that makes the views and tokens itself, one epoch ahead."""
    run = start(setting, "first", ChunkStore(setting.scratch / f"views-{setting.experiment.segmenter.kind}"))
    ours, other = [], []
    # The first epoch waits for its views; later ones find what was made beside the epoch before.
    for _ in range(1 + FIRST):
        ours.append(seconds_of(epoch_of(run, validated=False)))
        other.append(seconds_of(bare.epoch))
    for _ in run.views.epoch(1 + FIRST):
        pass  # what was being prepared for the next epoch must not outlive the folder
    run.close()
    found = ratios(ours, other)
    name = f"epoch {setting.experiment.segmenter.kind} {options.image_size} first trial"
    line(options, name, "epoch of the trial that fills the store / bare steps", found[1:], note=f"its first epoch {found[0]:.2f}")


def line(options: argparse.Namespace, name: str, compared: str, found: list[float], aim: float | None = None, note: str = "") -> None:
    """Prints and writes a result."""
    report(name, compared, found, output=options.output, aim=aim, note=note)


if __name__ == "__main__":
    sys.exit(main())
