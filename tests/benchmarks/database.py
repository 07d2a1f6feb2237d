"""What a study in a database costs its driver, beside one in a journal, and beside one that is not mirrored in memory.

    python tests/benchmarks/database.py
    python tests/benchmarks/database.py --url postgresql://...

Three drivers of the same search take turns: with a database of which they have the lease, with one without (everything is read from the
database, and written piece by piece), and with a journal. Without ``--url`` a PostgreSQL of its own is started on this machine, where a
round trip takes a tenth of what it takes over a network.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import parser, ratios, report

from guidino_tune.cli import positive
from guidino_tune.space.space import load_space, override
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.training.reporter import EpochRecord

sys.path.insert(0, str(Path(__file__).parents[1]))

from postgres_server import BINARIES, started

AIMS = {"ask": 0.25, "report": 0.75, "tell": 0.25}
"""Of the time with the lease over that without; a report writes one value, and reads nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints three lines."""
    made = parser(__doc__)
    made.add_argument("--url", help="database; default: a PostgreSQL that is started for this")
    made.add_argument("--trials", type=positive, default=40, help="of each driver, the first half unmeasured; default: %(default)s")
    options = made.parse_args(argv)
    if not options.url and BINARIES is None:
        print("no PostgreSQL here: apt-get install postgresql, or name a database as --url", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(started()).url
        kinds = ("led", url, 1), ("free", url, 0), ("own", None, 1)
        drivers = [stack.enter_context(driver_of(name, where, held)) for name, where, held in kinds]
        rng, statements = np.random.default_rng(0), list[str]()
        _listen(statements)
        found: dict[str, list[list[tuple[float, int]]]] = {name: [] for name in AIMS}
        for number in range(options.trials):
            curve = 0.5 + 0.1 * rng.random() + 0.01 * rng.random(101)
            for name in found:
                measured = [_once(statements, _calls(driver, str(number), curve)[name]) for driver in drivers]
                if number >= options.trials // 2:
                    found[name].append(measured)
    for name, rows in found.items():
        led, free, own = ([row[place] for row in rows] for place in range(3))
        said = ", ".join(
            f"{what} {1000 * statistics.median(s for s, _ in side):.1f} ms and {statistics.median(n for _, n in side):.0f} statements"
            for what, side in (("with", led), ("without", free))
        )
        note = f"{said}, journal {1000 * statistics.median(s for s, _ in own):.1f} ms"
        report(f"database {name}", "with the lease of the study / without", ratios([s for s, _ in led], [s for s, _ in free]),
               output=options.output, aim=AIMS[name], note=note)  # fmt: skip
    return 0


@contextlib.contextmanager
def driver_of(name: str, url: str | None, held: int) -> Iterator[Driver]:
    """A driver of a new study."""
    settings = ["study.trials=100000", "training.epochs=100", "study.min_epochs=3", "study.pruner=none", "data.kind=demo"]
    space = override(load_space("kvasir"), [*settings, f"study.name={name}-{time.time_ns()}"])
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        folder = StudyFolder(Path(home) / name)
        if held:
            stack.enter_context(folder.lock())
        yield Driver(open_study(space, folder, url), space, folder, lambda number, experiment, record: None)


def _calls(driver: Driver, key: str, curve: np.ndarray) -> dict[str, Callable[[], Any]]:
    epochs = [EpochRecord(epoch, {"val_dice": float(curve[epoch])}, 0.0) for epoch in (20, 100)]
    return {
        "ask": lambda: driver.stored(partial(driver.ask, key), None),
        "report": lambda: [driver.stored(partial(driver.report, key, [record]), None) for record in epochs],
        "tell": lambda: driver.stored(partial(driver.tell, key, crashed=False), None),
    }


def _once(statements: list[str], call: Callable[[], Any]) -> tuple[float, int]:
    statements.clear()
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun, len(statements)


def _listen(statements: list[str]) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "before_cursor_execute", lambda connection, cursor, statement, *_: statements.append(statement))


if __name__ == "__main__":
    sys.exit(main())
