"""The driver with a real study and made-up results: every trial ends in the study as what really happened to it."""

import copy
import json
import math
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from training_helpers import search_space

from guidino_tune.config import Experiment
from guidino_tune.models.cost import network_cost
from guidino_tune.running.tune_adapter import StudyScheduler, StudySearcher
from guidino_tune.space.space import Space
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.training.reporter import EpochRecord


def result(epoch: int, dice: float | None, *earlier: tuple[int, float | None]) -> list[EpochRecord]:
    """An epoch, or several; ``None`` was not validated."""
    return [
        EpochRecord(e, {"train_loss_total": 1.0} | ({} if d is None else {"val_dice": d}), 1.7e9 + e) for e, d in (*earlier, (epoch, dice))
    ]


def of_tune(epoch: int, dice: float | None) -> dict[str, Any]:
    """The same as an executor gives it to Tune, with some of what Tune adds."""
    records = [record.to_dict() for record in result(epoch, dice)]
    return {"records": json.dumps(records), "epoch": epoch, "training_iteration": 1, "done": False}


class Run:
    """One run of the command: the study opened again, a driver, and what the listener heard."""

    def __init__(self, path: Path, space: Space | None = None, deadline: float = math.inf) -> None:
        self.space = space or search_space(first_trials=[])
        self.folder = StudyFolder(path)
        self.study = open_study(self.space, self.folder)
        self.heard: list[tuple[int, int | None]] = []
        self.driver = Driver(self.study, self.space, self.folder, self._listen, {"workers": 1}, deadline, count=network_cost)

    def _listen(self, number: int, experiment: Experiment, record: EpochRecord | None) -> None:
        self.heard.append((number, record.epoch if record else None))

    def trial(self, number: int) -> optuna.trial.FrozenTrial:
        return self.study.get_trials()[number]


def states(study: optuna.Study) -> list[str]:
    return [t.state.name for t in study.get_trials()]


def test_a_complete_trial_has_the_value_of_its_best_epoch(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    config = driver.driver.ask("a")
    values = {1: 0.3, 2: 0.8, 3: 0.5, 4: 0.6}
    answers = [driver.driver.report("a", result(e, v)) for e, v in values.items()]
    assert answers == [True, True, True, False]
    driver.driver.tell("a", crashed=False)
    trial = driver.trial(0)
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, 0.8, values)
    assert trial.user_attrs["name"] == "GuiDINO-U"
    assert trial.user_attrs["hash"] == Experiment.from_dict(config["experiment"]).hash
    assert driver.heard == [(0, None), (0, 1), (0, 2), (0, 3), (0, 4), (0, None)]
    assert (config["number"], config["reported"], config["workers"]) == (0, 0, 1)
    assert config["folder"] == str(tmp_path / "trials" / "00000")


def test_a_trial_stopped_early_is_pruned_with_all_its_values(tmp_path: Path) -> None:
    driver = Run(tmp_path, search_space(first_trials=[], study={"min_epochs": 2, "reduction_factor": 2}))
    for name, dice in (("a", 0.9), ("b", 0.1)):
        driver.driver.ask(name)
        for epoch in (1, 2, 3, 4):
            if not driver.driver.report(name, result(epoch, dice + epoch / 100)):
                break
        driver.driver.tell(name, crashed=False)
    first, second = driver.study.get_trials()
    assert first.state == TrialState.COMPLETE
    assert second.state == TrialState.PRUNED
    assert second.intermediate_values == {1: 0.1 + 1 / 100, 2: 0.1 + 2 / 100}
    assert [t.number for t in (driver.study.best_trial,)] == [0]


def test_a_failure_is_told_with_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    driver.driver.ask("a")
    assert driver.driver.report("a", result(1, 0.4))
    assert not driver.driver.fail("a", "diverged", "the loss is nan" * 1000)
    driver.driver.tell("a", crashed=False)
    trial = driver.trial(0)
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "diverged")
    assert trial.user_attrs["message"].startswith("the loss is nan")
    assert len(trial.user_attrs["message"]) <= 2000
    assert trial.intermediate_values == {1: 0.4}
    assert driver.driver.ask("b")["number"] == 1


def test_what_a_machine_has_to_say_is_passed_on_once(tmp_path: Path) -> None:
    driver, heard = Run(tmp_path), []
    driver.driver.warn = heard.append
    for name in ("a", "b"):
        driver.driver.ask(name)
        for epoch, note in ((1, ""), (2, "the disk is full"), (3, "the disk is full")):
            driver.driver.report(name, result(epoch, 0.5), note)
    assert heard == ["the disk is full"]


def test_an_objective_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    driver.driver.ask("a")
    assert not driver.driver.report("a", result(1, math.nan))
    driver.driver.tell("a", crashed=False)
    trial = driver.trial(0)
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "diverged")
    assert not trial.intermediate_values


def test_a_process_that_died_too_often_is_a_failure(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    driver.driver.ask("a")
    driver.driver.report("a", result(1, 0.4))
    driver.driver.tell("a", crashed=True)
    assert (driver.trial(0).state, driver.trial(0).user_attrs["failure"]) == (TrialState.FAIL, "crashed")


def test_epochs_told_twice_count_once(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    driver.driver.ask("a")
    for epoch, dice in ((1, 0.1), (2, 0.2), (1, 0.7), (2, 0.9), (3, 0.3), (3, 0.5), (4, 0.25)):
        driver.driver.report("a", result(epoch, dice))
    driver.driver.tell("a", crashed=False)
    assert driver.trial(0).intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.25}
    assert driver.trial(0).value == 0.3
    assert [epoch for _, epoch in driver.heard if epoch] == [1, 2, 3, 4]
    driver.driver.tell("a", crashed=False)  # Tune may close a trial twice
    assert states(driver.study) == ["COMPLETE"]


def test_several_epochs_at_once_are_handled_one_by_one(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    driver.driver.ask("a")
    assert driver.driver.report("a", result(2, 0.4, (1, None)))
    assert not driver.driver.report("a", result(4, 0.3, (2, 0.9), (3, None)))
    driver.driver.tell("a", crashed=False)
    trial = driver.trial(0)
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, 0.4, {2: 0.4, 4: 0.3})
    assert [epoch for _, epoch in driver.heard] == [None, 1, 2, 3, 4, None]


def test_epochs_without_validation_are_heard_but_decide_nothing(tmp_path: Path) -> None:
    driver = Run(tmp_path, search_space(first_trials=[], study={"min_epochs": 1, "reduction_factor": 2}))
    for name, dice in (("a", 0.9), ("b", 0.1)):
        driver.driver.ask(name)
        assert driver.driver.report(name, result(1, dice)) == (name == "a")
    assert driver.driver.report("a", result(2, None))
    assert driver.trial(0).intermediate_values == {1: 0.9}
    assert (0, 2) in driver.heard


def test_a_number_that_is_none_amid_several_epochs_is_a_failure(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    driver.driver.ask("a")
    assert not driver.driver.report("a", result(3, 0.5, (1, 0.4), (2, math.inf)))
    driver.driver.tell("a", crashed=False)
    assert (driver.trial(0).state, driver.trial(0).user_attrs["failure"]) == (TrialState.FAIL, "diverged")
    assert driver.trial(0).intermediate_values == {1: 0.4}


def test_what_a_dead_driver_left_running_is_asked_first_as_it_was(tmp_path: Path) -> None:
    dead = Run(tmp_path)
    configs = {name: dead.driver.ask(name) for name in ("a", "b", "c")}
    for epoch in (1, 2, 3, 4):
        dead.driver.report("b", result(epoch, 0.5))
    dead.driver.tell("b", crashed=False)
    dead.driver.report("a", result(1, 0.1))
    dead.driver.report("a", result(2, 0.2))
    alive = Run(tmp_path)
    assert alive.driver.remaining == alive.space.study.trials - 1
    again = [alive.driver.ask(name) for name in ("x", "y", "z")]
    assert [c["number"] for c in again] == [0, 2, 3]
    assert again[0]["experiment"] == configs["a"]["experiment"]
    assert again[1]["experiment"] == configs["c"]["experiment"]
    assert [c["reported"] for c in again] == [2, 0, 0]
    alive.driver.report("x", result(2, 0.99))  # known already
    for epoch in (3, 4):
        alive.driver.report("x", result(epoch, 0.3))
    alive.driver.tell("x", crashed=False)
    assert alive.trial(0).intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.3}
    assert alive.heard == [(0, None), (2, None), (3, None), (0, 3), (0, 4), (0, None)]


def test_an_orphan_that_had_told_everything_is_only_closed(tmp_path: Path) -> None:
    dead = Run(tmp_path)
    dead.driver.ask("a")
    for epoch in (1, 2, 3, 4):
        dead.driver.report("a", result(epoch, epoch / 10))
    alive = Run(tmp_path)
    assert alive.driver.ask("x")["reported"] == 4
    assert not alive.driver.report("x", result(4, 0.4))
    alive.driver.tell("x", crashed=False)
    assert (alive.trial(0).state, alive.trial(0).value) == (TrialState.COMPLETE, 0.4)


def test_after_the_deadline_trials_stay_running(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    for name in ("a", "b", "c"):
        driver.driver.ask(name)
    for epoch in (1, 2, 3):
        driver.driver.report("b", result(epoch, 0.5))
    driver.driver.deadline = time.monotonic() - 1
    assert not driver.driver.report("a", result(1, 0.5))
    assert not driver.driver.report("b", result(4, 0.5))
    assert not driver.driver.fail("c", "bug", "oh")
    for name in ("a", "b", "c"):
        driver.driver.tell(name, crashed=False)
    assert states(driver.study) == ["RUNNING", "COMPLETE", "FAIL"]
    assert StudySearcher(driver.driver).suggest("d") == Searcher.FINISHED
    assert len(driver.study.trials) == 3
    assert [t.number for t in Run(tmp_path).driver.orphans] == [0]


def test_checkpoints_of_closed_trials_are_tidied_and_others_stay(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    for number, name in enumerate("ab"):
        driver.driver.ask(name)
        folder = driver.folder.trial(number)
        (folder.path / "checkpoints" / "epoch-00001").mkdir(parents=True)
        (folder.best).mkdir()
    driver.driver.fail("a", "bug", "oh")
    driver.driver.tell("a", crashed=False)
    assert list(driver.folder.trial(0).path.iterdir()) == []
    assert driver.folder.trial(1).checkpoints()


def test_no_more_remain_than_the_study_wants(tmp_path: Path) -> None:
    driver = Run(tmp_path, search_space(first_trials=[], study={"trials": 2}))
    for name in ("a", "b"):
        driver.driver.ask(name)
        driver.driver.fail(name, "diverged", "oh")
        driver.driver.tell(name, crashed=False)
    assert Run(tmp_path, search_space(first_trials=[], study={"trials": 2})).driver.remaining == 0
    assert Run(tmp_path, search_space(first_trials=[], study={"trials": 5})).driver.remaining == 3


def test_tune_sees_a_searcher_and_a_scheduler(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    searcher, scheduler = StudySearcher(driver.driver), StudyScheduler(driver.driver)
    assert searcher.suggest("a")["number"] == 0
    tune_trial: Any = SimpleNamespace(trial_id="a")
    answers = [scheduler.on_trial_result(None, tune_trial, of_tune(e, 0.5)) for e in (1, 2, 3, 4)]
    assert answers == [TrialScheduler.CONTINUE] * 3 + [TrialScheduler.STOP]
    searcher.on_trial_result("a", of_tune(4, 0.5))
    searcher.on_trial_complete("a", of_tune(4, 0.5))
    assert states(driver.study) == ["COMPLETE"]
    assert copy.deepcopy(driver.driver) is driver.driver
    assert len(pickle.dumps(driver.driver)) < 1000


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["epoch", "again", "die", "fail"]), st.floats(0, 1)), max_size=30))
def test_nothing_is_lost_or_doubled_whatever_happens(tmp_path_factory: pytest.TempPathFactory, events: list) -> None:
    """Four trials side by side whose epochs, failures and driver deaths come in any order."""
    path = tmp_path_factory.mktemp("study")
    space = search_space(first_trials=[], study={"pruner": "none"})
    driver = Run(path, space)
    names = {n: str(n) for n in range(4)}
    told: dict[int, dict[int, float]] = {driver.driver.ask(names[n])["number"]: {} for n in range(4)}
    closed: dict[int, TrialState] = {}
    for n, what, dice in events:
        if what == "die":
            driver = Run(path, space)
            for orphan in [t.number for t in driver.driver.orphans]:
                config = driver.driver.ask(names[orphan])
                assert (config["number"], config["reported"]) == (orphan, max(told[orphan], default=0))
            continue
        if n in closed:
            continue
        if what == "fail":
            driver.driver.fail(names[n], "bug", "oh")
            closed[n] = TrialState.FAIL
        else:
            epoch = max(told[n], default=0) + (what == "epoch")
            if epoch == 0:
                continue
            told[n].setdefault(epoch, dice)
            if driver.driver.report(names[n], result(epoch, dice)):
                continue
            closed[n] = TrialState.COMPLETE
        driver.driver.tell(names[n], crashed=False)
    assert len(driver.study.trials) == 4
    for trial in driver.study.get_trials():
        assert trial.state == closed.get(trial.number, TrialState.RUNNING)
        assert trial.intermediate_values == told[trial.number]
        if trial.state == TrialState.COMPLETE:
            assert trial.value == max(told[trial.number].values())


def test_a_trial_is_told_when_the_time_budget_ends(tmp_path: Path) -> None:
    space, folder = search_space(first_trials=[]), StudyFolder(tmp_path)
    study = open_study(space, folder)
    for seconds in (60.0, math.inf):
        driver = Driver(study, space, folder, lambda *_: None, {"workers": 1}, deadline=time.monotonic() + seconds)
        config = driver.ask(f"{seconds}")
        assert config is not None
        assert config["until"] == pytest.approx(time.time() + seconds, abs=5)
