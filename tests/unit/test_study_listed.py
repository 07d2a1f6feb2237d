"""A study of listed trials: each set of values once, whatever order, failure or interruption brings."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from training_helpers import search_space

from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import Values
from guidino_tune.space.recipes import Request, planned
from guidino_tune.space.space import Space, read_space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.study.trials import finished, orphans, remaining
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.checks import check_decisions

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


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([], r"first_trials\[0\].*gives training\.lr no value"),
        ([{"training.lr": 1e-3}], "gives training.seed no value"),
        ([{"training.lr": 1e-3, "training.seed": 1, "training.epochs": 3}], "'training.epochs' is not searched"),
    ],
)
def test_an_incomplete_list_is_a_mistake(trials: list[Values], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_space(listed(*RATES).to_dict() | {"first_trials": trials}, source="list.yaml")


def test_values_without_effect_and_repetitions_are_left_out(folder: StudyFolder) -> None:
    values = listed(*RATES).to_dict()
    values["experiment"] = Experiment.from_dict({"data": {"kind": "demo"}, "guide": {"kind": "dino", "backbone": "tiny"}}).to_dict()
    values["space"] = {
        "guide.lora.rank": {"choices": [0, 4]},
        "guide.lora.alpha": {"type": "float", "low": 1, "high": 9, "when": {"guide.lora.rank": {"gt": 0}}},
    }
    pairs = [(0, 4.0), (4, 4.0), (0, 8.0), (4, 8.0)]
    values["first_trials"] = [{"guide.lora.alpha": alpha, "guide.lora.rank": rank} for rank, alpha in pairs]
    space = read_space(values, source="list.yaml")
    assert len(space.first_trials) == 3  # without adapters, their scale is no difference
    study = open_study(space, folder)
    ranks = []
    while remaining(study, space):
        trial, drawn = ask(study, space)
        ranks.append(drawn["guide.lora.rank"])
        study.tell(trial, 0.5)
    assert ranks == [0, 4, 4]


def test_a_study_of_an_earlier_version_goes_on(folder: StudyFolder) -> None:
    space = listed(*RATES)
    open_study(space, folder)
    stored = yaml.safe_load(folder.definition.read_text())
    for name in ("num_classes", "normalisation"):  # came later
        del stored["experiment"]["data"][name]
    folder.definition.write_text(yaml.safe_dump(stored))
    assert remaining(open_study(space, folder), space) == 3


def test_the_data_of_a_table_may_move(folder: StudyFolder) -> None:
    spaces = [
        planned(Request(what="table2", datasets=("kvasir",), settings=(f"data.root={root}",))).spaces["kvasir"] for root in ("/a", "/b")
    ]
    open_study(spaces[0], folder)
    assert remaining(open_study(spaces[1], folder), spaces[1]) == 12


def grid(**study: object) -> Space:
    values = search_space().to_dict()
    values["space"] = {
        "training.optimizer": {"type": "choice", "choices": ["sgd", "adamw"]},
        "training.momentum": {"type": "float", "low": 0.5, "high": 0.9, "step": 0.2, "when": {"training.optimizer": "sgd"}},
        "training.seed": {"type": "int", "low": 0, "high": 1},
    }
    values["first_trials"] = [{"training.optimizer": "adamw", "training.seed": 1}]
    values["study"] |= {"sampler": "grid", "pruner": "none", "trials": 50, **study}
    return read_space(values, source="grid.yaml")


def test_a_grid_gives_every_configuration_once_and_the_search_ends(folder: StudyFolder) -> None:
    space, seen = grid(), list[Values]()
    for lives in (3, 50):  # closed and opened again after three
        study = open_study(space, folder)
        driver = Driver(study, space, folder, lambda *_: None, {"workers": 1, "executor": "actor"})
        for _ in range(lives):
            if (asked := driver.ask("a")) is None:
                break
            seen.append(study.trials[asked["number"]].params)
            if len(seen) == 2:  # no result: it is given again
                driver.fail("a", "environment", "no GPU")
            else:
                driver.report("a", [EpochRecord(epoch, {"val_dice": 0.5}, 0.0) for epoch in range(1, 5)])
            driver.tell("a", crashed=False)
    assert seen[0] == {"training.optimizer": "adamw", "training.seed": 1}
    sgd = [{"training.optimizer": "sgd", "training.momentum": m, "training.seed": s} for m in (0.5, 0.7, 0.9) for s in (0, 1)]
    assert seen[1:] == [sgd[0], sgd[0], *sgd[1:], {"training.optimizer": "adamw", "training.seed": 0}]
    assert driver.exhausted
    assert driver.ended == ""


def test_a_grid_needs_a_finite_space() -> None:
    with pytest.raises(UserError, match=r"training\.lr: a grid needs choices, whole numbers or a step"):
        check_decisions(search_space(study={"sampler": "grid"}))


@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
def test_samplers_of_optuna_have_short_names(sampler: str, folder: StudyFolder) -> None:
    space = search_space(study={"sampler": sampler, "pruner": "none"})
    study = open_study(space, folder)
    assert type(study.sampler).__name__.lower().startswith(sampler[:2])
    for n in range(13):
        trial, values = ask(study, space)
        study.tell(trial, -abs(float(values["training.lr"]) - n))
