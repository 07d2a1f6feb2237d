"""A whole study without Ray, torch and MLflow: whoever can count epochs may run its trials."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WANTED = 24
EPOCHS = 9
OPTIMUM = -3.0


def epochs(asked: dict[str, Any]) -> Iterator[Any]:
    """What a training would tell: the closer the learning rate is to 1e-3, the better, and better with every epoch."""
    from guidino_tune.training.reporter import EpochRecord

    far = abs(math.log10(asked["experiment"]["training"]["lr"]) - OPTIMUM)
    for epoch in range(asked["reported"] + 1, EPOCHS + 1):
        yield EpochRecord(epoch, {"val_dice": math.exp(-far) * epoch / EPOCHS}, 1.7e9 + epoch)


def run_trials(driver: Any, side_by_side: int) -> None:
    """An executor: asks for trials, tells an epoch of each in turn, and ends those that the study has seen enough of."""
    running: dict[str, Iterator[Any]] = {}
    for turn in range(WANTED * EPOCHS):
        if len(running) < side_by_side and driver.remaining > 0 and not driver.waits:
            asked = driver.ask(str(turn))
            assert asked
            running[str(turn)] = epochs(asked)
        for key, told in list(running.items()):
            if not driver.report(key, [next(told)]):
                del running[key]
                driver.tell(key, crashed=False)
    assert not running


def search(folder: Path) -> None:
    """In a process of its own; prints the trials, and what was imported."""
    from guidino_tune.api import load_space
    from guidino_tune.study.driver import Driver
    from guidino_tune.study.store import StudyFolder, open_study

    space = load_space(
        {
            "experiment": {"data": {"kind": "demo"}, "guide": {"kind": "none"}, "training": {"epochs": EPOCHS}},
            "space": {"training.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}},
            "study": {"name": "alone", "trials": WANTED, "sampler": "tpe", "pruner": "asha", "startup_trials": 8},
        }
    )
    study = open_study(space, StudyFolder(folder))
    driver = Driver(study, space, StudyFolder(folder), lambda number, experiment, record: None)
    run_trials(driver, 3)
    trials = [(t.state.name, t.params["training.lr"], len(t.intermediate_values)) for t in study.trials]
    print(json.dumps([driver.ended, trials, sorted(name for name in sys.modules if "." not in name)]))


def test_a_study_runs_with_nothing_but_optuna(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    ended, trials, imported = json.loads(done.stdout)
    assert ended == ""
    assert {"ray", "torch", "mlflow"} & set(imported) == set()
    assert len(trials) == WANTED
    complete = [(rate, n) for state, rate, n in trials if state == "COMPLETE"]
    pruned = [(rate, n) for state, rate, n in trials if state == "PRUNED"]
    assert len(complete) + len(pruned) == WANTED
    assert {n for _, n in complete} == {EPOCHS}
    assert {n for _, n in pruned} == {1, 3}  # the rungs of successive halving

    def far(rates: list[tuple[float, int]]) -> float:
        return sum(abs(math.log10(rate) - OPTIMUM) for rate, _ in rates) / len(rates)

    assert far(complete) < far(pruned)
    # TPE has learned: what it draws at the end is nearer than what was drawn at random.
    assert far([(rate, n) for _, rate, n in trials[-6:]]) < far([(rate, n) for _, rate, n in trials[:6]])


if __name__ == "__main__":
    search(Path(sys.argv[1]))
