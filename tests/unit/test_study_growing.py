"""Spaces that grow under a study: nothing is lost, everything stays comparable, and TPE draws from the new ranges."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from study_helpers import dice, drive, run_trial
from training_helpers import search_space

from guidino_tune.errors import UserError
from guidino_tune.space.space import Space, read_space
from guidino_tune.study.objectives import feasible
from guidino_tune.study.store import StudyFolder, check_same_search, load_study, open_study
from guidino_tune.study.trials import finished, ranking

FIRST = [{"training.lr": 1e-3}]
WIDER = {
    "training.lr": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    "segmenter.base_width": {"choices": [8, 2, 4]},
    "loss.bce_weight": {"type": "float", "low": 0.5, "high": 4.0},
}


def space_of(**changes: Any) -> Space:
    study = {"trials": 60, "startup_trials": 4, "min_epochs": 1, "constraints": {"memory": 8.0}}
    return search_space(first_trials=FIRST, **{**changes, "study": {**study, **changes.get("study", {})}})


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """Of a study that was killed: complete, stopped, failed and interrupted trials, and one that was only queued."""
    driver = drive(tmp_path / "small", space_of())
    for value in (0.5, 0.7, 0.1, 0.6, 0.2, 0.8):
        run_trial(driver, [value] * 4)
    for key in ("bad", "left"):
        driver.ask(key)
        driver.report(key, dice(1, 0.95))
    driver.fail("bad", "bug", "shapes differ")
    driver.tell("bad", crashed=False)
    driver.study.ask()  # the driver died in the middle of a question
    driver.study.enqueue_trial({"training.lr": 5e-3})
    return StudyFolder(tmp_path / "small")


def described(folder: StudyFolder) -> list[tuple[Any, ...]]:
    """All that a trial is, but what it was drawn from and the parameters that are new."""
    return [
        (
            t.number, t.state, t.values, {k: v for k, v in t.params.items() if k != "loss.bce_weight"}, t.user_attrs, t.system_attrs,
            t.intermediate_values, t.datetime_start, t.datetime_complete, t.constraints, feasible(t),
        )
        for t in load_study(folder).trials
    ]  # fmt: skip


def test_wider_ranges_more_choices_and_new_parameters_keep_every_trial(folder: StudyFolder) -> None:
    before, attributes, space = described(folder), load_study(folder).user_attrs, space_of(space=WIDER)
    assert {t.state for t in load_study(folder).trials} >= {TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING}
    lines = check_same_search(space, folder)
    assert lines == [
        "training.lr is searched in 1e-05 .. 0.1 (log) now, in 0.0001 .. 0.01 (log) before",
        "segmenter.base_width is searched in 8, 2, 4 now, in 2, 4 before",
        "loss.bce_weight is searched now (0.5 .. 4); earlier trials count with the value that they had, such as 1.0",
    ]
    study = open_study(space, folder)
    assert described(folder) == before
    assert {k: v for k, v in study.user_attrs.items() if k != "definition"} == {k: v for k, v in attributes.items() if k != "definition"}
    for trial in study.trials:
        if "hash" in trial.user_attrs:
            assert trial.params["loss.bce_weight"] == 1.0
            assert space.experiment(trial.params).hash == trial.user_attrs["hash"]
    assert check_same_search(space, folder) == []
    assert os.listdir(folder.path).count("optuna.journal") == 1
    assert not list(folder.path.glob("*.grown"))


def test_the_study_goes_on_in_the_whole_of_the_new_space(folder: StudyFolder) -> None:
    space, known = space_of(space=WIDER, study={"pruner": "asha"}), len(finished(load_study(folder)))
    driver = drive(folder.path, space)
    assert driver.remaining == 60 - known
    assert [t.user_attrs.get("hash") is not None for t in driver.orphans] == [True, False]
    resumed = run_trial(driver)
    assert resumed is not None
    assert resumed["reported"] == 1
    for _ in range(24):
        run_trial(driver)
    drawn = [t for t in driver.study.trials if t.number > 10 and t.state.is_finished()]
    # TPE draws from distributions that all trials share, the earlier ones with them.
    assert {str(t.distributions) for t in driver.study.trials if t.state.is_finished()} == {str(drawn[0].distributions)}
    assert any(not 1e-4 <= t.params["training.lr"] <= 1e-2 for t in drawn)
    assert any(t.params["segmenter.base_width"] == 8 for t in drawn)
    assert len({t.params["loss.bce_weight"] for t in drawn}) > 10
    assert ranking(driver.study)


def test_a_crash_while_it_grows_loses_nothing(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before, journal, space = described(folder), folder.journal.read_bytes(), space_of(space=WIDER)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        open_study(space, folder)
    assert folder.journal.read_bytes() == journal
    monkeypatch.undo()
    monkeypatch.setattr("guidino_tune.study.store.write_text", dies)  # the journal was replaced, and the definition was not
    with pytest.raises(KeyboardInterrupt):
        open_study(space, folder)
    monkeypatch.undo()
    assert described(folder) == before
    open_study(space, folder)
    assert described(folder) == before
    assert check_same_search(space, folder) == []


def test_more_epochs_would_be_other_trials(folder: StudyFolder) -> None:
    with pytest.raises(UserError, match=r"experiment.training.epochs: 4 -> 8") as told:
        open_study(space_of(experiment={"training": {"epochs": 8}}), folder)
    assert "another study.name from small" in told.value.todo


def test_a_study_in_a_database_stays_as_it_is(tmp_path: Path) -> None:
    folder, url = StudyFolder(tmp_path / "small"), f"sqlite:///{tmp_path}/team.db"
    open_study(space_of(), folder, url)
    for place in (folder, StudyFolder(tmp_path / "elsewhere")):
        with pytest.raises(UserError, match="the space of a study in a database stays as it is"):
            open_study(space_of(space=WIDER), place, url)


def test_a_new_parameter_needs_the_value_of_every_earlier_trial(tmp_path: Path) -> None:
    """A choice of networks, each with its own width by default: the base has one of them."""
    kinds = {"segmenter.kind": {"choices": ["unet", "nnunet"]}}
    values = search_space(first_trials=[{"segmenter.kind": "nnunet"}], experiment={"data": {"image_size": 64}}).to_dict()
    values["space"] = {**kinds, "training.lr": values["space"]["training.lr"]}
    driver = drive(tmp_path / "small", read_space(values, source="s.yaml"))
    run_trial(driver)
    values["space"] = {**kinds, "segmenter.base_width": {"choices": [2, 4]}, "training.lr": values["space"]["training.lr"]}
    with pytest.raises(UserError, match=r"earlier trials of this study have segmenter.base_width = 32, which lies outside 2, 4"):
        open_study(read_space(values, source="s.yaml"), StudyFolder(tmp_path / "small"))
    values["space"]["segmenter.base_width"] = {"choices": [2, 4, 32]}
    study = open_study(read_space(values, source="s.yaml"), StudyFolder(tmp_path / "small"))
    assert study.trials[0].params["segmenter.base_width"] == 32
