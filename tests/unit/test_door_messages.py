"""What the functions of the package say of common mistakes is true for who called them: it names settings, and no option of a command."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_api import make_study
from test_study_driver import Run
from training_helpers import make_experiment

import guidino_tune as gt
from guidino_tune import paths
from guidino_tune.space.space import override
from guidino_tune.workflows import search

MISTAKES: dict[str, Callable[[Run], Any]] = {
    "no such space": lambda run: gt.load_space("demmo"),
    "no such setting": lambda run: gt.load_space("demo", {"study.trails": 4}),
    "no such value": lambda run: gt.load_space("demo", {"training.lr": -1}),
    "no trials": lambda run: gt.load_space("demo", {"study.trials": 0}),
    "no workers": lambda run: gt.load_space("demo", {"resources.workers": 0}),
    "no value": lambda run: gt.load_space("demo", ["study.trials"]),
    "no such study": lambda run: gt.open_study("smal"),
    "another search of this name": lambda run: gt.run_search(override(run.space, {"training.epochs": 9})),
    "a study at work": lambda run: gt.run_search(override(run.space, {"study.trials": 9})),
    "another sampler": lambda run: gt.run_search(run.space, sampler="random"),
    "another database": lambda run: gt.open_study("small", storage=f"sqlite:///{paths.home()}/none.db"),
    "no such trial": lambda run: gt.compare_study("small", against=["99"]),
    "no workers to compare": lambda run: gt.compare_study("small", resources={"workers": 0}),
    "one fold": lambda run: gt.retrain(make_experiment(), folds=1),
    "no experiment": lambda run: gt.retrain(3),
    "no file": lambda run: gt.retrain("best.yaml"),
    "a setting of the study": lambda run: gt.retrain(make_experiment(), settings=["study.trials=3"]),
    "another experiment of this name": lambda run: gt.retrain(make_experiment(seed=2), name="known"),
    "no such model": lambda run: gt.load_model("nowhere"),
    "no model to export": lambda run: gt.export_model("nowhere", "out", "hf"),
    "no such format": lambda run: gt.export_model("nowhere", "out", "onx"),
    "no output": lambda run: gt.export_model("nowhere", "", "hf"),
    "an output with something else": lambda run: gt.export_model("nowhere", paths.home(), "hf"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_message_names_no_option(home: Path, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "connected", lambda resources: pytest.fail("this is no mistake"))
    monkeypatch.setattr(search, "connecting", contextlib.nullcontext)
    run = make_study()
    known = paths.home() / "retrained" / "known" / "experiment.yaml"
    known.parent.mkdir(parents=True)
    known.write_text(make_experiment(seed=1).to_yaml())
    with run.folder.lock(), pytest.raises(gt.UserError) as caught:
        MISTAKES[mistake](run)
    assert not re.search(r"(?<!\w)--\w|\bcommand\b", str(caught.value)), caught.value
