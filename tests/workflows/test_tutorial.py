"""The tutorial does what it shows: its cells are run one after the other, as a notebook runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"
SMALLER = {'"study.trials": 4, "training.epochs": 6': '"study.trials": 2, "training.epochs": 2', "seeds=1": "seeds=1, epochs=2"}


def test_the_cells_of_the_tutorial_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in cells)  # it is published as it was run
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    for text, smaller in SMALLER.items():
        assert text in code
        code = code.replace(text, smaller)
    names: dict[str, Any] = {}
    exec(compile(code, str(NOTEBOOK), "exec"), names)
    assert [t.state for t in names["result"].trials()] == ["complete", "complete"]
    assert names["result"].folder.is_relative_to(home)
    assert names["mask"].shape == names["truth"].shape
    assert 0 <= names["dice"] <= 1
