"""What everything together gains: the same trials as this package runs them, and as a plain training script would.

    python tests/benchmarks/against_plain_way.py --data /data/kvasir --family segguidino

Both train the same configurations for the same epochs, on the same views in the same order, with the package's own networks and losses.

- Ours: one process for all trials, which share views and the guide's tokens (an empty folder at the start), precision ``auto``,
  channels_last, a checkpoint after every epoch, and validation at training size in the epochs that a search would choose. The full protocol
  is left to the winners of a search, and not measured.
- The plain way, that of the GuiDINO code: a new Python process for every trial, fp32, the default memory format, every batch augmented and
  encoded when it is its turn, and the full protocol after every epoch: windows of the training size one by one over the image at its own
  size, half overlapping, each mirrored in four ways, then Dice, IoU, HD95 and ASD. It writes no checkpoints.

Each way has one core to itself. Everything is at half the scale of the paper's 256 pixels: windows of 128 pixels, and the validation images
resized to 264x311, half of a typical image of Kvasir-SEG, so that 16 windows cover one, as at full scale. The ratio is that of wall clock,
with the processes' starts; the note tells it without them, and that of CPU time, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import interleaved, kvasir_root, parser, ratios, report
from PIL import Image
from searching import BATCH, VALIDATION_SHARE

from guidino_tune import config
from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.data.decoding import read_case
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.sources import find_cases
from guidino_tune.data.store import ChunkStore
from guidino_tune.data.views import TrainViews
from guidino_tune.inference import slide, to_labels
from guidino_tune.losses import SegmentationLoss
from guidino_tune.metrics import mean_values, score_case, values
from guidino_tune.models import GuidedSegmenter, build_model
from guidino_tune.normalisation import normalise
from guidino_tune.study.pruners import validated_epochs
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun, use_bf16
from guidino_tune.training.optimisers import make_optimizer, set_learning_rates
from guidino_tune.training.reporter import Decision, EpochRecord

CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "segguidino": [
        {"segmenter": {"kind": "segguidino"}, "loss": {"hinge_weight": hinge}, "training": {"lr": lr}, "tokenbook": book}
        for hinge, lr, book in (
            (0.0, 1e-4, {"num_prototypes": 64}),
            (0.1, 3e-4, {"num_prototypes": 256}),
            (0.0, 1e-3, {"num_prototypes": 16, "aggregation": "softmax"}),
        )
    ],
    "convolutional": [
        {"segmenter": {"kind": kind, "base_width": width}, "loss": {}, "training": {"lr": lr}, "tokenbook": {"num_prototypes": 64}}
        for kind, width, lr in (("unet", 16, 3e-4), ("nnwnet", 8, 1e-3))
    ],
}
"""The trials of each family, all guided by a ViT-S/16; both convolutional networks have half of their width."""

WORDS = {"segguidino": "Seg-GuiDINO", "convolutional": "GuiDINO-U (base width 16) and GuiDINO-W (base width 8)"}
AIM = 1 / 5


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What either way is given.

    Attributes:
        experiments: The trials.
        cache: Folder with the decoded images.
        native: Height and width of the validation images, in pixels.
        scratch: An empty folder.
    """

    experiments: tuple[Experiment, ...]
    cache: Path
    native: tuple[int, int]
    scratch: Path


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        seconds: Without the processes' starts.
        losses: Mean training loss of each trial's last epoch.
        dice: Mean Dice of each trial's last validation, in ours at training size, in the plain way by the full protocol.
    """

    seconds: float
    losses: list[float]
    dice: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Trains in both ways and prints."""
    options = arguments(argv)
    for family in [options.family] if options.family else list(CONFIGURATIONS):
        compare(family, options)
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--family", choices=list(CONFIGURATIONS), help="default: both, one after the other")
    made.add_argument("--images", type=positive, default=16, help="for training, and an eighth of it for validation; default: %(default)s")
    made.add_argument("--image-size", type=positive, default=128, help="in pixels; default: %(default)s")
    made.add_argument("--native", type=positive, nargs=2, default=(264, 311), help="size of the validation images; default: 264 311")
    made.add_argument("--epochs", type=positive, default=2, help="of every trial; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=1, help="default: %(default)s")
    options = made.parse_args(argv)
    options.data = str(Path(kvasir_root(options)).absolute())
    return options


def compare(family: str, options: argparse.Namespace) -> None:
    """Prints the line of a family."""
    experiments = tuple(experiment_of(chosen, options) for chosen in CONFIGURATIONS[family])
    native = tuple(options.native)
    ours: list[tuple[float, Outcome]] = []
    plain: list[tuple[float, Outcome]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = open_for_search(experiments[0].data, cache=Path(scratch))  # both find the images decoded

        def run_ours() -> None:
            before = cpu_seconds()
            outcome = in_new_process(our_way, Job(experiments, Path(scratch), native, Path(scratch) / f"ours-{len(ours)}"))
            ours.append((cpu_seconds() - before, outcome))

        def run_plain() -> None:
            before = cpu_seconds()
            each = [in_new_process(plain_way, Job((e,), Path(scratch), native, Path(scratch))) for e in experiments]
            whole = Outcome(sum(one.seconds for one in each), [one.losses[0] for one in each], [one.dice[0] for one in each])
            plain.append((cpu_seconds() - before, whole))

        found = ratios(*interleaved(run_ours, run_plain, options.rounds, warmup=0))
    cpu = ratios([seconds for seconds, _ in ours], [seconds for seconds, _ in plain])
    without = ratios([outcome.seconds for _, outcome in ours], [outcome.seconds for _, outcome in plain])
    losses = ", ".join(f"{a:.3f} / {b:.3f}" for a, b in zip(ours[0][1].losses, plain[0][1].losses, strict=True))
    precision = "bf16" if use_bf16("auto", torch.device("cpu")) else "fp32"
    report(
        f"plain way {family}",
        f"{len(experiments)} trials of {WORDS[family]}, {options.epochs} epochs of {len(data.train)} images at {options.image_size} px, "
        f"{len(data.validation)} for validation: one process, shared views, {precision}, one forward pass per validation image / a process "
        f"per trial, fp32, windows of {options.image_size} px over {native[0]}x{native[1]}, mirrored, after every epoch",
        found,
        output=options.output,
        aim=AIM,
        note=f"without the processes' starts {_line(without)}; CPU time {_line(cpu)}; last training losses {losses}",
    )


def _line(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def experiment_of(chosen: dict[str, Any], options: argparse.Namespace) -> Experiment:
    """A whole experiment of one of ``CONFIGURATIONS``."""
    limits = {"max_train_cases": options.images, "max_validation_cases": max(1, options.images // VALIDATION_SHARE)}
    return Experiment.from_dict(
        {
            "data": {"kind": "kvasir", "root": options.data, "image_size": options.image_size, **limits},
            "guide": {"kind": "dino", "backbone": "vits16", "weights": "random", "tokenbook": chosen["tokenbook"]},
            "segmenter": chosen["segmenter"],
            "loss": chosen["loss"],
            "training": {"epochs": options.epochs, "batch_size": BATCH, "steps_per_epoch": "cases", **chosen["training"]},
        }
    )


def in_new_process(way: Callable[[Job], Outcome], job: Job) -> Outcome:
    """Runs one way in a Python of its own, which imports everything anew."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(way, job).result()


class Quiet(TrialFolder):
    """Saves, and tells nobody."""

    def report(self, record: EpochRecord) -> Decision:
        """See ``Reporter.report``."""
        return Decision.CONTINUE


def our_way(job: Job) -> Outcome:
    """All trials, one after the other."""
    start = begin()
    data = open_for_search(job.experiments[0].data, cache=job.cache)
    store, losses, dice = ChunkStore(job.scratch / "views"), [], []
    for number, experiment in enumerate(job.experiments):
        epochs = validated_epochs(config.Study(), experiment.training.epochs)
        run = TrainingRun(experiment, data, Quiet(job.scratch / str(number)), store=store, validated=epochs)
        run.run()
        run.close()
        losses.append(run.history[-1].metrics["train_loss_total"])
        dice.append(run.history[-1].metrics[OBJECTIVE])
    return Outcome(time.perf_counter() - start, losses, dice)


def plain_way(job: Job) -> Outcome:
    """One trial, as one would write it down."""
    start = begin()
    (experiment,) = job.experiments
    training = experiment.training
    data = open_for_search(experiment.data, cache=job.cache)
    model = build_model(experiment)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(model.named_parameters(), training)
    compute_loss = SegmentationLoss(experiment.loss)
    views = TrainViews(data.train, experiment.data, training.seed, training.batch_size)
    for epoch in range(training.epochs):
        set_learning_rates(optimizer, training, epoch)
        model.train()
        total = torch.zeros(())
        for ids in views.order(epoch):
            images, masks = (part.float() for part in views.views(epoch, ids))
            prediction = model(images)
            loss = compute_loss(prediction.logits, prediction.guide, masks)["total"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, training.grad_clip or torch.inf)
            optimizer.step()
            total += loss.detach()
        model.eval()
        dice = full_protocol(model, data, experiment, job.native)
    return Outcome(time.perf_counter() - start, [total.item() / views.num_batches], [dice])


def begin() -> float:
    """Takes one core for this process; gives the time."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return time.perf_counter()


def full_protocol(model: GuidedSegmenter, data: SearchData, experiment: Experiment, native: tuple[int, int]) -> float:
    """Mean Dice over the validation cases, with all other scores computed on the way."""
    rows = []
    for case in find_cases(experiment.data).select(data.validation.ids):
        picture, mask = (Image.fromarray(array) for array in read_case(case, data.rules))
        image = np.asarray(picture.resize(native[::-1], Image.Resampling.BILINEAR))
        truth = np.asarray(mask.resize(native[::-1], Image.Resampling.NEAREST))
        logits, _ = slide(model, normalise(image)[None], experiment.data.image_size, overlap=0.5, mirror=True, num_windows=1)
        rows.append(values(score_case(to_labels(logits)[0].numpy(), truth)))
    return mean_values(rows)["dice"]


if __name__ == "__main__":
    sys.exit(main())
