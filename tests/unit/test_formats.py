"""``--format``: what a command prints for a program is that alone; progress and notes go to standard error."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_list_and_show import make

from guidino_tune import cli
from guidino_tune.analysis import comparison, scaling
from guidino_tune.workflows.compare import RESULT_HEADINGS, result_rows
from guidino_tune.workflows.tables import FORMATS

TABLES = ("list", "show", "compare", "reproduce", "simulate", "evaluate", "track", "doctor")


def told(capsys: pytest.CaptureFixture[str], command: str, *argv: str) -> list[dict[str, Any]]:
    """Rows of a command's JSON; CSV has the same ones, and Markdown as many."""
    found: dict[str, str] = {}
    for form in FORMATS[1:]:
        importlib.import_module(f"guidino_tune.{command}").main([*argv, "--format", form])
        found[form] = re.sub(r"[\d.]+ GiB", "GiB", capsys.readouterr().out)  # the free space changes meanwhile
    rows: list[dict[str, Any]] = json.loads(found["json"])
    flat = list(csv.DictReader(io.StringIO(found["csv"])))
    assert flat == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    heading, rule, *lines = found["markdown"].splitlines()
    assert (rule.count("---"), len(lines)) == (len(flat[0]), len(rows))
    assert heading.split(" | ")[0].removeprefix("| ") == next(iter(flat[0]))
    return rows


@pytest.mark.parametrize("command", TABLES)
def test_every_command_with_a_table_has_formats(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"guidino_tune.{command}")
    made: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(module, "run", lambda _, arguments, argv: made.append(arguments) or 0)
    module.main([])
    (option,) = [action for action in made[0]._actions if "--format" in action.option_strings]
    assert tuple(option.choices or ()) == FORMATS
    assert cli.add_format_option.__name__ in Path(module.__file__ or "").read_text(encoding="utf-8")


def test_doctor(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = told(capsys, "doctor", "--space", "demo")
    assert {"mark", "name", "found", "todo"} == rows[0].keys()
    assert {row["mark"] for row in rows} <= {"ok", "note", "missing"}


def test_track(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make("mine", trials=3)
    (row,) = told(capsys, "track", "mine")
    assert (row["study"], row["trials"], row["study_run"], row["problem"]) == ("mine", 3, True, None)


def test_simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["recorded/ddti", "--methods", "random+asha,random+none", "--seeds", "2", "--workers", "2", "--epochs", "80"]
    rows = told(capsys, "simulate", *given, "--output", str(tmp_path / "out"))
    assert [(row["workers"], row["method"], row["seeds"]) for row in rows] == [(2, "random+asha", 2), (2, "random+none", 2)]
    assert all(0 <= row["regret"] < 1 for row in rows)
    assert rows[0]["ratio"] == 1


def test_compare_has_a_row_for_each_configuration_and_part() -> None:
    random = np.random.default_rng(0)
    scores = {
        (name, seed): {f"c{case}": {"dice": float(base + random.normal(0, 0.01))} for case in range(6)}
        for name, base in (("trial 1", 0.8), ("default", 0.7))
        for seed in (0, 1)
    }
    import pandas as pd

    table = pd.DataFrame(
        [
            {"configuration": name, "seed": seed, "case": case, "group": case, **values}
            for (name, seed), cases in scores.items()
            for case, values in cases.items()
        ]
    )
    result = comparison.analyse(table)
    rows = [
        dict(zip(RESULT_HEADINGS, row, strict=True)) for row in result_rows(SimpleNamespace(validation=result, test=None, winner="trial 1"))
    ]  # type: ignore[arg-type]
    assert [(row["part"], row["configuration"], row["seeds"], row["winner"]) for row in rows] == [
        ("validation", "trial 1", 2, True),
        ("validation", "default", 2, False),
    ]
    assert rows[0]["dice"] == pytest.approx(0.8, abs=0.02)
    assert rows[0]["behind"] is None
    assert rows[1]["behind"] == pytest.approx(0.1, abs=0.02)


def test_a_scaling_study_has_a_row_for_each_combination() -> None:
    point = scaling.Point(backbone="vits16", image_size=256, gigaflops=1.5, parameters=7, seconds=None, dice=(0.5, 0.7))
    (row,) = [dict(zip(scaling.HEADINGS, row, strict=True)) for row in scaling.rows([point])]
    assert (row["backbone"], row["seeds"], row["dice_mean"], row["seconds_per_epoch"]) == ("vits16", 2, pytest.approx(0.6), None)
