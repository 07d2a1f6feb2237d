"""Real searches on real images with the real executor: what has been found after so many epochs, by each method.

    python tests/benchmarks/real_search.py --data DIR --methods random+asha,auto+auto --seeds 3 --epochs 200

Each search goes on until its trials have trained that many epochs together, and ends as by Ctrl-C. The space is that of the recorded curves
(eight networks at 64 px, tiny guides), so a search takes minutes on a CPU. Every method gets the same seeds, first trials and split.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
from collections.abc import Sequence

import measuring

import guidino_tune as gt
from guidino_tune.simulation.curves import read_table
from guidino_tune.space.space import read_space
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.result import TrialResult
from guidino_tune.workflows.simulate import SHIPPED

OBJECTIVE = "val_dice"


class Budget:
    """Counts epochs, keeps what leads after each, and stops the search when they are used up."""

    def __init__(self, epochs: int, length: int) -> None:
        self.epochs, self.length = epochs, length
        self.best: dict[int, float] = {}
        self.leads: list[tuple[bool, float]] = []
        self.diverged = 0

    def epoch_ended(self, trial: TrialResult, record: EpochRecord) -> None:
        """The leader is a complete trial, by its best Dice; before there is one, that with the best Dice so far."""
        self.best[trial.number] = max(self.best.get(trial.number, 0.0), record.metrics.get(OBJECTIVE, 0.0))
        now = (record.epoch == self.length, self.best[trial.number])
        self.leads.append(max(now, self.leads[-1]) if self.leads else now)
        if len(self.leads) == self.epochs:
            signal.raise_signal(signal.SIGINT)


def search(table: str, root: str, method: str, seed: int, epochs: int) -> Budget:
    """One search in a home of its own."""
    plain = read_table(SHIPPED / f"{table}.parquet").space.to_dict()
    for experiment in (plain["experiment"], *plain.get("recipes", {}).values()):
        experiment["data"]["root"] = root
    sampler, pruner = method.split("+")
    plain["study"] |= {"name": "real", "trials": epochs, "seed": seed, "sampler": sampler, "pruner": pruner}
    plain["resources"] |= {"executor": "actor", "cpus_per_worker": 1, "concurrent": 2}
    space = read_space(plain, source=table)
    counted = Budget(epochs, space.base.training.epochs)
    with tempfile.TemporaryDirectory() as home:
        os.environ["GUIDINO_TUNE_HOME"] = home
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home}/mlflow.db"
        gt.run_search(space, callbacks=[counted])  # type: ignore[list-item]
    return counted


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a row for each search, and the differences by seed."""
    made = measuring.parser(__doc__)
    made.add_argument("--table", default="recorded/kvasir", help="whose space it is; default: %(default)s")
    made.add_argument(
        "--methods", default="random+asha,auto+auto", help="each SAMPLER+PRUNER, the first is what the others are compared with"
    )
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--epochs", type=int, default=200, help="of a search, of all its trials together")
    asked = made.parse_args(argv)
    root = measuring.kvasir_root(asked)
    ends: dict[str, list[float]] = {}
    for seed in range(asked.seeds):
        for method in asked.methods.split(","):
            counted = search(asked.table, root, method, seed, asked.epochs)
            half, end = counted.leads[len(counted.leads) // 2 - 1], counted.leads[-1]
            ends.setdefault(method, []).append(end[1])
            print(
                f"seed {seed} {method}: {len(counted.best)} trials, {len(counted.leads)} epochs; leader's Dice {half[1]:.4f} at half, "
                f"{end[1]:.4f} at the end{'' if end[0] else ' (no trial complete)'}",
                flush=True,
            )
    first, *others = asked.methods.split(",")
    for method in others:
        differences = [a - b for a, b in zip(ends[method], ends[first], strict=True)]
        told = ", ".join(f"{d:+.4f}" for d in differences)
        print(f"{method} minus {first}, by seed: {told}; mean {statistics.mean(differences):+.4f}")


if __name__ == "__main__":
    main()
