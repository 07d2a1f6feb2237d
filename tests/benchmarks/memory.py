"""How much memory do trials that share their images take, against as many independent trainings?

    python tests/benchmarks/memory.py --data /data/kvasir --images 800 --image-size 256

Ours are processes that train as trial actors do, forked from one that has imported everything, on one table of decoded images and one
store of views and tokens. The others each import everything, decode all images into float32 tensors (masks into bytes), and run a guide of
their own in every step instead of keeping its tokens. All train the same guided U-Net on batches of the same size. Measured in the second
epoch, when all of them are in it: per process the memory that is its own (USS), and for all together the sum in which shared pages count
once (PSS). The note tells what a process of ours takes that has done nothing yet. Linux only; an epoch is cut to a few steps, for memory
does not grow with them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from epoch_overhead import DEVICE, Bare
from measuring import kvasir_root, parser, report

from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.data.augmentation import make_augmentation
from guidino_tune.data.batches import Batch
from guidino_tune.data.decoding import read_case
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.rules import plain_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.data.store import ChunkStore
from guidino_tune.framing import place, place_mask
from guidino_tune.normalisation import normalise
from guidino_tune.running import executors
from guidino_tune.training.loop import TrainingRun

AIM = 0.5
EVERY = 0.2  # seconds between two looks
PATIENCE = 900.0  # seconds for which nobody waits longer

Way = Callable[[Experiment, int, int, Barrier, Path], None]
"""Trains in a process of its own: of an experiment, so many steps per epoch, as the process of that number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    options = arguments(argv)
    experiment = experiment_of(options)
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        fill(experiment, scratch)
        idle, ours, ours_together = measure(shared, experiment, scratch, options)
        _, others, others_together = measure(independent, experiment, scratch, options)
    note = f"{ours:.0f} against {others:.0f} MB, of which ours take before they begin {idle:.0f} MB"
    what = f"{options.processes} trainings of {experiment.name}, {options.images} images of {options.image_size} pixels"
    line = (f"memory {options.image_size} {options.images}", f"{what}: own memory of a trial / of an independent training")
    report(*line, [ours / others], output=options.output, aim=AIM, note=note)
    note = f"{ours_together:.0f} against {others_together:.0f} MB; beyond the imports {(ours - idle) / (others - idle):.2f} of each one's"
    line = (f"memory {options.image_size} {options.images} together", f"{what}: all trials / all independent trainings")
    report(*line, [ours_together / others_together], output=options.output, aim=AIM, note=note)
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--images", type=positive, default=200, help="for training; Kvasir-SEG has 800; default: %(default)s")
    made.add_argument("--image-size", type=positive, default=256, help="in pixels; default: %(default)s")
    made.add_argument("--processes", type=positive, default=4, help="side by side; default: %(default)s")
    made.add_argument("--steps", type=positive, default=1, help="per epoch; default: %(default)s")
    options = made.parse_args(argv)
    options.data = kvasir_root(options)
    return options


def experiment_of(options: argparse.Namespace) -> Experiment:
    """GuiDINO-U at its defaults; one epoch of views, so that the store is soon full."""
    data = {"kind": "kvasir", "root": options.data, "image_size": options.image_size, "view_cycle": 1}
    limits = {"max_train_cases": options.images, "max_validation_cases": 4}
    guide = {"kind": "dino", "backbone": "vits16", "weights": "random"}
    return Experiment.from_dict(
        {"data": data | limits, "guide": guide, "segmenter": {"kind": "unet"}, "training": {"steps_per_epoch": "cases"}}
    )


def fill(experiment: Experiment, scratch: Path) -> None:
    """Decodes the images and fills the store, as earlier trials did."""
    run = started(experiment, scratch, "first")
    for _ in run.views.epoch(0):
        pass
    run.close()


def started(experiment: Experiment, scratch: Path, name: str) -> TrainingRun:
    """A run as the trial actor starts it."""
    told: dict[str, Any] = {}
    data = open_for_search(experiment.data, cache=scratch / "cache")
    reporter = executors._TuneReporter(scratch / name, told.update)
    return TrainingRun(experiment, data, reporter, device=str(DEVICE), store=ChunkStore(scratch / "views"))


def shared(experiment: Experiment, steps: int, number: int, barrier: Barrier, scratch: Path) -> None:
    """Two epochs of a trial, each with validation, checkpoint and pictures."""
    imported(barrier)
    run = started(experiment, scratch, f"trial-{number}")
    whole = run.views.epoch
    run.views.epoch = lambda epoch, *, pin=False: islice(whole(epoch, pin=pin), steps)  # type: ignore[assignment, method-assign, return-value]
    train(lambda: run.run_epoch(), barrier)


def independent(experiment: Experiment, steps: int, number: int, barrier: Barrier, scratch: Path) -> None:
    """Two epochs without anything shared; nothing is validated or written."""
    imported(barrier)
    data = open_for_search(experiment.data, cache=scratch / "cache")
    names = set(data.train.ids)
    size = experiment.data.image_size
    images, masks = [], []
    for case in find_cases(experiment.data).cases:
        if case.id in names:
            image, mask = read_case(case, plain_rules(experiment.data))
            images.append(normalise(place(image, size)))
            masks.append(torch.from_numpy(place_mask(mask, size))[None])
    bare = Bare(experiment)
    augment, ids = make_augmentation(experiment.data.augmentation), sorted(names)
    generator = torch.Generator().manual_seed(number)

    def epoch() -> None:
        order = torch.randperm(len(images), generator=generator).split(experiment.training.batch_size)
        for rows in order[:steps]:
            chosen = rows.tolist()
            views = augment(torch.stack([images[row] for row in chosen]), torch.stack([masks[row].float() for row in chosen]), chosen)
            batch = Batch(*views, tuple(ids[row] for row in chosen))
            bare.step(bare.on_device(batch))

    train(epoch, barrier)


def imported(barrier: Barrier) -> None:
    """Lets the parent look at a process that has done nothing yet."""
    from transformers import DINOv3ViTModel  # noqa: F401  # otherwise first when the guide is built

    torch.set_num_threads(1)
    barrier.wait(PATIENCE)
    barrier.wait(PATIENCE)


def train(epoch: Callable[[], object], barrier: Barrier) -> None:
    """One epoch, and the one in which the parent looks."""
    epoch()
    barrier.wait(PATIENCE)
    epoch()
    barrier.wait(PATIENCE)


def measure(way: Way, experiment: Experiment, scratch: Path, options: argparse.Namespace) -> tuple[float, float, float]:
    """Runs the processes.

    Returns:
        Megabytes: own memory of a process after its imports and in the second epoch, and of all together; medians.
    """
    # As a search on CPUs does, ours are forked from a process that has imported all and computed nothing.
    context: Any = multiprocessing.get_context("forkserver" if way is shared else "spawn")
    if way is shared:
        context.set_forkserver_preload([Path(__file__).stem, "transformers.models.dinov3_vit.modeling_dinov3_vit"])
    barrier = context.Barrier(options.processes + 1)
    processes = [
        context.Process(target=way, args=(experiment, options.steps, number, barrier, scratch), daemon=True)
        for number in range(options.processes)
    ]
    for process in processes:
        process.start()
    barrier.wait(PATIENCE)
    idle = statistics.median(own_and_share(process.pid)[0] for process in processes)
    barrier.wait(PATIENCE)
    barrier.wait(PATIENCE)
    own, together = [], []
    while not barrier.n_waiting:
        looks = [own_and_share(process.pid) for process in processes]
        own.append(statistics.median(look[0] for look in looks))
        together.append(sum(look[1] for look in looks))
        time.sleep(EVERY)
    barrier.wait(PATIENCE)
    for process in processes:
        process.join()
    return idle, statistics.median(own), statistics.median(together)


def own_and_share(pid: int | None) -> tuple[float, float]:
    """Megabytes that are the process's own (USS), and its share of all (PSS)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(kilobytes) for kilobytes in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))
    share = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    assert share
    return private * 1024 / 1e6, int(share[1]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
