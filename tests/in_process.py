"""Trials and measurements in the process of a test, one after the other: all of a command but Ray, whose part ``tests/ray`` looks at.

The driver, the training loop, the tracking and everything that a command writes are the real ones.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from guidino_tune import known_backbones
from guidino_tune.config import Resources
from guidino_tune.running import executors, measuring, tune_adapter
from guidino_tune.running.cluster import Plan
from guidino_tune.running.environment import sealed_tests
from guidino_tune.running.hardware import common_precision, look
from guidino_tune.study.driver import Driver
from guidino_tune.training.failures import as_kind
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows import cross_validate, listed, precision, search

BOOKED = Plan("actor", 1, 1, 0.0, 1.0, 0.0)


@contextlib.contextmanager
def connected(resources: Resources | None = None) -> Iterator[str]:
    """No cluster."""
    yield ""


def run_trials(driver: Driver, resources: Plan, say: Callable[[str], None]) -> None:
    """As ``tune_adapter.run_trials``; a ``KeyboardInterrupt`` leaves the trial running in the study."""
    for key in map(str, itertools.count()):
        more = driver.error is None and driver.remaining > 0 and not (driver.expired or driver.given_up)
        asked = driver.stored(lambda key=key: driver.ask(key), None) if more else None
        if not asked:
            return
        try:
            with sealed_tests():
                _train(driver, key, asked)
        except KeyboardInterrupt:
            return
        driver.stored(lambda key=key: driver.tell(key, crashed=False), None)


def _train(driver: Driver, key: str, asked: dict[str, Any]) -> None:
    result: dict[str, Any] = {}
    run, goes_on = None, True
    try:
        run = executors._start(asked, result.update, device="cpu")
        while goes_on:
            run.run_epoch()
            records = map(EpochRecord.from_dict, json.loads(result["records"]))
            goes_on = driver.stored(lambda records=records: driver.report(key, records, result["note"]), False)
    except Exception as error:
        failed = executors._failure(error, asked)
        driver.fail(key, as_kind(failed["failure"]), failed["message"])
    finally:
        if run:
            executors._close(run)


class _Task:
    """A function of Ray, called when it is asked for."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def remote(self, *arguments: Any) -> Callable[[], Any]:
        return lambda: self.function(*arguments)


def _get(task: Callable[[], Any]) -> Any:
    known = list(known_backbones._layers)
    try:
        return task()
    except Exception as error:
        raise ray.exceptions.RayTaskError("measure", str(error), error) from error
    finally:
        known_backbones._layers[:] = known  # a process of its own would end with what it was told


TASKS = SimpleNamespace(
    remote=lambda **_: _Task,
    wait=lambda tasks, num_returns: (tasks[:num_returns], tasks[num_returns:]),
    get=_get,
    exceptions=ray.exceptions,
)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Lets every command of this process train and measure in it."""
    patch.setattr(tune_adapter, "run_trials", run_trials)
    patch.setattr(measuring, "ray", TASKS)
    patch.setattr(precision, "precision_of", lambda booked: common_precision({"this machine": look().bf16}))
    for module in (search, precision, listed, cross_validate, measuring):
        patch.setattr(module, "connected", connected)
    patch.setattr(search, "connecting", connected)
    for module in (search, precision, listed, measuring):
        patch.setattr(module, "plan_when_possible", lambda resources, say, packed=None: BOOKED)


def interrupted(patch: pytest.MonkeyPatch, moment: Callable[[int, int], bool]) -> None:
    """Stops the next search once, as Ctrl-C does, when an epoch is reported: ``moment`` is asked with its trial and epoch."""
    report, stopped = Driver.report, False

    def stop(driver: Driver, key: str, records: Iterable[EpochRecord], note: str = "") -> bool:
        nonlocal stopped
        goes_on, last = report(driver, key, taken := list(records), note), taken[-1].epoch
        if not stopped and moment(driver.running[key].number, last):
            stopped = True
            raise KeyboardInterrupt
        return goes_on

    patch.setattr(Driver, "report", stop)
