"""Studies with several objectives, and with constraints: what is asked, told, kept, ranked and shown, whatever dies in between."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from test_workflows_recorder import Tracker
from training_helpers import search_space

from guidino_tune import paths
from guidino_tune.config import Experiment
from guidino_tune.config.study import CONSTRAINTS, OBJECTIVES
from guidino_tune.errors import UserError
from guidino_tune.models import build_model
from guidino_tune.models.cost import network_cost
from guidino_tune.space.check import check_space
from guidino_tune.space.space import Space, override
from guidino_tune.study.driver import Driver
from guidino_tune.study.objectives import COUNTED, MEASURED, SHORT, SOURCES, directions
from guidino_tune.study.samplers import TPESampler, _ranked
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.study.trials import front, ranking
from guidino_tune.tracking.snapshots import StudySnapshot
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.export import export_trial
from guidino_tune.workflows.finalists import finalists
from guidino_tune.workflows.progress import conclusions, leaderboard
from guidino_tune.workflows.recorder import LABELS, Recorder

ALL = ["val_dice", "val_hd95", "seconds", "parameters", "operations"]
TWO = ["val_dice", "seconds"]


def space_of(objectives: list[str] | None = None, **study: Any) -> Space:
    settings = {"pruner": "none", **({"objectives": objectives} if objectives else {}), **study}
    return search_space(study=settings, first_trials=[], resources={"workers": study.pop("workers", 1)} if "workers" in study else {})


class Run:
    """One run of the command: the study opened again, with a driver and a recorder; a trial's process writes before it tells."""

    def __init__(self, path: Path, space: Space) -> None:
        self.space, self.folder = space, StudyFolder(path)
        self.study = open_study(space, self.folder)
        self.tracker = Tracker()
        self.recorder = Recorder(self.study, space, self.folder, self.tracker, StudySnapshot("small"))
        self.driver = Driver(self.study, space, self.folder, self.recorder.changed, count=network_cost)
        self.recorder.sync()

    def epoch(self, name: str, number: int, epoch: int, dice: float, seconds: float = 1.0, **metrics: float) -> bool:
        record = EpochRecord(epoch, {"val_dice": dice, "epoch_seconds": seconds, **metrics}, 1.7e9 + epoch)
        place = self.folder.trial(number)
        place.path.mkdir(parents=True, exist_ok=True)
        if epoch not in {r.epoch for r in place.history()}:
            place.append_history(record)
        return self.driver.report(name, [record])

    def trial(self, dice: float, seconds: float = 1.0, **metrics: float) -> FrozenTrial:
        """A whole trial of four epochs, unless it is to stop."""
        asked = self.driver.ask("a")
        assert asked
        for epoch in range(1, 5):
            if not self.epoch("a", asked["number"], epoch, dice, seconds / 4, **metrics):
                break
        self.driver.tell("a", crashed=False)
        return self.study.get_trials()[asked["number"]]


def real_parameters(experiment: Experiment) -> int:
    return sum(p.numel() for p in build_model(experiment).parameters())


# ---------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("objectives=[val_dice,parametres]", ["'parametres'", "did you mean 'parameters'"]),
        ("objectives=[val_dice,val_dice]", ["twice"]),
        ("objectives=[seconds]", ["val_dice must be one of them"]),
        ("objectives=[]", ["val_dice must be one of them"]),
        ("constraints={latenzy: 1}", ["'latenzy'", "did you mean 'latency'"]),
        ("constraints={memory: 0}", ["constraints.memory", "greater than 0"]),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(setting: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        override(search_space(), [f"study.{setting}"])
    assert all(part in str(caught.value) for part in parts), caught.value


def test_several_objectives_are_pruned_by_dice_alone_where_it_is_the_first() -> None:
    both = override(search_space(), ["study.objectives=[val_dice,parameters]", "study.pruner=promotion"])
    check_space(both)
    for setting in ("study.objectives=[parameters,val_dice]", "study.pruner=asha"):
        with pytest.raises(UserError, match=r"study\.pruner") as caught:
            check_space(override(both, [setting]))
        assert "promotion, with val_dice as the first objective" in caught.value.todo


@pytest.mark.parametrize("dies", [False, True])
def test_trials_wait_by_their_dice_and_the_front_is_of_those_that_went_on(dies: bool, tmp_path: Path) -> None:
    space = space_of(TWO, pruner="promotion", min_epochs=1, reduction_factor=3, trials=9, sampler="random")
    run, dice, asked = Run(tmp_path, space), {}, []
    while run.driver.remaining:
        if (told := run.driver.ask("a")) is None:
            break
        number = told["number"]
        asked.append(number)
        dice.setdefault(number, (number * 4 % 9 + 1) / 10)  # the best are 2 (0.9), 4 (0.8) and 6 (0.7)
        for epoch in range(told["reported"] + 1, 5):
            if not run.epoch("a", number, epoch, dice[number], seconds=1.0 + number):
                break
        run.driver.tell("a", crashed=False)
        if dies:
            run = Run(tmp_path, space)
    trials = run.study.get_trials()
    complete = {t.number for t in trials if t.state == TrialState.COMPLETE}
    assert len(trials) == 9
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    best = sorted(dice, key=lambda n: -dice[n])
    assert best[0] in complete
    assert complete < set(best[:6])
    # Rungs at epochs 1 and 3: what never left the first trained one epoch, and nobody one twice.
    assert {t.last_step for t in trials if t.state == TrialState.PRUNED} <= {1, 3}
    for t in trials:
        assert [r.epoch for r in run.folder.trial(t.number).history()] == [*range(1, (t.last_step or 0) + 1)]
        assert t.state != TrialState.COMPLETE or t.values == pytest.approx([dice[t.number], 4 * (1.0 + t.number)])
    assert {t.number for t in run.study.best_trials} <= complete


def test_several_objectives_need_the_pruner_none() -> None:
    space = override(search_space(), ["study.objectives=[val_dice,parameters]", "study.constraints={parameters: 30e6}"])
    assert (space.study.objectives, space.study.constraints) == (("val_dice", "parameters"), {"parameters": 30e6})
    with pytest.raises(UserError, match=r"study\.pruner") as caught:
        check_space(space)
    assert "study.pruner: none" in caught.value.todo
    check_space(override(space, ["study.pruner=none"]))
    check_space(override(search_space(), ["study.constraints={latency: 0.1}"]))  # one objective can be pruned


def test_a_study_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """It knew neither objectives nor constraints."""
    folder, space = StudyFolder(tmp_path), search_space()
    study = open_study(space, folder)
    known = yaml.safe_load(folder.definition.read_text())
    del known["study"]["objectives"], known["study"]["constraints"]
    folder.definition.write_text(yaml.safe_dump(known))
    study.set_user_attr("definition", known)
    assert [d.name for d in open_study(space, folder).directions] == ["MAXIMIZE"]
    with pytest.raises(UserError, match=r"study\.objectives"):
        open_study(space_of(["val_dice", "seconds"], pruner="asha"), folder)
    with pytest.raises(UserError, match=r"study\.constraints"):
        open_study(search_space(study={"constraints": {"memory": 8}}), folder)


# ---------------------------------------------------------------------------------------------------------------- objectives


def test_every_objective_is_complete() -> None:
    assert set(ALL) == OBJECTIVES.keys() == SOURCES.keys() == SHORT.keys() == LABELS.keys()
    assert set(CONSTRAINTS) == {*COUNTED, *MEASURED}


def test_every_objective_has_its_value(tmp_path: Path) -> None:
    space = search_space(study={"pruner": "none", "objectives": ALL}, first_trials=[], resources={"workers": 3})
    driver = Run(tmp_path, space)
    assert [d.name for d in driver.study.directions] == ["MAXIMIZE"] + ["MINIMIZE"] * 4
    config = driver.driver.ask("a")
    assert config
    distances: dict[int, dict[str, float]] = {4: {"val_hd95": 7.5}}
    for epoch, dice in ((1, 0.3), (2, 0.8), (3, 0.5), (4, 0.6)):
        assert driver.epoch("a", 0, epoch, dice, seconds=epoch, **distances.get(epoch, {})) == (epoch < 4)
    driver.driver.tell("a", crashed=False)
    trial = driver.study.get_trials()[0]
    experiment = Experiment.from_dict(config["experiment"])
    assert trial.state == TrialState.COMPLETE
    # Three workers; the first three epochs as quick as the quickest of them, and the last one, which measures distances, as it was.
    assert trial.values[:4] == [0.8, 7.5, 3 * (1 + 1 + 1 + 4), real_parameters(experiment)]
    width = experiment.segmenter.base_width  # type: ignore[union-attr]
    assert trial.values[4] > 2 * 32 * 32 * 3 * 9 * width  # its first convolution alone
    assert trial.intermediate_values == {1: 0.3, 2: 0.8, 3: 0.5, 4: 0.6}
    results = driver.tracker.trials[-1].results
    assert results["seconds"] == 21
    assert results["parameters"] == trial.values[3]


def test_a_driver_that_is_killed_loses_nothing_of_several_objectives(tmp_path: Path) -> None:
    space = space_of(["val_dice", "val_hd95", "seconds"])
    dead = Run(tmp_path, space)
    assert dead.driver.ask("a")
    for epoch in (1, 2):
        assert dead.epoch("a", 0, epoch, epoch / 10, seconds=5)
    alive = Run(tmp_path, space)
    asked = alive.driver.ask("b")
    assert asked
    assert (asked["number"], asked["reported"]) == (0, 2)
    alive.epoch("b", 0, 3, 0.9, seconds=7)
    alive.epoch("b", 0, 4, 0.4, seconds=7, val_hd95=3.0)
    late = Run(tmp_path, space)  # it died again, before it could close the trial
    asked = late.driver.ask("c")
    assert asked
    assert asked["reported"] == 4
    assert not late.epoch("c", 0, 4, 0.4, seconds=7, val_hd95=3.0)
    late.driver.tell("c", crashed=False)
    trial = late.study.get_trials()[0]
    assert (trial.state, trial.values) == (TrialState.COMPLETE, [0.9, 3.0, 22.0])  # 3 x 5, and the last one's 7
    assert len(late.study.trials) == 1


def test_a_trial_whose_history_was_lost_is_made_up_for(tmp_path: Path) -> None:
    driver = Run(tmp_path, space_of(TWO))
    assert driver.driver.ask("a")
    driver.epoch("a", 0, 1, 0.5)
    alive = Run(tmp_path, space_of(TWO))
    alive.folder.trial(0).history_file.unlink()
    assert alive.driver.ask("a")
    for epoch in (2, 3, 4):
        alive.epoch("a", 0, epoch, 0.5)
    alive.driver.tell("a", crashed=False)
    trial = alive.study.get_trials()[0]
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "environment")
    assert "history.jsonl" in trial.user_attrs["message"]
    assert alive.driver.remaining == alive.space.study.trials


def results_of(params: dict[str, Any]) -> tuple[float, float]:
    """Made-up Dice and seconds: a trade-off over the rate."""
    return 1 - 40 * abs(params["training.lr"] - 5e-3), 1e3 * params["training.lr"]


def lives(path: Path, space: Space, dies: random.Random | None) -> optuna.Study:
    """A whole search, whose driver dies at random between two of its calls, and is started again."""
    driver = Run(path, space)
    while driver.driver.remaining:
        asked = driver.driver.ask("a")
        assert asked
        dice, seconds = results_of(driver.study.get_trials()[asked["number"]].params)
        for epoch in range(min(asked["reported"] + 1, 4), 5):
            if dies and dies.random() < 0.2:
                break
            if not driver.epoch("a", asked["number"], epoch, dice, seconds / 4):
                break
        if (dies and dies.random() < 0.3) or driver.driver.frozen(driver.driver.running["a"]).last_step != 4:
            driver = Run(path, space)
            continue
        driver.driver.tell("a", crashed=False)
    return driver.study


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_dies_anywhere_comes_out_the_same(sampler: str, tmp_path: Path) -> None:
    space = space_of(TWO, sampler=sampler, trials=12, startup_trials=4)
    whole, parts = lives(tmp_path / "a", space, None), lives(tmp_path / "b", space, random.Random(1))
    assert [(t.params, t.values, t.state) for t in parts.trials] == [(t.params, t.values, t.state) for t in whole.trials]
    assert {t.state for t in whole.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize("objectives", [TWO, TWO[::-1]])
def test_several_objectives_are_compared_front_by_front(objectives: list[str]) -> None:
    """Against the definition: the front of what is left, again and again."""
    space = space_of(objectives, trials=60, startup_trials=4)
    study = optuna.create_study(directions=directions(space.study))
    for a, b in np.random.default_rng(0).integers(0, 9, (60, 2)):
        study.add_trial(optuna.create_trial(values=[a, b], params={}, distributions={}))
    order = [t.number for some in TPESampler(space, 0).split(study, -1) for t in some][: math.ceil(0.15 * 60)]
    left, expected = list(study.trials), list[set[int]]()
    while left:
        small = optuna.create_study(directions=directions(space.study))
        small.add_trials(left)
        expected.append({left[t.number].number for t in small.best_trials})
        left = [t for t in left if t.number not in expected[-1]]
    place = {number: front for front, numbers in enumerate(expected) for number in numbers}
    fronts = [place[number] for number in order]
    assert fronts == sorted(fronts)
    assert [fronts.count(front) for front in range(max(fronts))] == [len(numbers) for numbers in expected[: max(fronts)]]


def test_the_ends_of_a_front_come_first_and_then_where_it_is_emptiest() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for dice, seconds in ((0.1, 1), (0.2, 2), (0.3, 3), (0.6, 6), (0.9, 9), (0.05, 9)):
        study.add_trial(optuna.create_trial(values=[dice, seconds], params={}, distributions={}))
    sampler = TPESampler(space_of(TWO, startup_trials=4), 0)
    assert _ranked({t.number: t.values for t in study.trials}, [-1, 1], 6) == [0, 4, 3, 2, 1, 5]
    assert [t.number for t in sampler.split(study, -1)[0]] == [0]


def test_with_several_objectives_tpe_finds_a_better_front_than_lots(tmp_path: Path) -> None:
    """The area between the front and Dice 0, 10 seconds; mean of eight seeds."""
    areas = {}
    for sampler in ("tpe", "random"):
        areas[sampler] = [
            front_area(lives(tmp_path / f"{sampler}{seed}", space_of(TWO, sampler=sampler, trials=40, startup_trials=8, seed=seed), None))
            for seed in range(8)
        ]
    assert np.mean(areas["tpe"]) > np.mean(areas["random"]), areas


def front_area(study: optuna.Study) -> float:
    area, before = 0.0, 10.0
    for dice, seconds in sorted((t.values for t in study.best_trials), reverse=True):
        area, before = area + dice * max(0.0, before - seconds), min(before, seconds)
    return area


# ---------------------------------------------------------------------------------------------------------------- results


RESULTS = [(0.8, 30), (0.9, 50), (0.7, 40), (0.6, 10), (0.9, 60), (0.5, 10)]
"""Dice and seconds; 0, 1 and 3 are on the front: 2 is behind 0, 4 behind 1, 5 behind 3."""


def shown(renderable: Any) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_the_front_leads_everywhere(home: Path) -> None:
    space = space_of(TWO)
    driver = Run(paths.studies() / "small", space)
    for dice, seconds in RESULTS:
        driver.trial(dice, seconds)
    assert [t.number for t in front(driver.study)] == [1, 0, 3]
    assert [t.number for t in ranking(driver.study)] == [1, 4, 0, 2, 3, 5]
    provenance = yaml.safe_load(driver.folder.best.read_text())["provenance"]
    assert (provenance["trial"], provenance["val_dice"], provenance["seconds"], provenance["pareto_front"]) == (1, 0.9, 50, [1, 0, 3])
    newest = {t.number: t.tags.get("guidino.pareto") for t in driver.tracker.trials}
    assert newest == {0: "true", 1: "true", 2: "false", 3: "true", 4: "false", 5: "false"}
    lines = [line for line in shown(leaderboard(driver.study, space)[0]).splitlines() if "GuiDINO" in line]
    assert [line.split()[1] for line in lines] == ["1", "0", "3", "4", "2", "5"]
    assert ["Pareto front" in line for line in lines] == [True] * 3 + [False] * 3
    assert "trials 1, 0, 3" in conclusions(driver.study, space)[0]
    text, line = export_trial("small", None)
    assert "on the Pareto front (val Dice up, seconds down): trials 1, 0, 3" in line
    assert yaml.safe_load(text)["provenance"]["trial"] == 1
    assert "not on the Pareto front" in export_trial("small", 4)[1]
    driver.recorder.draw_front()
    rows = list(csv.DictReader((driver.folder.reports / "pareto.csv").open()))
    assert [(r["trial"], r["on_front"], float(r["val_dice"]), float(r["seconds"])) for r in rows] == [
        ("1", "true", 0.9, 50), ("4", "false", 0.9, 60), ("0", "true", 0.8, 30), ("2", "false", 0.7, 40), ("3", "true", 0.6, 10),
        ("5", "false", 0.5, 10),
    ]  # fmt: skip
    assert (driver.folder.reports / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert {f.name for f in driver.tracker.studies[-1].artifacts} >= {"pareto.csv", "pareto.png", "best.yaml"}
    best = [c.name for c in finalists(driver.study, space, top=3, against=())]
    assert best == ["trial 1", "trial 4", "trial 0"]


def test_who_leaves_the_front_loses_the_mark_and_a_later_driver_knows(home: Path) -> None:
    driver = Run(paths.studies() / "small", space_of(TWO))
    driver.trial(0.8, 30)
    driver.trial(0.8, 20)
    assert [(t.number, t.tags.get("guidino.pareto")) for t in driver.tracker.trials if t.state == "complete"][-2:] == [
        (0, "false"), (1, "true"),
    ]  # fmt: skip
    again = Run(paths.studies() / "small", space_of(TWO))
    assert [(t.number, t.tags.get("guidino.pareto")) for t in again.tracker.trials] == [(0, "false"), (1, "true")]


def test_objectives_and_constraints_together(home: Path) -> None:
    space = space_of(["seconds", "val_dice"], constraints={"memory": 4})
    driver = Run(paths.studies() / "small", space)
    driver.trial(0.99, 1, memory=5)
    driver.trial(0.7, 20, memory=3)
    driver.trial(0.6, 30, memory=3)
    assert [t.number for t in front(driver.study)] == [1]
    assert driver.study.get_trials()[1].values == [20, 0.7]
    assert driver.study.get_trials()[0].state == TrialState.PRUNED
    assert [t.number for t in ranking(driver.study)] == [1, 2]
    driver.recorder.draw_front()
    assert (driver.folder.reports / "pareto.csv").read_text().splitlines()[0] == "trial,system,on_front,val_dice,seconds"
