"""The last lines of a search: their commands are told of a database that was named for this search alone."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from report_helpers import simulated
from rich.console import Console

from guidino_tune import compare, export
from guidino_tune.tracking import MLflowTracker, StudySnapshot
from guidino_tune.workflows.certainty import Certainty
from guidino_tune.workflows.closing import tell_result


@pytest.mark.parametrize("storage", [None, "sqlite:////shared/my studies.db"])
def test_next_commands_name_the_database_of_the_search(storage: str | None, tmp_path: Path) -> None:
    stored = simulated(tmp_path / "synthetic")
    tracker = MLflowTracker(f"sqlite:///{tmp_path}/mlflow.db", "e", StudySnapshot("s"), tmp_path / "ledger.jsonl")
    console = Console(file=io.StringIO(), width=100)
    certainty = Certainty(stored.study, stored.space)
    tell_result(stored, console, baseline=0.25, tracking=tracker, end="", certainty=certainty, report=None, storage=storage)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for command in (export, compare):
        name = command.__name__.rpartition(".")[2]
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{name:>8}: "))
        words = shlex.split(line)
        assert words[2:4] == [name, "synthetic"]
        assert (words[words.index("--storage") + 1] if storage else "--storage" in words) == (storage or False)
    assert (tmp_path / "synthetic" / "leaderboard.txt").is_file()
