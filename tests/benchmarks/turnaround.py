"""How long a search trains nothing between two trials: from the last report of one to the first batch in the network of the next.

    python tests/benchmarks/turnaround.py

Runs the same study three times on one Ray cluster: with the reused actor, with a plain Tune function (a new process for each trial) and
with Ray Train worker groups; all of them run the same loop on real images of 128 pixels, with a U-Net and an nnWNet in turn, a random
ViT-S/16 as guide, and TPE. Prints the ratios; the actor's seconds are its note, for they have an aim of their own: at most 0.3.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import measuring

from guidino_tune.running.environment import prepare_environment
from guidino_tune.space.space import Space, read_space

EXECUTORS = ("actor", "function", "train")
NETWORKS = ("unet", "nnwnet")
SECONDS = 0.3
"""Aim for the actor's turnaround."""

MARKS = "marks.jsonl"
"""In a study's folder: when each trial reported and when its network got its first batches."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the studies and prints the results."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=EXECUTORS, help="default: all")
    parser.add_argument("--trials", type=int, default=3, help="of each executor; the actor runs twice as many; default: %(default)s")
    options = parser.parse_args(argv)
    root = measuring.kvasir_root(options)
    prepare_environment()
    import ray

    from guidino_tune.running.connection import connected

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import this file
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch, connected():
        for executor in options.executors:
            trials = options.trials * (2 if executor == "actor" else 1)
            found[executor] = gaps(run_study(space(root, executor, trials), Path(scratch), executor))
            print(f"{executor}: seconds between two trials {_seconds(found[executor])}", flush=True)
    actor = found.get("actor")
    if actor is None:
        return 0
    met = statistics.median([s for times in actor.values() for s in times]) <= SECONDS
    note = f"actor {_seconds(actor)}, aim {SECONDS} s: {'met' if met else 'missed'}"
    for other in (name for name in found if name != "actor"):
        ratios = [mine / theirs for kind in NETWORKS for mine, theirs in zip(actor[kind], found[other][kind], strict=False)]
        met &= measuring.report(
            f"turnaround-{other}", f"reused actor / {NAMES[other]}", ratios, output=options.output, aim=AIMS[other], note=note
        )
    return 0 if met else 1


NAMES = {"function": "new process for each trial", "train": "Ray Train worker group"}
AIMS = {"function": 0.2, "train": 0.1}


def space(root: str, executor: str, trials: int) -> Space:
    """Two networks in turn, everything else sampled."""
    return read_space(
        {
            "experiment": {
                "data": {"kind": "kvasir", "root": root, "image_size": 128, "max_train_cases": 8, "max_validation_cases": 4},
                "guide": {"kind": "dino", "backbone": "vits16", "weights": "random"},
                "segmenter": {"kind": "unet"},
                "training": {"epochs": 2, "batch_size": 4, "steps_per_epoch": "cases"},
            },
            "space": {
                "segmenter.kind": {"choices": list(NETWORKS)},
                "guide.tokenbook.num_prototypes": {"type": "int", "low": 8, "high": 1024, "log": True},
                "loss.lambda_guide": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
                "training.lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
            },
            "first_trials": [{"segmenter.kind": NETWORKS[i % 2], "loss.lambda_guide": 0.1 + 0.01 * i} for i in range(trials)],
            "study": {"name": executor, "trials": trials, "pruner": "none", "startup_trials": 1},
            "resources": {"concurrent": 1, "executor": "train" if executor == "train" else "actor"},
        },
        source=__file__,
    )


def run_study(searched: Space, home: Path, executor: str) -> list[dict[str, Any]]:
    """Runs a study as a search does, but for tracking and progress, and gives the marks of its processes."""
    from optuna.trial import TrialState
    from ray import tune

    from guidino_tune.running.cluster import plan
    from guidino_tune.running.executors import CONTROLLER_CPU
    from guidino_tune.running.process import process_settings
    from guidino_tune.running.tune_adapter import StudyScheduler, StudySearcher
    from guidino_tune.study.driver import Driver
    from guidino_tune.study.store import StudyFolder, open_study

    folder = StudyFolder(home / "studies" / executor)
    study = open_study(searched, folder)
    resources = plan(searched.resources)
    settings = process_settings(resources, searched.resources, ray_folder=folder.ray)
    marks = folder.path / MARKS
    settings |= {"home": str(home), "views": (str(home / "views"), 5.0), "marks": str(marks)}
    driver = Driver(study, searched, folder, lambda *_: None, settings)
    booked = {"CPU": CONTROLLER_CPU if executor == "train" else float(resources.cpus)}
    trainable: Any = {"actor": noted_actor, "function": lambda: noted_function, "train": lambda: noted_group}[executor]()
    tuner = tune.Tuner(
        tune.with_resources(trainable, booked),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(driver), scheduler=StudyScheduler(driver), num_samples=driver.remaining, max_concurrent_trials=1,
            reuse_actors=executor == "actor",
        ),
        run_config=tune.RunConfig(name="run", storage_path=str(folder.ray), verbose=0),
    )  # fmt: skip
    tuner.fit()
    if failed := study.get_trials(states=[TrialState.FAIL]):
        raise RuntimeError(failed[0].user_attrs.get("message"))
    return [json.loads(line) for line in marks.read_text(encoding="utf-8").splitlines()]


def gaps(marks: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Seconds from each trial's last report to the first batch of the next one, by the next one's network."""
    found: dict[str, list[float]] = {kind: [] for kind in NETWORKS}
    for before, after in pairwise(marks):
        if before["event"] == "report" and after["event"] == "first batch" and before["trial"] != after["trial"]:
            found[after["network"]].append(after["time"] - before["time"])
    return found


def note_times(config: Mapping[str, Any]) -> None:
    """Makes this process write down its reports and its networks' first batches."""
    import torch

    from guidino_tune.models import GuidedSegmenter
    from guidino_tune.running import executors

    seen: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
    current: dict[str, Any] = {}

    def mark(event: str) -> None:
        with open(config["marks"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **current}) + "\n")

    def before_forward(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, GuidedSegmenter) and module.training and module not in seen:
            seen.add(module)
            mark("first batch")

    start, report = executors._start, executors._TuneReporter.report

    def noted_start(of: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
        current.update(trial=of["number"], network=of["experiment"]["segmenter"]["kind"])
        return start(of, *arguments, **options)

    def noted_report(self: Any, record: Any) -> Any:
        mark("report")
        return report(self, record)

    torch.nn.modules.module.register_module_forward_pre_hook(before_forward)
    executors._start, executors._TuneReporter.report = noted_start, noted_report  # type: ignore[assignment, method-assign]


def noted_actor() -> type:
    """The search's actor, with its times written down."""
    from guidino_tune.running.executors import TrialActor

    class NotedActor(TrialActor):
        def setup(self, config: dict[str, Any]) -> None:
            note_times(config)
            super().setup(config)

    return NotedActor


def noted_function(config: dict[str, Any]) -> None:
    """The same loop as a plain Tune function."""
    from ray import tune

    from guidino_tune.running import executors

    note_times(config)
    executors._prepare_process(config)
    run = executors._start(config, tune.report, device="cpu")
    while not run.finished:
        run.run_epoch()
    run.close()


def noted_group(config: dict[str, Any]) -> None:
    """The search's worker group, with its times written down."""
    from guidino_tune.running import executors

    def worker(values: dict[str, Any]) -> None:
        from guidino_tune.running.executors import train_worker  # of the worker's own process, not the one replaced below

        note_times(values)
        train_worker(values)

    executors.train_worker = worker  # type: ignore[assignment]
    executors.train_trial(config)


def _seconds(found: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{kind} {statistics.median(s):.2f} ({min(s):.2f} to {max(s):.2f})" for kind, s in found.items() if s)


if __name__ == "__main__":
    sys.exit(main())
