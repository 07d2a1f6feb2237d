"""The search of this package against other libraries', on recorded curves.

    python tests/benchmarks/peers/compare.py kvasir.parquet --ours random+asha,tpe+promotion --peers all --seeds 30 --workers 4,16

NePS (PriorBand, ifBO) is missing: its versions ask for torchvision, which asks for another torch.

All play on one surrogate of the table, with the same workers, budget and first configurations, and the luck of a training is that of its
values and the study's seed, whoever trains it. Peers that are not in this package's environment need their own:

    python -m venv peers && peers/bin/pip install -c constraints.txt -e . -r tests/benchmarks/peers/requirements.txt
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from worker import run_peer

from guidino_tune.analysis.searches import Search, draw, grouped, markdown
from guidino_tune.simulation.curves import read_table
from guidino_tune.simulation.executor import simulate
from guidino_tune.simulation.sources import Surrogate
from guidino_tune.space.space import override
from guidino_tune.workflows.simulate import as_search

PEERS = {
    "optuna-tpe+hyperband": "optuna_peers:OptunaHyperband",
    "ray-optuna+asha": "optuna_peers:RayOptunaAsha",
    "smac-hyperband": "smac_peers:Smac",
    "syne-asha": "syne_peers:Asha",
    "syne-bohb": "syne_peers:Bohb",
    "syne-bore+asha": "syne_peers:AshaBore",
    "syne-cqr+asha": "syne_peers:AshaCqr",
}
REFERENCE = "random+asha"


def play(table: str, method: str, workers: int, seed: int, epochs: int, first_trials: bool = True) -> Search:
    """One search of one method: ``SAMPLER+PRUNER`` of this package, or a name of ``PEERS``."""
    logging.disable(logging.WARNING)  # of peers that tell each failed training
    warnings.simplefilter("ignore")
    if table not in _SOURCES:
        _SOURCES[table] = Surrogate(read_table(Path(table)))
    source = _SOURCES[table]
    space = override(source.space, {"study.seed": seed})
    if not first_trials:
        space = dataclasses.replace(space, first_trials=())
    if method in PEERS:
        module, name = PEERS[method].split(":")
        peer = getattr(importlib.import_module(module), name)(space, seed, workers)
        return run_peer(peer, method, source, space, workers=workers, epochs=epochs)
    sampler, pruner = method.split("+")
    s, _ = simulate(override(space, {"study.sampler": sampler, "study.pruner": pruner}), source, workers=workers, epochs=epochs)
    return as_search(method, workers, seed, s, source.best)


_SOURCES: dict[str, Surrogate] = {}
"""Of this process, by table."""


def ranks(searches: list[Search]) -> dict[str, float]:
    """Mean rank of each method's final regret among those of the same seed and number of workers; 1 is best, ties share."""
    from scipy.stats import rankdata

    methods = sorted({s.method for s in searches})
    rows: dict[tuple[int, int], dict[str, float]] = {}
    for search in searches:
        rows.setdefault((search.workers, search.seed), {})[search.method] = search.regret(search.total_epochs)
    table = np.array([rankdata([row[m] for m in methods]) for row in rows.values() if len(row) == len(methods)])
    return dict(zip(methods, table.mean(0), strict=True))


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("table")
    made.add_argument("--ours", default="random+asha,tpe+asha,tpe+promotion")
    made.add_argument("--peers", default="all", help=f"of {', '.join(PEERS)}")
    made.add_argument("--seeds", type=int, default=30)
    made.add_argument("--workers", default="4,16")
    made.add_argument("--epochs", type=int, default=None, help="budget of a search (default: forty whole trainings)")
    made.add_argument("--no-first-trials", action="store_true", help="as where nothing is known beforehand")
    made.add_argument("--jobs", type=int, default=1)
    made.add_argument("--output", type=Path, default=Path())
    options = made.parse_args()
    table = read_table(Path(options.table))
    epochs = options.epochs or 40 * table.epochs
    methods = [*options.ours.split(","), *(PEERS if options.peers == "all" else filter(None, options.peers.split(",")))]
    tasks = [
        (options.table, m, w, seed, epochs, not options.no_first_trials)
        for seed in range(options.seeds)
        for w in map(int, options.workers.split(","))
        for m in methods
    ]
    started, searches, lost = time.monotonic(), list[Search](), dict[str, str]()
    with ProcessPoolExecutor(options.jobs) as pool:
        for task, future in [(task, pool.submit(play, *task)) for task in tasks]:
            try:
                searches.append(future.result())
            except Exception as error:
                lost.setdefault(task[1], f"{type(error).__name__}: {str(error)[:200]}")
            print(f"\r{len(searches)} of {len(tasks)}, {time.monotonic() - started:.0f} s", end="", file=sys.stderr)
    searches = [dataclasses.replace(s) for s in searches if s.regrets and s.method not in lost]
    remarks = [
        f"{len(table.curves)} curves of {options.table}: {Surrogate(table).note}",
        *(["without the space's first trials"] if options.no_first_trials else []),
        f"{options.seeds} seeds of {epochs} epochs each; regret: best of the surrogate at a recorded configuration minus the leading one's",
        *(f"{method} could not be played: {why}" for method, why in lost.items()),
    ]
    name = Path(options.table).stem
    page = markdown(searches, REFERENCE, remarks, f"{name}-peers.png")
    place = ranks(searches)
    page += "\nMean rank of the final regret: " + ", ".join(f"{m} {r:.2f}" for m, r in sorted(place.items(), key=lambda x: x[1])) + "\n"
    (options.output / f"{name}-peers.md").write_text(page)
    draw(searches, options.output / f"{name}-peers.png")
    print(page, len(grouped(searches)))


if __name__ == "__main__":
    main()
