"""Recording of curves: a table that goes on, in the same home and in another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_searches import SPACE

from guidino_tune.errors import UserError
from guidino_tune.simulation.curves import read_table
from guidino_tune.space.space import Space, read_space
from guidino_tune.workflows.record import record_curves


def _space(demo: Path, **study: Any) -> Space:
    experiment = {**SPACE["experiment"], "data": {**SPACE["experiment"]["data"], "root": str(demo)}, "guide": {"kind": "none"}}
    experiment["training"] = {**experiment["training"], "epochs": 2}
    searched = {"training.lr": SPACE["space"]["training.lr"]}
    return read_space(
        {"experiment": experiment, "space": searched, "first_trials": [{"training.lr": 1e-3}], "study": {"name": "small", **study}},
        source="a test",
    )


def test_a_table_goes_on_where_its_studies_are_not(tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "curves.parquet"
    first, complete = record_curves(_space(demo), 3, file, repeat=1)
    assert complete
    assert [(c.configuration, c.seed) for c in first.curves] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    assert first.curves[0].parameters == {"training.lr": 1e-3}
    assert first.space.base.data.root is None  # nothing of this machine

    # The same again trains nothing, and in another home only what is missing is trained.
    again, complete = record_curves(_space(demo), 3, file, repeat=1)
    assert complete
    assert len(again.curves) == 4
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "elsewhere"))
    more, complete = record_curves(_space(demo), 5, file, repeat=2)
    assert complete
    kept = {(str(c.parameters), c.seed): list(c.dice) for c in more.curves}
    assert len(more.curves) == len(kept) == 7
    assert len({c.configuration for c in more.curves}) == 5
    assert {(str(c.parameters), c.seed): list(c.dice) for c in first.curves}.items() <= kept.items()
    assert len(list((tmp_path / "elsewhere" / "studies" / "small-record" / "trials").iterdir())) == 2
    extended, _ = record_curves(_space(demo), 6, file, repeat=2)
    assert len(extended.curves) == len(read_table(file).curves) == 8

    before = file.read_bytes()
    other = read_space({**_space(demo).to_dict(), "space": {"training.lr": {"type": "float", "low": 1e-5, "high": 1.0}}}, source="other")
    with pytest.raises(UserError, match="another space"):
        record_curves(other, 9, file)
    assert file.read_bytes() == before


def test_a_space_of_recipes_gets_second_seeds_too(tmp_path: Path, demo: Path) -> None:
    values = _space(demo).to_dict()
    recipes = {"narrow": values["experiment"], "other": {**values["experiment"], "segmenter": {"kind": "nnwnet", "base_width": 4}}}
    searched = {"recipe": {"choices": list(recipes)}, **values["space"]}
    space = read_space({**values, "recipes": recipes, "space": searched, "first_trials": [{"recipe": "other"}]}, source="a test")
    table, complete = record_curves(space, 2, tmp_path / "curves.parquet", repeat=1)
    assert complete
    assert [(c.configuration, c.seed) for c in table.curves] == [(0, 0), (1, 0), (0, 1)]
    seeds = read_space({**values, "space": {"training.seed": {"choices": [0, 1]}}, "first_trials": []}, source="a test")
    with pytest.raises(UserError, match="searches the seed"):
        record_curves(seeds, 2, tmp_path / "seeds.parquet", repeat=1)
    one, _, again = table.curves
    assert again.parameters == one.parameters
