"""A study of listed trials: each set of values once, whatever order, failure or interruption brings."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from training_helpers import search_space

from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, read_space
from guidino_tune.space.suggest import suggest
from guidino_tune.tuning.study import StudyFolder, finished, open_study, orphans, remaining

RATES = (1e-4, 1e-3, 1e-2)


def listed(*rates: float) -> Space:
    values = search_space().to_dict()
    values["space"] = {"training.lr": {"type": "float", "low": 1e-5, "high": 1e-1}, "training.seed": {"type": "int", "low": 0, "high": 9}}
    values["first_trials"] = [{"training.lr": rate, "training.seed": 1} for rate in rates]
    values["study"] |= {"sampler": "listed", "pruner": "none"}
    return read_space(values, source="list.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "studies" / "small")


def ask(study: optuna.Study, space: Space) -> tuple[optuna.Trial, Values]:
    trial = study.ask()
    return trial, suggest(space, trial)


def test_each_set_is_asked_once_and_in_order(folder: StudyFolder) -> None:
    space = listed(*RATES)
    study = open_study(space, folder)
    assert remaining(study, space) == 3
    running = [ask(study, space) for _ in RATES]
    assert [values["training.lr"] for _, values in running] == list(RATES)
    assert all(values["training.seed"] == 1 for _, values in running)
    with pytest.raises(RuntimeError, match="nothing is left"):
        ask(study, space)
    for trial, _ in running:
        study.tell(trial, 0.5)
    assert remaining(open_study(space, folder), space) == 0


def test_what_was_stopped_or_failed_by_the_machine_is_asked_again_last(folder: StudyFolder) -> None:
    space = listed(*RATES)
    study = open_study(space, folder)
    first, _ = ask(study, space)
    first.set_user_attr("failure", "crashed")
    study.tell(first, state=TrialState.FAIL)
    order = []
    for _ in RATES:
        trial, values = ask(study, space)
        order.append(values["training.lr"])
        study.tell(trial, 0.5)
    assert order == [1e-3, 1e-2, 1e-4]
    assert remaining(study, space) == 0


def test_an_infeasible_set_is_not_tried_again(folder: StudyFolder) -> None:
    space = listed(*RATES[:1])
    study = open_study(space, folder)
    trial, _ = ask(study, space)
    trial.set_user_attr("failure", "diverged")
    study.tell(trial, state=TrialState.FAIL)
    assert remaining(study, space) == 0
    assert len(finished(study)) == 1


def test_a_list_grows_and_shrinks_without_losing_anything(folder: StudyFolder) -> None:
    few, more = listed(RATES[0]), listed(*RATES)
    study = open_study(few, folder)
    trial, _ = ask(study, few)
    study.tell(trial, 0.7)
    study = open_study(more, folder)
    assert remaining(study, more) == 2
    _, values = ask(study, more)
    assert values["training.lr"] == RATES[1]
    # A trial that a dead driver left is continued only when it is asked for.
    assert [t.params["training.lr"] for t in orphans(open_study(more, folder), more)] == [RATES[1]]
    assert orphans(open_study(few, folder), few) == []
    assert remaining(open_study(few, folder), few) == 0


def test_anything_else_may_not_change(folder: StudyFolder) -> None:
    open_study(listed(*RATES), folder)
    values = listed(*RATES).to_dict()
    values["experiment"]["loss"]["lambda_guide"] = 0.2
    with pytest.raises(UserError, match=r"experiment\.loss\.lambda_guide"):
        open_study(read_space(values, source="list.yaml"), folder)


def test_an_empty_list_is_a_mistake() -> None:
    values = listed(*RATES).to_dict()
    values["first_trials"] = []
    with pytest.raises(UserError, match="first_trials"):
        read_space(values, source="list.yaml")
