"""What the driver of a search costs for each trial, and whether that grows with the number of trials.

    python tests/benchmarks/driver.py --trials 2000

Drives the driver as Ray Tune would, with trials that compute nothing: asks, told epochs and endings through study, recorder, progress and
MLflow tracking on SQLite, all in a temporary folder. The space is that of Kvasir-SEG with its first trials; random scores make the pruner
stop about nine trials of ten. Prints milliseconds per trial, and the growth: the last trials' median divided by the first trials', of the
wall clock and of the CPU time of the driver's thread.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measuring import parser, report
from rich.console import Console

from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.space.space import Space, load_space, override
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.tracking import DatasetInfo, MLflowTracker, StudySnapshot, flatten
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.progress import Progress
from guidino_tune.workflows.recorder import Recorder

Spent = npt.NDArray[np.float64]
"""Seconds of wall clock, and of CPU of the driver's thread."""

EPOCHS = 8
WINDOW = 200  # trials at either end whose medians are compared
MILLISECONDS, GROWTH = 25, 1.5
"""Aims: of the wall clock per trial, and of the last trials over the first."""

METRICS = [
    *(
        "train_loss_total",
        "train_loss_dice",
        "train_loss_bce",
        "train_loss_guide",
        "train_loss_hinge",
        "lr",
        "val_iou",
        "val_hd95",
        "val_asd",
    ),
    *("epoch_seconds", "images_per_second"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trials and prints the table."""
    made = parser(__doc__)
    made.add_argument("--trials", type=positive, default=2000, help="default: %(default)s")
    made.add_argument("--concurrent", type=positive, default=8, help="trials side by side; default: %(default)s")
    made.add_argument("--sampler", default="tpe", help="of the study; default: %(default)s")
    made.add_argument("--no-tracking", action="store_true", help="leaves MLflow out")
    made.add_argument("--wait", type=positive, default=1, help="seconds for MLflow to have all, after the last trial; default: %(default)s")
    options = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        tracking = None if options.no_tracking else options.wait
        spent, cpu, lag = measure(Path(scratch), options.trials, options.concurrent, options.sampler, tracking)
    print(f"{len(spent)} trials, {options.concurrent} side by side, sampler {options.sampler}\n")
    print("| driver, milliseconds per trial | median (10th to 90th percentile) | mean | first, last trials | growth |")
    print("|---|---:|---:|---:|---:|")
    window = min(WINDOW, len(spent) // 2)
    medians, growths = [], []
    for name, values in zip(("wall clock", "CPU of its thread"), 1000 * np.array(spent).T, strict=True):
        low, middle, high = np.percentile(values, [10, 50, 90])
        first, last = np.median(values[:window]), np.median(values[-window:])
        print(f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) | {values.mean():.1f} | {first:.1f}, {last:.1f} | {last / first:.2f} |")
        medians.append(middle)
        growths.append(float(last / first))
    behind = f"{lag:.1f} s" if lag < options.wait else f"more than {options.wait} s"
    print(f"\nWhole process: {1000 * cpu / len(spent):.1f} ms of CPU per trial. Tracking was {behind} behind after the last trial.\n")
    met = "met" if medians[0] <= MILLISECONDS else "missed"
    note = f"{medians[0]:.1f} ms a trial ({medians[1]:.1f} of CPU), aim {MILLISECONDS} ms: {met}; CPU time grows by {growths[1]:.2f}"
    compared = f"driver of {len(spent)} trials that do nothing: a trial at the end / at the start"
    report("driver", compared, growths[:1], output=options.output, aim=GROWTH, note=note)
    return 0


def measure(home: Path, trials: int, concurrent: int, sampler: str, tracking: int | None) -> tuple[list[Spent], float, float]:
    """Runs no-op trials.

    Args:
        home: An empty folder.
        trials: How many.
        concurrent: How many run side by side.
        sampler: Of the study.
        tracking: Seconds to wait for MLflow at the end; ``None``: it is not told.

    Returns:
        What each trial cost the driver, in the order in which they ended; CPU seconds of the whole process; seconds of waiting
        for MLflow.
    """
    space = override(
        load_space("kvasir"),
        [f"study.trials={trials}", f"study.sampler={sampler}", "study.min_epochs=2", f"training.epochs={EPOCHS}"],
    )
    folder = StudyFolder(home / "study")
    study = open_study(space, folder)
    images = DatasetInfo("kvasir", "0" * 36, 700, 100)
    snapshot = StudySnapshot("driver", params=flatten(space.base.to_dict()), datasets=(images,), id="driver")
    tracker = MLflowTracker(f"sqlite:///{home}/mlflow.db", "driver", snapshot, folder.ledger, home / "artifacts")
    recorder = Recorder(study, space, folder, tracker, snapshot)
    if tracking is not None:
        tracker.start()
        tracker.flush(120)  # the database is made by now
    with open(os.devnull, "w") as nowhere:
        progress = Progress(study, space, Console(file=nowhere, width=160))

        def listener(number: int, experiment: Experiment, record: EpochRecord | None) -> None:
            recorder.changed(number, experiment, record)
            if record is None:
                progress.changed(number)

        recorder.sync()
        driver = Driver(study, space, folder, listener, {"executor": "actor"})
        cpu = time.process_time()
        seconds = run_trials(driver, space, folder, concurrent)
        waiting = time.perf_counter()
        if tracking is not None:
            tracker.close(timeout=tracking)
        return seconds, time.process_time() - cpu, time.perf_counter() - waiting


def run_trials(driver: Driver, space: Space, folder: StudyFolder, concurrent: int) -> list[Spent]:
    """Keeps ``concurrent`` trials running, which tell an epoch in turn, until the study has all it wants; see ``measure``."""
    rng = np.random.default_rng(0)
    running: deque[tuple[str, TrialFolder, int]] = deque()
    spent: dict[str, Spent] = {}
    ended: list[Spent] = []
    while len(ended) < space.study.trials:
        while len(running) < concurrent and len(spent) < space.study.trials:
            name = f"tune-{len(spent)}"
            start = now()
            config = driver.ask(name)
            spent[name] = now() - start
            assert config  # the study wants more
            place = TrialFolder(Path(config["folder"]))
            place.path.mkdir(parents=True)
            running.append((name, place, 1))
        name, place, epoch = running.popleft()
        values = {metric: float(rng.random()) for metric in METRICS} | {"val_dice": float(rng.random())}
        record = EpochRecord(epoch, values, time.time())
        place.append_history(record)  # as the trial's own process does
        start = now()
        going_on = driver.report(name, [record])
        if not going_on:
            driver.tell(name, crashed=False)
        spent[name] = spent[name] + now() - start
        if going_on:
            running.append((name, place, epoch + 1))
        else:
            ended.append(spent[name])
    return ended


def now() -> Spent:
    """Two clocks: the wall's, and the CPU time of this thread, which other programs on the machine do not change."""
    return np.array([time.perf_counter(), time.thread_time()])


if __name__ == "__main__":
    sys.exit(main())
