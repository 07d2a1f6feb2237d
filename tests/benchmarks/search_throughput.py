"""How much faster does the same search run when its trials share augmented images and the guide's tokens?

    python tests/benchmarks/search_throughput.py --data /data/kvasir --family segguidino

Runs whole searches (Optuna's study, Ray, MLflow on SQLite) with ``resources.share_views`` on and off, each in an empty home folder, so that
the first trials make the views that the others read. Random search with one seed and asynchronous successive halving: both searches try the
same configurations with the same budget. By default one trial runs after the other on all cores, for which of them are stopped early would
else depend on who is first at a rung. The ratio is that of the seconds from the beginning of the first epoch of any trial to the end of the
last one of any; what Ray and the first process take to start is not in it. The note tells how far the starts change it, how many epochs
each search trained, and whether both found the same best trial.

Everything else is at its defaults on both sides: batches of 4, precision ``auto``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import kvasir_root, parser, ratios, report
from searching import FAMILIES, make_space

from guidino_tune.cli import positive

AIMS = {"segguidino": 1 / 4, "convolutional": 1 / 1.2}
IMAGES = {"segguidino": 28, "convolutional": 8}
SIZES = {"segguidino": 128, "convolutional": 96}
"""Number of the training images, and their size in pixels: a head's epoch of fewer takes less than the checkpoint after it, and the
convolutional networks would take many minutes for more."""


@dataclass(frozen=True, slots=True)
class Searched:
    """What one search gave.

    Attributes:
        seconds: From the first epoch's beginning to the last one's end.
        whole: Of the whole call, but for Ray's cluster, which all searches share.
        epochs: Trained by all trials together.
        asked: Values of every trial, by number.
        best: Number of the best trial.
        dice: Its score.
    """

    seconds: float
    whole: float
    epochs: int
    asked: list[dict[str, Any]]
    best: int
    dice: float


def main(argv: Sequence[str] | None = None) -> int:
    """Searches and prints; the exit code is 1 when two searches differed in more than their speed."""
    options = arguments(argv)
    from guidino_tune.running.connection import connected

    families = [options.family] if options.family else list(FAMILIES)
    with connected():
        return max([compare(family, options) for family in families])


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--family", choices=list(FAMILIES), help="default: both, one after the other")
    made.add_argument("--images", type=positive, help="for training, and an eighth of it for validation; default: 28 for heads, else 8")
    made.add_argument("--image-size", type=positive, help="in pixels; default: 128 for heads, else 96")
    made.add_argument("--trials", type=positive, default=24, help="of a search; default: %(default)s")
    made.add_argument("--epochs", type=positive, default=9, help="of a trial that is not stopped early; default: %(default)s")
    made.add_argument("--concurrent", type=positive, default=1, help="trials side by side, which share the cores; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=1, help="searches of each kind; default: %(default)s")
    options = made.parse_args(argv)
    options.data = str(Path(kvasir_root(options)).absolute())
    return options


def compare(family: str, options: argparse.Namespace) -> int:
    """Prints the line of a family."""
    shared, alone = [], []
    images, size = options.images or IMAGES[family], options.image_size or SIZES[family]
    for _ in range(options.rounds):
        shared.append(search(family, options, images, size, share=True))
        alone.append(search(family, options, images, size, share=False))
    found = [*shared, *alone]
    same_trials = all(one.asked == found[0].asked for one in found)
    best = {one.best for one in found}
    whole = ratios([one.whole for one in shared], [one.whole for one in alone])
    sizes, trials = f"{size} px, {images} images", f"{options.trials} trials of up to {options.epochs} epochs"
    verdict = "the same" if len(best) == 1 else "DIFFERENT"
    winners = ", ".join(f"{one.best}: Dice {one.dice:.4f}" for one in found)
    epochs = ", ".join(f"{a.epochs} / {b.epochs}" for a, b in zip(shared, alone, strict=True))
    note = (
        f"{'the same' if same_trials else 'DIFFERENT'} configurations; {verdict} best trial ({winners}); "
        f"epochs trained {epochs}; with the processes' starts {', '.join(f'{ratio:.3g}' for ratio in whole)}"
    )
    report(
        f"search {family}",
        f"{trials} of {FAMILIES[family]['words']} at {sizes}, {options.concurrent} side by side: shared views / each trial its own",
        ratios([one.seconds for one in shared], [one.seconds for one in alone]),
        output=options.output,
        aim=AIMS[family],
        note=note,
    )
    return 0 if same_trials and len(best) == 1 else 1


def search(family: str, options: argparse.Namespace, images: int, size: int, *, share: bool) -> Searched:
    """One search in a home folder of its own."""
    from guidino_tune.study.store import StudyFolder, load_study
    from guidino_tune.study.trials import ranking
    from guidino_tune.workflows.search import run_search

    with tempfile.TemporaryDirectory() as home:
        os.environ["GUIDINO_TUNE_HOME"] = home
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        space = make_space(
            family,
            root=options.data,
            image_size=size,
            images=images,
            epochs=options.epochs,
            study={"name": "benchmark", "trials": options.trials, "sampler": "random", "min_epochs": 1, "reduction_factor": 3, "seed": 0},
            resources={
                "executor": "actor",
                "share_views": share,
                "concurrent": options.concurrent,
                "cpus_per_worker": max(1, (os.cpu_count() or 1) // options.concurrent),
            },
        )
        start = time.perf_counter()
        code = run_search(space).exit_code
        whole = time.perf_counter() - start
        if code:
            raise RuntimeError(f"the search ended with exit code {code}")
        folder = StudyFolder(Path(home) / "studies" / "benchmark")
        study = load_study(folder)
        trials = study.get_trials()
        records = [record for trial in trials for record in folder.trial(trial.number).history()]
        best = ranking(study)[0]
        return Searched(
            seconds=max(r.time for r in records) - min(r.time - r.metrics["epoch_seconds"] for r in records),
            whole=whole,
            epochs=len(records),
            asked=[trial.params for trial in trials],
            best=best.number,
            dice=float(best.value or 0.0),
        )


if __name__ == "__main__":
    sys.exit(main())
