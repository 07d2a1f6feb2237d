"""A driver that dies between any two lines of the journal: the next one ends the study exactly as one driver would have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from space_helpers import search_space
from test_study_driver import Run, result

from guidino_tune.space.space import Space
from guidino_tune.study.driver import Driver
from guidino_tune.study.journal import Journal

EPOCHS = 4


class Killed(BaseException):
    """What a dead driver would not have lived to see."""


class Lines:
    """Counts the journal's lines, and kills the driver after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written, self.last = 0, -1
        write = Journal.append_logs

        def append(journal: Journal, logs: list[dict[str, Any]]) -> None:
            if self.written == self.last:
                raise Killed
            write(journal, logs)
            self.written += 1

        monkeypatch.setattr(Journal, "append_logs", append)


def drive(path: Path, space: Space, saved: dict[int, list[int]]) -> Driver:
    """Runs a study as Tune would; ``saved`` is what the trials' processes have on the disk, whoever drives."""
    driver, runs = Run(path, space).driver, 0
    while driver.remaining > 0:
        name = str(runs)
        runs += 1
        config = driver.ask(name)
        assert config is not None
        done = saved.setdefault(config["number"], [])
        reported = config["reported"]
        goes_on = True
        while goes_on:
            if reported < EPOCHS and reported == len(done):
                done.append(reported + 1)
            reported = min(reported + 1, EPOCHS)  # a trial that has reported all its epochs tells the last one again
            goes_on = driver.report(name, result(reported, dice(config, reported)))
        driver.tell(name, crashed=False)
    return driver


def dice(config: dict[str, Any], epoch: int) -> float:
    """Made up, different for each trial and epoch, so that some trials are stopped at each rung and some at none."""
    return (config["number"] * 37 % 11 + epoch * (config["number"] % 3 - 1) + 5) / 20


def outcome(driver: Driver) -> list[tuple[Any, ...]]:
    return [(t.number, t.state.name, t.params, t.intermediate_values, t.value) for t in driver.study.get_trials()]


def listed() -> Space:
    values = search_space(study={"min_epochs": 1, "reduction_factor": 2}).to_dict()
    values["first_trials"] = [{"training.lr": rate / 1e4, "segmenter.base_width": 2 + rate % 2 * 2} for rate in range(1, 5)]
    values["study"] |= {"sampler": "listed"}
    from guidino_tune.space.space import read_space

    return read_space(values, source="listed")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    return Lines(monkeypatch)


@pytest.mark.parametrize("sampler", ["tpe", "listed"])
def test_a_driver_may_die_after_any_line_of_the_journal(sampler: str, tmp_path: Path, lines: Lines) -> None:
    space = listed() if sampler == "listed" else search_space(study={"min_epochs": 1, "reduction_factor": 2, "trials": 4})
    whole = outcome(drive(tmp_path / "whole", space, {}))
    assert {state for _, state, *_ in whole} == {"COMPLETE", "PRUNED"}
    total, wrong = lines.written, []
    for last in range(1, total):
        path, saved = tmp_path / f"after-{last}", dict[int, list[int]]()
        lines.written, lines.last = 0, last
        with pytest.raises(Killed):
            drive(path, space, saved)
        lines.last = -1
        found = outcome(drive(path, space, saved))
        if found != whole:
            wrong.append((last, [(a, b) for a, b in zip(found, whole, strict=False) if a != b] or len(found)))
    assert not wrong, f"{len(wrong)} of {total}: {wrong[:5]}"
