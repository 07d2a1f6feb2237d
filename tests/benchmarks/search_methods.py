"""Searches by several methods on learning curves by formula, through the real driver on a virtual clock: the table of docs/searching.md.

python tests/benchmarks/search_methods.py --seeds 30
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from synthetic_curves import Formula, synthetic_space

from guidino_tune.analysis.searches import markdown
from guidino_tune.simulation.executor import simulate
from guidino_tune.space.space import override
from guidino_tune.workflows.simulate import as_search


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--methods", default="random+asha,random+promotion,tpe+asha,tpe+promotion")
    made.add_argument("--crossing", default="0,0.5", help="0: parallel curves; 0.5: the ranks of epochs 1, 3 and 9 are like those recorded")
    made.add_argument("--workers", default="4,16")
    made.add_argument("--seeds", type=int, default=30)
    made.add_argument("--epochs", type=int, default=540, help="of a search, of all its trials together; a whole trial has 27")
    made.add_argument("--highest-rate", type=float, default=3e-3, help="of learning; those near the top diverge (default: %(default)s)")
    asked = made.parse_args()
    for crossing in map(float, asked.crossing.split(",")):
        formula, searches = Formula(crossing, 27), []
        for method in asked.methods.split(","):
            names = dict(zip(("study.sampler", "study.pruner"), method.split("+"), strict=True))
            space = override(synthetic_space(27, asked.highest_rate, min_epochs=1), names)
            for workers in map(int, asked.workers.split(",")):
                for seed in range(asked.seeds):
                    found, _ = simulate(override(space, {"study.seed": seed}), formula, workers=workers, epochs=asked.epochs)
                    searches.append(as_search(method, workers, seed, found, formula.best))
        print(markdown(searches, asked.methods.split(",")[0], [f"crossing {crossing:g}, {asked.epochs} epochs"], "none.png"), flush=True)


if __name__ == "__main__":
    main()
