"""Trainings as a list: what is asked of the cluster, where each lies, and what follows from a failure; real ones are in ``tests/ray``."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher
from rich.console import Console
from training_helpers import make_experiment

from guidino_tune.config import Resources
from guidino_tune.errors import UserError
from guidino_tune.running.tune_adapter import StudyScheduler, StudySearcher
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.listed import INFEASIBLE_FILE, Training, TrainingList, train_all, with_seed
from guidino_tune.workflows.retrain import _shared, retrain_model

QUIET = Console(quiet=True)


@pytest.fixture
def trainings(tmp_path: Path) -> list[Training]:
    """Three seeds of four epochs, each on a split of its own."""
    return [
        Training(f"seed {n}", with_seed(make_experiment(), n), TrialFolder(tmp_path / f"seed-{n}"), tmp_path / f"fold-{n}" / "split.json")
        for n in range(3)
    ]


def drive(trainings: list[Training], home: Path, outcomes: dict[str, list[str]]) -> tuple[TrainingList, list[dict[str, Any]]]:
    """Stands in for Tune: a training trains two epochs and meets the next of its outcomes, or, where none is left, finishes.

    Returns:
        The list, and every configuration that was handed out.
    """
    listed = TrainingList(trainings, home, Resources(), QUIET)
    driver, given = listed.driver({"workers": 1, "executor": "actor"}), []
    searcher, scheduler = StudySearcher(driver), StudyScheduler(driver)
    while (config := searcher.suggest(str(len(given)))) != Searcher.FINISHED:
        given.append(config)
        key, folder = SimpleNamespace(trial_id=str(len(given) - 1)), TrialFolder(Path(config["folder"]))
        failures = outcomes.get(folder.path.name, [])
        for epoch in range(1, 3 if failures else 5):
            record = EpochRecord(epoch, {"val_dice": epoch / 10}, 0.0)
            if epoch > len(folder.history()):
                folder.save(
                    epoch, lambda draft: [(draft / name).write_text("") for name in ("weights.safetensors", "state.json")], best=True
                )
                folder.append_history(record)
            scheduler.on_trial_result(None, key, {"records": json.dumps([record.to_dict()]), "epoch": epoch})  # type: ignore[arg-type]
        if failures:
            scheduler.on_trial_result(None, key, {"failure": failures.pop(0), "message": "said so", "epoch": 0})  # type: ignore[arg-type]
        searcher.on_trial_complete(key.trial_id)
    assert driver.stored(lambda: "nothing was refused", "") == "nothing was refused"
    return listed, given


def test_each_training_is_handed_out_once_with_its_own_folder_and_split(trainings: list[Training], tmp_path: Path) -> None:
    listed, given = drive(trainings, tmp_path, {})
    assert [(c["folder"], c["split_file"]) for c in given] == [(str(t.folder.path), str(t.split_file)) for t in trainings]
    assert [c["experiment"]["training"]["seed"] for c in given] == [0, 1, 2]
    assert {(c["validated"], c["reported"]) for c in given} == {((1, 2, 3, 4), 0)}  # every epoch is validated
    assert listed.short_of_memory() == {}
    assert [t.best for t in trainings] == [0.4] * 3
    assert train_all(trainings, tmp_path, Resources(), QUIET) == {}  # the same call again needs no cluster
    assert not any(t.folder.checkpoints() for t in trainings)


def test_what_failed_goes_on_where_it_was_and_a_second_failure_of_a_kind_ends_it(trainings: list[Training], tmp_path: Path) -> None:
    listed, given = drive(trainings, tmp_path, {"seed-0": ["environment"], "seed-1": ["bug", "bug"]})
    assert sorted(Path(c["folder"]).name for c in given) == ["seed-0", "seed-0", "seed-1", "seed-1", "seed-2"]
    assert [t.finished for t in trainings] == [True, False, True]
    assert trainings[1].folder.checkpoints()  # what it has is not trained again
    with pytest.raises(UserError, match="seed 1 stopped after 2 of 4 epochs: bug: said so") as caught:
        listed.short_of_memory()
    assert caught.value.todo == "read the traceback; then run it again to continue"
    _, again = drive([t for t in trainings if not t.finished], tmp_path, {})
    assert [Path(c["folder"]).name for c in again] == ["seed-1"]
    assert trainings[1].finished


def test_what_diverged_is_remembered_and_what_was_short_of_memory_is_tried_again(trainings: list[Training], tmp_path: Path) -> None:
    listed, given = drive(trainings, tmp_path, {"seed-0": ["diverged"], "seed-1": ["out-of-memory"]})
    assert len(given) == 3  # both are results
    file = trainings[0].folder.path / INFEASIBLE_FILE
    assert trainings[0].diverged == f"diverged: said so; to train it all the same, remove {file}"
    assert not trainings[0].folder.best.exists()  # no model to be exported by mistake
    assert list(listed.short_of_memory()) == ["seed 1"]
    assert "run it again to try once more" in listed.short_of_memory()["seed 1"]
    known = [trainings[0], trainings[2]]
    assert train_all(known, tmp_path, Resources(), QUIET) == {"seed 0": trainings[0].diverged}
    file.write_text(json.dumps({"failure": "out-of-memory", "message": "from an older version"}))
    assert trainings[0].diverged == ""


def test_what_cannot_be_retrained_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="int is nothing to retrain"):
        retrain_model(3)
    with pytest.raises(UserError, match="one fold is no cross-validation"):
        retrain_model(make_experiment(), folds=1)
    assert capsys.readouterr().out == ""


def test_weights_that_are_gone_are_a_message(trainings: list[Training], tmp_path: Path) -> None:
    listed, _ = drive(trainings, tmp_path, {})
    shutil.rmtree(trainings[1].folder.best)
    with pytest.raises(UserError, match="seed 1 stopped after 4 of 4 epochs, and its best weights are not there"):
        listed.short_of_memory()


def test_seeds_of_a_retraining_keep_what_is_read_again() -> None:
    once = make_experiment()
    again = dataclasses.replace(once, data=dataclasses.replace(once.data, view_cycle=2))
    for asked, shared in ((True, "once"), ("once", "once"), ("device", "device"), (False, False)):
        assert _shared(once, Resources(share_views=asked)) == shared  # type: ignore[arg-type]
        assert _shared(again, Resources(share_views=asked)) == asked  # type: ignore[arg-type]
