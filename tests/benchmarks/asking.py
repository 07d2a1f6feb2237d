"""What the next trial costs in a large study, and how fast searches are simulated.

    python tests/benchmarks/asking.py

Asks a real study (TPE, successive halving, its journal on the disk) for trials with 10 and with 1,000 others running, and after 100 and
after 3,000 finished ones, in turns; then simulates searches over curves by formula, whose epochs take a minute. CPU time of this thread,
so that other programs count less.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import parser, ratios, report

from guidino_tune.cli import positive
from guidino_tune.simulation.curves import Curve
from guidino_tune.simulation.executor import simulate
from guidino_tune.simulation.sources import Surrogate
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, load_space, override
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.training.reporter import EpochRecord

MILLISECONDS, GROWTH, HOURS = 20, 1.5, 1000
"""Aims: of one question for a trial; of a large study over a small one; of simulated worker-hours in a second."""


class Curves(Surrogate):
    """A curve for any values, by formula: a minute an epoch; what is better follows from the learning rate."""

    note, best = "a formula", 1.0

    def __init__(self, epochs: int) -> None:
        self.time = np.arange(1, epochs + 1)

    def curve(self, values: Values, seed: int) -> Curve:
        """See ``Source``."""
        return Curve(0, seed, values, self.quality(values) * (1 - np.exp(-self.time / 10)), np.full(len(self.time), 60.0))

    def quality(self, values: Values) -> float:
        """See ``Source``."""
        return 1 / (1 + abs(np.log10(float(values["training.lr"] or 1)) + 3))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints three lines."""
    made = parser(__doc__)
    made.add_argument("--running", type=positive, default=1000, help="trials side by side in the large study; default: %(default)s")
    made.add_argument("--finished", type=positive, default=3000, help="finished trials in the large study; default: %(default)s")
    made.add_argument("--asks", type=positive, default=30, help="questions that are measured; default: %(default)s")
    made.add_argument("--epochs", type=positive, default=2000, help="of a simulated search; default: %(default)s")
    options = made.parse_args(argv)
    for name, fill, small, large in (("running", 0, 10, options.running), ("finished", 1, 100, options.finished)):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            drivers = [study_of(Path(place), number, closed=bool(fill)) for place, number in ((one, small), (two, large))]
            seconds = [[asked(driver, f"measured {n}") for driver in drivers] for n in range(options.asks)]
        few, many = zip(*seconds, strict=True)
        spent = 1000 * statistics.median(many)
        note = f"{spent:.1f} ms, aim {MILLISECONDS} ms: {'met' if spent <= MILLISECONDS else 'missed'}"
        report(f"ask {name}", f"a trial beside {large} {name} ones / beside {small}", ratios(many, few), output=options.output,
               aim=GROWTH, note=note)  # fmt: skip
    space, found = override(load_space("kvasir"), ["training.epochs=100", "study.min_epochs=3"]), {}
    for method in ("random+none", "random+asha", "tpe+asha"):
        sampler, pruner = method.split("+")
        searched = override(space, {"study.sampler": sampler, "study.pruner": pruner})
        start = time.thread_time()
        hours = simulate(searched, Curves(100), workers=16, epochs=options.epochs)[0].worker_seconds / 3600
        found[method] = hours / (time.thread_time() - start)
    note = ", ".join(f"{method} {speed:,.0f}" for method, speed in found.items())
    report("simulated hours", f"{HOURS} worker-hours in a second / those simulated", [HOURS / speed for speed in found.values()],
           output=options.output, aim=1.0, note=note)  # fmt: skip
    return 0


def study_of(home: Path, trials: int, *, closed: bool) -> Driver:
    """A driver of a new study with so many trials: running, after 20 finished ones, or finished."""
    space: Space = override(load_space("kvasir"), ["study.trials=100000", "training.epochs=100", "study.min_epochs=3", "data.kind=demo"])
    folder = StudyFolder(home)
    driver = Driver(open_study(space, folder), space, folder, lambda number, experiment, record: None)
    rng = np.random.default_rng(0)
    for number in range(trials if closed else trials + 20):
        asked(driver, key := str(number))
        for epoch in range(3, 101) if closed or number < 20 else ():
            if not driver.report(key, [EpochRecord(epoch, {"val_dice": float(rng.random())}, 0.0)]):
                driver.tell(key, crashed=False)
                break
    return driver


def asked(driver: Driver, key: str) -> float:
    """CPU seconds of one question."""
    start = time.thread_time()
    if driver.ask(key) is None:
        raise RuntimeError(driver.given_up)
    return time.thread_time() - start


if __name__ == "__main__":
    sys.exit(main())
