"""The door for programs: names, results of a stored study, and that callbacks cannot fail unheard."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import os
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from test_study_driver import Run, result
from training_helpers import search_space

import guidino_tune as gt
from guidino_tune import paths
from guidino_tune.config import Experiment
from guidino_tune.running.environment import SEAL, sealed_tests
from guidino_tune.space.space import load_space, override
from guidino_tune.workflows import result as results
from guidino_tune.workflows.closing import leaderboard_text
from guidino_tune.workflows.progress import silent_console
from guidino_tune.workflows.search import _take_own

RATES = ((1e-3, (0.1, 0.2, 0.5, 0.4)), (2e-3, (0.2, 0.7, 0.6, 0.5)), (3e-3, (0.1,)), (4e-3, (0.3,)))
"""Learning rate and Dice of each epoch; the third trial ends early, the fourth is left."""


def make_study() -> Run:
    space = search_space(first_trials=[{"training.lr": rate, "segmenter.base_width": 2} for rate, _ in RATES], study={"trials": 4})
    run = Run(paths.studies() / "small", space)
    for number, (_, scores) in enumerate(RATES):
        run.driver.ask(str(number))
        for epoch, dice in enumerate(scores, 1):
            run.driver.report(str(number), result(epoch, dice))
        if number < 3:
            run.driver.tell(str(number), crashed=False)
    return run


def test_every_name_of_the_door_is_one_of_the_stub(home: Path) -> None:
    stub = (Path(gt.__file__).parent / "__init__.pyi").read_text()
    assert all(f'"{name}",' in stub for name in gt.__all__)
    assert set(gt.__all__) <= set(dir(gt))
    with pytest.raises(AttributeError, match="no attribute 'sealed'"):
        gt.sealed  # noqa: B018


def test_a_command_of_the_same_name_takes_no_functions_place() -> None:
    assert callable(importlib.import_module("guidino_tune.retrain").main)
    assert callable(importlib.import_module("guidino_tune.export_model").main)
    assert {"retrain", "export_model"}.isdisjoint(vars(gt))
    assert callable(importlib.import_module("guidino_tune.compare").main)
    assert gt.compare is sys.modules["guidino_tune.compare"]


@pytest.mark.parametrize("name", [n for n in gt.__all__ if n not in ("retrain", "load_model")])
def test_a_name_of_the_door_is_there(name: str) -> None:
    assert getattr(gt, name) is not None


@pytest.mark.parametrize("module", ["guidino_tune.api", "guidino_tune.workflows.result"])
def test_the_examples_hold(module: str, home: Path) -> None:
    make_study()
    done = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert done.attempted > 3
    assert done.failed == 0


def test_a_study_is_told_as_it_is_stored(home: Path) -> None:
    make_study()
    found = gt.open_study(home / "studies" / "small")
    assert [t.state for t in found.trials()] == ["complete", "complete", "stopped early", "interrupted"]
    second = found.trials()[1]
    assert second == found.trial(1)
    assert (second.value, dict(second.values), second.objectives) == (0.7, {1: 0.2, 2: 0.7, 3: 0.6, 4: 0.5}, {"val_dice": 0.7})
    assert second.parameters == {"training.lr": 2e-3, "segmenter.base_width": 2}
    assert second.experiment.training.lr == 2e-3
    assert second.folder == home / "studies" / "small" / "trials" / "00001"
    assert [t.number for t in found.front()] == [1]
    assert found.ended == "1 trial(s) still to be run"
    frame = found.dataframe()
    assert list(frame["training.lr"]) == [rate for rate, _ in RATES]
    assert list(frame["epochs"]) == [4, 4, 1, 1]
    with pytest.raises(gt.UserError, match="2 trials ran their whole budget"):
        found.importance()
    with pytest.raises(gt.UserError, match="no trial 9"):
        found.trial(9)


def test_a_study_that_another_process_runs_says_so(home: Path) -> None:
    with make_study().folder.lock():
        found = gt.open_study("small")
        assert "a search works on it (process" in found.ended
        assert found.trials()[3].state == "running"


def test_the_best_configuration_is_what_the_command_exports(home: Path, tmp_path: Path) -> None:
    from guidino_tune.export import main as export

    make_study()
    best = gt.open_study("small").best
    assert export(["small", "--output", str(tmp_path / "command.yaml")]) == 0
    file = best.save(tmp_path / "door.yaml")
    assert file.read_text() == (tmp_path / "command.yaml").read_text()
    assert best.experiment == Experiment.from_dict(yaml.safe_load(file.read_text())["experiment"])
    assert best.provenance["trial"] == 1
    with pytest.raises(gt.UserError, match="there already"):
        best.save(file)


def test_importance_finds_the_parameter_that_matters(home: Path) -> None:
    run = Run(paths.studies() / "small", search_space(first_trials=[], study={"trials": 12, "pruner": "none", "sampler": "random"}))
    for _ in range(12):
        asked = run.driver.ask("t")
        for epoch in range(1, 5):
            run.driver.report("t", result(epoch, 0.1 + 0.2 * asked["experiment"]["segmenter"]["base_width"]))
        run.driver.tell("t", crashed=False)
    found = gt.open_study("small").importance()
    assert next(iter(found)) == "segmenter.base_width"
    assert sum(found.values()) == pytest.approx(1)


def test_values_by_path_are_those_of_the_command_line() -> None:
    said = {"training.lr": 1e-5, "data.root": Path("/x"), "study.objectives": ("val_dice", "seconds"), "study.time_budget": None}
    texts = ["training.lr=1e-5", "data.root=/x", "study.objectives=[val_dice, seconds]", "study.time_budget=null"]
    space = load_space("demo")
    assert override(space, said).to_dict() == override(space, texts).to_dict()
    with pytest.raises(gt.UserError, match=r"training.rl = 1: unknown name 'training.rl'"):
        override(space, {"training.rl": 1})


def test_a_callback_that_fails_stops_the_driver_and_is_named(home: Path) -> None:
    class Mine:
        def epoch_ended(self, trial: gt.TrialResult, record: object) -> None:
            raise ValueError(f"no plot of {trial.value}")

    run = Run(paths.studies() / "small", search_space(first_trials=[]))
    tell = results.callback_listener((Mine(),), results.StudyResult(results.StoredStudy(run.folder, run.study, run.space)))
    run.driver.listener = lambda number, experiment, record: tell(number, record)
    assert run.driver.stored(lambda: run.driver.ask("a"), None)
    assert run.driver.stored(lambda: run.driver.report("a", result(1, 0.5)), False) is False
    assert str(run.driver.error).startswith("callback Mine.epoch_ended: ValueError in it after epoch ended of trial 0: no plot of 0.5")
    assert run.driver.stored(lambda: run.driver.ask("b"), None) is None
    assert [t.number for t in Run(run.folder.path, run.space).driver.orphans] == [0]


def test_callbacks_hear_of_starts_and_ends(home: Path) -> None:
    heard: list[tuple[str, int, str]] = []

    class All(gt.Callback):
        def trial_started(self, trial: gt.TrialResult) -> None:
            heard.append(("started", trial.number, trial.state))

        def trial_ended(self, trial: gt.TrialResult) -> None:
            heard.append(("ended", trial.number, trial.failure or trial.state))

    run = Run(paths.studies() / "small", search_space(first_trials=[]))
    tell = results.callback_listener((All(),), results.StudyResult(results.StoredStudy(run.folder, run.study, run.space)))
    run.driver.listener = lambda number, experiment, record: tell(number, record)
    with run.folder.lock():
        run.driver.ask("a")
        run.driver.report("a", result(4, 0.5))
        run.driver.tell("a", crashed=False)
        run.driver.ask("b")
        run.driver.fail("b", "bug", "oh")
        run.driver.tell("b", crashed=False)
    assert heard == [("started", 0, "running"), ("ended", 0, "complete"), ("started", 1, "running"), ("ended", 1, "bug: oh")]


def test_an_own_sampler_stays_the_studys(home: Path) -> None:
    run, own = make_study(), optuna.samplers.NSGAIISampler
    with pytest.raises(gt.UserError, match=r"begun with the sampler of its space, not with optuna\.samplers.*NSGAIISampler"):
        _take_own(run.study, run.space, run.folder, sampler=own())
    other = Run(paths.studies() / "other", search_space(first_trials=[], study={"name": "other"}))
    _take_own(other.study, other.space, other.folder, sampler=own(), pruner="none")
    assert isinstance(other.study.sampler, own)
    other.driver.ask("a")
    _take_own(other.study, other.space, other.folder, sampler=own(population_size=9))
    with pytest.raises(gt.UserError, match=r"begun with .*NSGAIISampler, not with the sampler of its space"):
        _take_own(other.study, other.space, other.folder, sampler=None)


def test_the_page_speaks_of_what_is_there() -> None:
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text().partition("# From Python")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "python.md", "exec")
    names = {word.partition("(")[0] for word in code.replace("gt.", " gt.").split() if word.startswith("gt.")}
    assert names
    assert {name.removeprefix("gt.") for name in names} <= set(gt.__all__)


def test_a_trial_says_where_it_comes_from(home: Path) -> None:
    make_study()
    trial = gt.open_study("small").trial(0)
    assert (trial.provenance["study"], trial.provenance["trial"]) == ("small", 0)


def test_searches_in_several_threads_seal_the_test_until_the_last_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SEAL)
    first, second = sealed_tests(), sealed_tests()
    with contextlib.ExitStack() as last:
        with first:
            last.enter_context(second)
        assert os.environ[SEAL] == "1"
    assert SEAL not in os.environ


def test_what_a_search_writes_is_not_shown_in_a_notebook(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich shows there whatever is printed, also into a file."""
    shown: list[object] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *found: shown.append(found))
    run = make_study()
    assert "GuiDINO-U" in leaderboard_text(run.study, run.space)
    silent_console().print("nothing")
    assert shown == []
