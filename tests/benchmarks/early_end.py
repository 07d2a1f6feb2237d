"""What `study.stop` saves and costs, through the real driver on a virtual clock: the last table of docs/searching.md.

A rule is a number (`study.stop`), `none`, `fewer:TRIALS` (ask for no more from the beginning), or `gain:FACTOR` and `whole:FACTOR`: end
when what the other trials would probably gain, by all trials or by the complete ones, is below so many times the noise, which is the
scatter from epoch to epoch of the five best complete trials.

python tests/benchmarks/early_end.py --seeds 20
python tests/benchmarks/early_end.py --seeds 20 --curves recorded/kvasir,recorded/isic2017,recorded/ddti --rules none,40,80,fewer:150
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from synthetic_curves import Formula, synthetic_space

from guidino_tune.analysis.certainty import FEWEST, mean_best
from guidino_tune.analysis.searches import mean_interval
from guidino_tune.simulation.executor import simulate
from guidino_tune.simulation.sources import Source, Surrogate
from guidino_tune.space.space import Space, override
from guidino_tune.study import stopping
from guidino_tune.study.trials import best_value, ranking
from guidino_tune.workflows.simulate import open_table

SINCE_BEST = stopping.since_best


def gain_rule(kind: str, factor: float, trials: int) -> Callable[[optuna.Study, list[FrozenTrial]], int]:
    """In the place of ``since_best``, for a ``study.stop`` of 1: 1 when the search is to end."""

    def ends(study: optuna.Study, begun: list[FrozenTrial]) -> int:
        complete = ranking(study)
        values = np.array([best_value(t) for t in (complete if kind == "whole" else begun)], dtype=float)
        if len(complete) < FEWEST:
            return 0
        late = [np.array([*t.intermediate_values.values()])[len(t.intermediate_values) // 2 :] for t in complete[:5]]
        noise = np.median([np.sqrt(np.mean(np.diff(values) ** 2) / 2) for values in late])
        half = len(values) // 2
        slope = (values.max() - mean_best(values, half)) / math.log(len(values) / half)
        return int(slope * math.log(max(1.0, trials / len(begun))) < factor * noise)

    return ends


def read_curves(name: str) -> tuple[Space, Source]:
    """Formulas that cross by a number, or a surrogate of a table, whose search knows nothing beforehand."""
    try:
        return synthetic_space(27, min_epochs=1), Formula(float(name), 27)
    except ValueError:
        table = open_table(name)
    space = override(table.space, {"study.sampler": "auto", "study.pruner": "auto"})
    return dataclasses.replace(space, first_trials=()), Surrogate(table)


def measured(space: Space, source: Source, seed: int, trials: int, rule: str) -> dict[str, Any]:
    """Epochs and regret of one search."""
    kind, _, factor = rule.partition(":")
    stop: int | None = None
    stopping.since_best = SINCE_BEST
    if kind == "fewer":
        trials = int(factor)
    elif factor:
        stop, stopping.since_best = 1, gain_rule(kind, float(factor), trials)  # type: ignore[assignment]
    elif rule != "none":
        stop = int(rule)
    space = override(space, {"study.seed": seed, "study.stop": stop})
    found, _ = simulate(space, source, workers=4, epochs=100_000, trials=trials)
    return {"epochs": found.total_epochs, "trials": found.trials, "regret": source.best - found.qualities[-1]}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--rules", default="none,40,60,80,100,gain:1,whole:0.25,fewer:150,fewer:180")
    made.add_argument("--curves", default="0,0.5", help="by formula: 0 parallel, 0.5 crossing; or tables of curves; default: %(default)s")
    made.add_argument("--trials", default="115,230", help="about 450 and 840 epochs")
    made.add_argument("--seeds", type=int, default=20)
    asked = made.parse_args()
    rows: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    sources = {name: read_curves(name) for name in asked.curves.split(",")}
    for seed in range(asked.seeds):
        for name, (space, source) in sources.items():
            for trials in map(int, asked.trials.split(",")):
                for rule in asked.rules.split(","):
                    rows.setdefault((name, trials, rule), []).append(found := measured(space, source, seed, trials, rule))
                    print(json.dumps([seed, name, trials, rule, found]), file=sys.stderr, flush=True)
    print("| curves | trials | rule | trials run | epochs | saved | regret | lost | ended early |\n|---|--:|---|--:|--:|--:|--:|--:|--:|")
    for (name, trials, rule), group in rows.items():
        pairs = list(zip(group, rows[name, trials, "none"], strict=True))
        saved = mean_interval([1 - one["epochs"] / whole["epochs"] for one, whole in pairs])
        lost = mean_interval([one["regret"] - whole["regret"] for one, whole in pairs])
        run, epochs, regret = (np.mean([one[part] for one in group]) for part in ("trials", "epochs", "regret"))
        ended = np.mean([one["trials"] < trials for one in group])
        cells = name, str(trials), rule, f"{run:.0f}", f"{epochs:.0f}", "{:.0%} [{:.0%}, {:.0%}]".format(*saved)
        print("|", " | ".join((*cells, f"{regret:.4f}", "{:+.4f} [{:+.4f}, {:+.4f}]".format(*lost), f"{ended:.0%}")), "|", flush=True)


if __name__ == "__main__":
    main()
