"""One precision per study: what the nodes have in common when it begins holds for every later run, machine, export and retraining."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from small_searches import slow_space, study_folder, trials_of

import guidino_tune as gt
from guidino_tune.config import Experiment
from guidino_tune.running import executors
from guidino_tune.study.store import load_study
from guidino_tune.tracking import MLflowTracker
from guidino_tune.training.folder import EXPERIMENT, TrialFolder
from guidino_tune.workflows import precision, search


@pytest.fixture
def file(tmp_path: Path, demo: Path) -> Path:
    """A search that leaves its precision open."""
    file = slow_space(tmp_path, demo, epochs=1, trials=1, pruner="none")
    values = yaml.safe_load(file.read_text())
    values["experiment"]["training"]["precision"] = "auto"
    file.write_text(yaml.safe_dump(values))
    return file


def nodes_have(patch: pytest.MonkeyPatch, found: str) -> None:
    patch.setattr(precision, "precision_of", lambda booked: (found, f"precision {found}, as the nodes say"))


def nobody_is_asked(patch: pytest.MonkeyPatch) -> None:
    def never(booked: Any) -> tuple[str, str]:
        raise AssertionError("a study that goes on has its precision")

    patch.setattr(precision, "precision_of", never)


@pytest.mark.parametrize("found", ["fp32", "bf16"])
def test_the_precision_of_the_nodes_becomes_that_of_the_study(
    found: str, file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told, settings = [], search.run_search.__globals__["Driver"]
    monkeypatch.setattr(search, "Driver", lambda *arguments: told.append(arguments[4]["precision"]) or settings(*arguments))
    monkeypatch.setattr("guidino_tune.running.process._check_precision", lambda precision, device: None)
    nodes_have(monkeypatch, found)
    result = gt.run_search(gt.load_space(str(file)))
    folder = study_folder(home, "small")
    assert load_study(folder).user_attrs["precision"] == found
    assert load_study(folder).user_attrs["share_views"] == {"way": True, "why": ""}  # without GPUs nothing is measured
    assert yaml.safe_load(folder.definition.read_text())["experiment"]["training"]["precision"] == found
    assert Experiment.from_yaml(folder.trial(0).path / EXPERIMENT).training.precision == found
    assert result.best.experiment.training.precision == found
    # Another driver, on a machine with other nodes.
    nobody_is_asked(monkeypatch)
    again = gt.run_search(gt.load_space(str(file), {"study.trials": 2}))
    assert {t.experiment.training.precision for t in again.trials()} == {found}
    assert len(again.trials()) == 2
    assert told == [found, found]
    assert gt.run_search(gt.load_space(str(file), {"study.trials": 2})).ended == ""
    with pytest.raises(gt.UserError, match=r"training\.precision"):
        gt.run_search(gt.load_space(str(file), {"training.precision": {"fp32": "bf16", "bf16": "fp32"}[found]}))


def test_a_node_without_it_is_unfit(file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes_have(monkeypatch, "bf16")
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    executors.check_node.__globals__["_check_precision"].cache_clear()
    result = gt.run_search(gt.load_space(str(file), {"study.trials": 3}))
    executors.check_node.__globals__["_check_precision"].cache_clear()
    assert "does not compute in bf16, the precision of this study" in result.ended
    assert {t.user_attrs["failure"] for t in trials_of(home, "small")} == {"environment"}


def test_another_folder_joins_a_study_in_a_database_with_its_precision(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"sqlite:///{tmp_path / 'team.db'}"
    nodes_have(monkeypatch, "fp32")
    gt.run_search(gt.load_space(str(file)), storage=storage)
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "elsewhere"))
    nobody_is_asked(monkeypatch)
    again = gt.run_search(gt.load_space(str(file), {"study.trials": 2}), storage=storage)
    assert {t.experiment.training.precision for t in again.trials()} == {"fp32"}
    assert len(again.trials()) == 2


def test_a_study_that_was_begun_without_one_keeps_its_way_and_says_so(
    file: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as before:
        before.setattr(search, "settle", lambda space, *_: (space, ""))
        gt.run_search(gt.load_space(str(file)))
    nobody_is_asked(monkeypatch)
    from guidino_tune.search import main

    assert main([str(file), "--trials", "2"]) == 0
    assert "note: this study was begun when nobody settled its precision" in " ".join(capsys.readouterr().out.split())
    assert "precision" not in load_study(study_folder(home, "small")).user_attrs
    assert Experiment.from_yaml(study_folder(home, "small").trial(1).path / EXPERIMENT).training.precision == "auto"


def test_what_a_person_named_is_not_asked_for(tmp_path: Path, demo: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_is_asked(monkeypatch)
    gt.run_search(gt.load_space(str(slow_space(tmp_path, demo, epochs=1, trials=1, pruner="none"))))
    assert "precision" not in load_study(study_folder(home, "small")).user_attrs


def test_the_cluster_is_closed_before_folders_are_tidied_and_mlflow_is_waited_for(
    file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new study held its GPUs for another minute, and a late worker left checkpoints behind."""
    order = list[str]()

    def settle(space: Any, folder: Any, storage: Any, stack: contextlib.ExitStack, say: Any) -> tuple[Any, str]:
        stack.callback(order.append, "cluster")
        return space, "fp32"

    def run(study: Any, *_: Any) -> str:
        study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
        order.append("trials")
        return ""

    monkeypatch.setattr(search, "settle", settle)
    monkeypatch.setattr(search, "_run_trials", run)
    monkeypatch.setattr(TrialFolder, "tidy", lambda self: order.append("folders"))
    monkeypatch.setattr(MLflowTracker, "close", lambda self, **how: order.append("MLflow"))
    gt.run_search(gt.load_space(str(file)))
    assert order == ["trials", "cluster", "folders", "MLflow"]


def test_a_study_whose_first_run_was_killed_at_once_knows_its_precision(file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later runs had its bf16 emulated, where a node without it is to be refused."""
    nodes_have(monkeypatch, "bf16")
    kept = optuna.Study.set_user_attr

    def killed(self: optuna.Study, key: str, value: Any) -> None:
        kept(self, key, value)
        if key == "definition":
            raise KeyboardInterrupt

    space = gt.load_space(str(file))
    with monkeypatch.context() as once:
        once.setattr(optuna.Study, "set_user_attr", killed)
        with pytest.raises(KeyboardInterrupt):
            gt.run_search(space)
    nobody_is_asked(monkeypatch)
    told = list[str]()
    monkeypatch.setattr(search, "_run_trials", lambda study, *_: told.append(study.user_attrs.get("precision", "")) or "")
    gt.run_search(space)
    assert told == ["bf16"]
