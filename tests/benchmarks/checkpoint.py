"""What does writing checkpoints cost a trial whose steps take next to nothing, as on a GPU a hundred times faster?

    python tests/benchmarks/checkpoint.py --segmenters unet,nnwnet

Ours is an epoch of the training loop with everything that is saved: weights and the optimiser's state of a real network, each epoch better
than the one before, which is the worst case. The other is the same epoch with nothing saved. In the place of the steps of 800 images in
batches of 4 both compute something small for a hundredth of the time that a step of this network takes here; validation is left out.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from measuring import parser, ratios, report, seconds_of

from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.data.opening import open_for_search
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.reporter import Decision, EpochRecord

AIM = 1.05
STEPS, FASTER = 200, 100


class Folder(TrialFolder):
    """Takes checkpoints; with ``keeps`` off, none."""

    keeps = True

    def save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        if self.keeps:
            super().save(epoch, write, best=best)

    def report(self, record: EpochRecord) -> Decision:
        return Decision.CONTINUE


def main(argv: Iterable[str] | None = None) -> int:
    """Measures and prints."""
    options = arguments(argv)
    torch.set_num_threads(1)
    for kind in options.segmenters.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measure(kind, Path(folder), options)
    return 0


def arguments(argv: Any) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--segmenters", default="unet,segguidino", help="some, with commas; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=4, help="of each epoch; default: %(default)s")
    made.add_argument("--image-size", type=positive, default=256, help="in pixels; default: %(default)s")
    return made.parse_args(argv)


def measure(kind: str, folder: Path, options: argparse.Namespace) -> None:
    """One segmenter."""
    data = {"kind": "demo", "image_size": options.image_size, "max_train_cases": 4, "max_validation_cases": 1}
    guide = {"kind": "dino", "backbone": "vits16", "weights": "random"}
    experiment = Experiment.from_dict(
        {"data": data, "guide": guide, "segmenter": {"kind": kind}, "training": {"epochs": 1000, "steps_per_epoch": "cases"}}
    )
    images = open_for_search(experiment.data, cache=folder / "cache")
    runs = [TrainingRun(experiment, images, Folder(folder / name), validated=()) for name in ("ours", "other")]
    runs[1].reporter.keeps = False  # type: ignore[attr-defined]
    runs[1]._writer = lambda: lambda path: None  # type: ignore[method-assign]
    step = min(seconds_of(runs[0]._train) for _ in range(2))
    runs[1]._train()
    for run in runs:
        null_network(run, step / FASTER)
    one = seconds_of(runs[1].run_epoch)
    times: list[tuple[float, float]] = []
    for _ in range(options.rounds + 1):
        times.append((seconds_of(runs[0].run_epoch), seconds_of(runs[1].run_epoch)))
    begun = time.perf_counter()
    for run in runs:
        run.close()
    left = time.perf_counter() - begun
    size = sum(file.stat().st_size for file in runs[0].reporter.checkpoints()[0].iterdir())
    report(
        f"checkpoint {kind}", "an epoch with a checkpoint / without, steps 100 times faster than here",
        ratios(*zip(*times[1:], strict=True)), output=options.output, aim=AIM,  # type: ignore[arg-type]
        note=f"{size / 1e6:.0f} MB, epochs of {one:.2f} s ({STEPS} steps); the end waited {left:.2f} s for the last one",
    )  # fmt: skip


def null_network(run: TrainingRun, seconds: float) -> None:
    """Lets each epoch take so many seconds a step, and be better than the one before."""
    tensor, count = torch.randn(64, 64), itertools.count()

    def train() -> tuple[dict[str, float], int]:
        for _ in range(STEPS):
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                tensor @ tensor  # keeps the interpreter as busy as a loop that starts the work of a GPU
        return {OBJECTIVE: next(count) * 1e-3, "lr": 0.0}, 4 * STEPS

    run._train = train  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
