"""What does Ray Tune cost a search, against plain Ray actors that are handed the same trials by the same driver?

    python tests/benchmarks/plain_actors.py --trials 40 --concurrent 2

Both run whole searches on the demo images, in one cluster and in turn: random configurations with promotion, so that trials wait and go on.
The actors are those of the executor ``actor``; with Tune its controller starts, steps, reuses and stops them, without it the loop below,
which knows no node to avoid, no lost machine and no worker group of Ray Train. The ratio is that of the seconds from the first question to
the driver to the end of the last trial.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from measuring import parser, ratios, report

from guidino_tune.api import load_space
from guidino_tune.cli import positive
from guidino_tune.running import tune_adapter
from guidino_tune.running.cluster import Plan
from guidino_tune.running.connection import connected
from guidino_tune.running.executors import TrialActor
from guidino_tune.study.driver import Driver
from guidino_tune.training.failures import as_kind
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.search import run_search


def run_plain(driver: Driver, plan: Plan) -> None:
    """Runs what remains of a study on actors of our own; in place of ``tune_adapter.run_trials``."""
    import ray  # behind our own packages: what it reads of the environment is set there

    class PlainActor(TrialActor):
        """The same actor, asked for its epochs directly."""

        def __init__(self, config: dict[str, Any]) -> None:
            self.setup(config)

    made = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus)(PlainActor)
    idle: list[Any] = []
    running: dict[Any, tuple[str, Any]] = {}
    keys = itertools.count()
    while True:
        while len(running) < plan.concurrent and driver.remaining > 0 and not driver.waits and not driver.given_up:
            key = str(next(keys))
            asked = driver.ask(key)
            if asked is None:
                break
            if idle:
                actor = idle.pop()
                ray.get(actor.reset_config.remote(asked))
            else:
                actor = made.remote(asked)
            running[actor.step.remote()] = key, actor
        if not running:
            break
        (done,), _ = ray.wait(list(running), num_returns=1)
        key, actor = running.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            driver.died(key, str(error))
            driver.tell(key, crashed=True)
            continue
        if "failure" in result:
            driver.fail(key, as_kind(result["failure"]), result["message"])
        elif driver.report(key, map(EpochRecord.from_dict, json.loads(result["records"])), result.get("note", "")):
            running[actor.step.remote()] = key, actor
            continue
        driver.tell(key, crashed=False)
        idle.append(actor)


def search(run: Callable[[Driver, Plan], None], trials: int, concurrent: int) -> tuple[float, int]:
    """Seconds that ``run`` took for a search in an empty home folder, and the epochs it trained."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["GUIDINO_TUNE_HOME"] = home
        space = load_space(
            "demo",
            {
                "study.trials": trials, "study.sampler": "random", "study.pruner": "promotion", "resources.executor": "actor",
                "resources.concurrent": concurrent, "resources.cpus_per_worker": 1,
            },
        )  # fmt: skip
        spent: list[float] = []

        def timed(driver: Driver, plan: Plan) -> None:
            start = time.perf_counter()
            run(driver, plan)
            spent.append(time.perf_counter() - start)

        kept, tune_adapter.run_trials = tune_adapter.run_trials, timed  # type: ignore[assignment]
        try:
            result = run_search(space)
        finally:
            tune_adapter.run_trials = kept
        if result.ended:
            raise RuntimeError(result.ended)
        return spent[0], sum(max(trial.values, default=0) for trial in result.trials())


def main(argv: Sequence[str] | None = None) -> int:
    """Searches in turn and prints a line."""
    options = arguments(argv)
    found: dict[str, list[tuple[float, int]]] = {"tune": [], "plain": []}
    with connected():
        search(run_plain, 2, options.concurrent)  # whoever is first starts Ray's workers
        for _ in range(options.rounds):
            found["tune"].append(search(tune_adapter.run_trials, options.trials, options.concurrent))
            found["plain"].append(search(run_plain, options.trials, options.concurrent))
    seconds = {name: [s for s, _ in searches] for name, searches in found.items()}
    epochs = {name: [e for _, e in searches] for name, searches in found.items()}
    report(
        "plain actors",
        f"{options.trials} trials of the demo, {options.concurrent} side by side: Ray Tune / plain actors",
        ratios(seconds["tune"], seconds["plain"]),
        output=options.output,
        note=f"epochs trained {epochs['tune']} and {epochs['plain']}; seconds {[round(s) for s in seconds['tune']]} and "
        f"{[round(s) for s in seconds['plain']]}",
    )
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--trials", type=positive, default=40, help="of a search; default: %(default)s")
    made.add_argument("--concurrent", type=positive, default=2, help="trials side by side; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=2, help="searches of each kind; default: %(default)s")
    return made.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
