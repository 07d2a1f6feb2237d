"""The study and its folder: opened, resumed and extended by the same call, and by one process at a time."""

import fcntl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from training_helpers import search_space

from guidino_tune.config import Study
from guidino_tune.config import study as study_settings
from guidino_tune.errors import UserError
from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.pruners import PRUNERS, validated_epochs
from guidino_tune.study.samplers import OPTUNAS, SAMPLERS
from guidino_tune.study.store import StudyFolder, load_study, open_study
from guidino_tune.study.trials import best_value, finished, ranking


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "studies" / "small")


def run_trials(study: optuna.Study, space: Space, number: int) -> list[dict[str, Any]]:
    drawn = []
    for _ in range(number):
        trial = study.ask()
        drawn.append(suggest(space, trial))
        study.tell(trial, 0.5)
    return drawn


def test_the_same_settings_open_it_again(folder: StudyFolder) -> None:
    space = search_space()
    study = open_study(space, folder)
    run_trials(study, space, 3)
    again = open_study(space, folder)
    assert [t.params for t in again.trials] == [t.params for t in study.trials]
    assert len(finished(load_study(folder))) == 3


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"space": {"training.lr": {"type": "float", "low": 1e-4, "high": 5e-3, "log": True}}}, "space.training.lr.high"),
        ({"experiment": {"data": {"kind": "demo", "image_size": 64}}}, "experiment.data.image_size"),
        ({"experiment": {"training": {"epochs": 8}}}, "experiment.training.epochs"),
        ({"study": {"seed": 4}}, "study.seed"),
        ({"study": {"pruner": "none"}}, "study.pruner"),
        ({"first_trials": []}, "first_trials"),
        ({"space": {"segmenter.base_width": {"choices": [2, 8]}}}, "space.segmenter.base_width"),
        ({"space": {"loss.bce_weight": {"choices": [0.5, 2.0]}}}, "loss.bce_weight = 1.0, which lies outside 0.5, 2.0"),
    ],
)
def test_another_search_is_refused_by_name(changes: dict[str, Any], path: str, folder: StudyFolder) -> None:
    open_study(search_space(), folder)
    before = folder.definition.read_bytes()
    with pytest.raises(UserError) as caught:
        open_study(search_space(**changes), folder)
    assert path in str(caught.value)
    assert caught.value.where in (str(folder.path), "space.loss.bce_weight")
    assert "another study.name from small" in caught.value.todo
    assert folder.definition.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"study": {"trials": 50}},
        {"study": {"time_budget": 60.0}},
        {"resources": {"concurrent": 1, "executor": "train"}},
        {"experiment": {"data": {"kind": "demo", "image_size": 32, "root": "/elsewhere"}}},
    ],
)
def test_what_does_not_change_trials_may_change(changes: dict[str, Any], folder: StudyFolder) -> None:
    space = search_space()
    run_trials(open_study(space, folder), space, 2)
    assert len(finished(open_study(search_space(**changes), folder))) == 2


def test_first_trials_are_queued_once(folder: StudyFolder) -> None:
    space = search_space()
    study = open_study(space, folder)
    study = open_study(space, folder)  # before any of them ran
    assert [t.state for t in study.trials] == [TrialState.WAITING] * 2
    drawn = run_trials(study, space, 4)
    assert [{k: v for k, v in d.items() if k in first} for d, first in zip(drawn, space.first_trials, strict=False)] == list(
        space.first_trials
    )
    study = open_study(space, folder)  # and after all of them did
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 4


def test_a_driver_that_died_while_queueing_queues_the_rest(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue = optuna.Study.enqueue_trial
    calls: list[object] = []

    def dies(self: optuna.Study, *args: Any, **kwargs: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        enqueue(self, *args, **kwargs)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", dies)
    with pytest.raises(KeyboardInterrupt):
        open_study(search_space(), folder)
    monkeypatch.undo()
    assert len(open_study(search_space(), folder).trials) == 2


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_resumed_study_does_not_repeat_its_draws(sampler: str, folder: StudyFolder) -> None:
    space = search_space(study={"sampler": sampler}, first_trials=[])
    first = run_trials(open_study(space, folder), space, 4)
    second = run_trials(open_study(space, folder), space, 4)
    rates = [d["training.lr"] for d in first + second]
    assert len(set(rates)) == 8


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_same_seed_draws_the_same(sampler: str, tmp_path: Path) -> None:
    space = search_space(study={"sampler": sampler})
    runs = [run_trials(open_study(space, StudyFolder(tmp_path / name)), space, 5) for name in ("a", "b")]
    assert runs[0] == runs[1]
    other = search_space(study={"sampler": sampler, "seed": 9})
    assert run_trials(open_study(other, StudyFolder(tmp_path / "c")), other, 5) != runs[0]


def test_asha_lets_the_best_third_go_on(folder: StudyFolder) -> None:
    """Successive halving at epochs 1 and 3: of many trials at a rung, one in ``reduction_factor`` goes on."""
    space = search_space(study={"min_epochs": 1, "reduction_factor": 3, "trials": 60})
    study = open_study(space, folder)
    passed = []
    for number in range(30):
        trial = study.ask()
        suggest(space, trial)
        trial.report((number * 7 % 30) / 30, 1)
        passed.append(not trial.should_prune())
    assert passed[0]
    assert 5 <= sum(passed) <= 15
    best = [n for n in range(30) if n * 7 % 30 >= 29]
    assert all(passed[n] for n in best)


def test_a_trial_stopped_early_is_never_ranked_before_a_complete_one(folder: StudyFolder) -> None:
    space = search_space(first_trials=[])
    study = open_study(space, folder)
    for values, state in (
        ([0.9, 0.95], TrialState.PRUNED),
        ([0.2, 0.3, 0.1], TrialState.COMPLETE),
        ([0.99], TrialState.FAIL),
        ([0.1, 0.4, 0.2], TrialState.COMPLETE),
        ([0.97], TrialState.RUNNING),
        ([0.4, 0.1, 0.0], TrialState.COMPLETE),
    ):
        trial = study.ask()
        suggest(space, trial)
        for epoch, value in enumerate(values, 1):
            trial.report(value, epoch)
        if state == TrialState.COMPLETE:
            study.tell(trial, max(values))
        elif state != TrialState.RUNNING:
            study.tell(trial, state=state)
    assert [t.number for t in ranking(study)] == [3, 5, 1]  # ties by number
    assert [best_value(t) for t in study.trials] == [0.95, 0.3, 0.99, 0.4, 0.97, 0.4]


def test_a_second_process_is_refused_until_the_first_ends(folder: StudyFolder) -> None:
    lock = folder.lock()
    code = f"from pathlib import Path; from guidino_tune.study.store import StudyFolder; StudyFolder(Path({str(folder.path)!r})).lock()"
    with lock:
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert second.returncode != 0
    assert "another search works on this study (process" in second.stderr
    with folder.lock():
        pass


def test_a_study_that_is_not_there_names_those_that_are(folder: StudyFolder) -> None:
    open_study(search_space(), folder)
    with pytest.raises(UserError, match="small"):
        load_study(StudyFolder(folder.path.parent / "smal"))


def test_a_journal_without_the_study_is_a_users_mistake(folder: StudyFolder) -> None:
    open_study(search_space(), folder)
    folder.journal.write_text("")
    with pytest.raises(UserError, match="the journal holds no study 'small'"):
        load_study(folder)


def test_a_database_holds_the_study_too(folder: StudyFolder, tmp_path: Path) -> None:
    space, url = search_space(), f"sqlite:///{tmp_path}/optuna.db"
    run_trials(open_study(space, folder, url), space, 1)
    assert len(finished(open_study(space, folder, url))) == 1
    assert len(finished(load_study(folder, url))) == 1
    assert not folder.journal.exists()


def test_a_database_does_not_put_a_journal_aside(folder: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when GUIDINO_TUNE_STORAGE is exported later: a new study in the database would write over the folders of the trials."""
    space, url = search_space(), f"sqlite:///{tmp_path}/optuna.db"
    run_trials(open_study(space, folder), space, 2)
    journal = folder.journal.read_bytes()
    monkeypatch.setenv("GUIDINO_TUNE_STORAGE", url)
    for read in (lambda: open_study(space, folder), lambda: load_study(folder)):
        with pytest.raises(UserError, match="does not have the trials of study 'small'") as caught:
            read()
        assert str(folder.journal) in caught.value.what
        assert caught.value.where == url
    assert folder.journal.read_bytes() == journal
    monkeypatch.delenv("GUIDINO_TUNE_STORAGE")
    assert len(finished(open_study(space, folder))) == 2


def test_without_its_database_a_study_is_not_begun_again(folder: StudyFolder, tmp_path: Path) -> None:
    space, url = search_space(), f"sqlite:///{tmp_path}/optuna.db"
    run_trials(open_study(space, folder, url), space, 1)
    for read in (lambda: open_study(space, folder), lambda: load_study(folder)):
        with pytest.raises(UserError, match="kept in a database, or the journal is gone"):
            read()
    assert not folder.journal.exists()
    with pytest.raises(UserError, match="in another one, or were removed"):
        open_study(space, folder, f"sqlite:///{tmp_path}/other.db")
    assert len(finished(load_study(folder, url))) == 1


def test_who_holds_a_study_is_told_and_the_question_disturbs_nobody(folder: StudyFolder) -> None:
    assert folder.holder() == ""
    with folder.lock():
        assert folder.holder().startswith("process ")
    assert folder.holder() == ""
    with (folder.path / "driver.lock").open() as asks:  # somebody asks at the instant in which a search starts
        fcntl.flock(asks, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(asks, fcntl.LOCK_UN)).start()
        folder.lock().close()


def test_names_are_those_of_the_configuration() -> None:
    assert {*SAMPLERS, *OPTUNAS} == set(study_settings.SAMPLERS)
    assert set(PRUNERS) == set(study_settings.PRUNERS)


@pytest.mark.parametrize(
    ("settings", "epochs", "expected"),
    [
        ({"min_epochs": 3, "reduction_factor": 3}, 100, sorted({*range(5, 101, 5), 3, 9, 27, 81})),
        ({"min_epochs": 3, "reduction_factor": 3, "validate_every": 50}, 100, [3, 9, 27, 50, 81, 100]),
        ({"min_epochs": 1, "reduction_factor": 2, "validate_every": 100}, 8, [1, 2, 4, 8]),
        ({"min_epochs": 1, "reduction_factor": 2, "validate_every": 3}, 7, [1, 2, 3, 4, 6, 7]),
        ({"pruner": "none", "min_epochs": 3, "validate_every": 40}, 100, [40, 80, 100]),
        ({"pruner": "none"}, 19, list(range(1, 20))),
        ({"min_epochs": 50}, 2, [1, 2]),
        ({}, 1, [1]),
    ],
)
def test_rungs_the_last_epoch_and_every_so_many_are_validated(settings: dict[str, Any], epochs: int, expected: list[int]) -> None:
    assert list(validated_epochs(Study(**settings), epochs)) == expected


@pytest.mark.parametrize(("minimum", "factor"), [(1, 2), (2, 3), (3, 2)])
def test_the_pruner_decides_at_the_rungs_alone(minimum: int, factor: int, tmp_path: Path) -> None:
    """Trials that report each epoch, and trials that report only validated ones, are stopped at the same epochs, where none gets worse."""
    settings = {"min_epochs": minimum, "reduction_factor": factor, "sampler": "random", "validate_every": 20}
    space = search_space(first_trials=[], study=settings)
    epochs, ends = 20, []
    for name, told in (("dense", range(1, epochs + 1)), ("sparse", validated_epochs(space.study, epochs))):
        study = open_study(space, StudyFolder(tmp_path / name))
        values = np.cumsum(np.random.default_rng(5).random((20, epochs + 1)), axis=1) / epochs
        running = {trial.number: trial for trial in (study.ask() for _ in range(20))}
        stopped: dict[int, int] = {}
        for epoch in told:
            for number, trial in list(running.items()):
                trial.report(values[number, epoch], epoch)
                if trial.should_prune():
                    stopped[number] = epoch
                    study.tell(running.pop(number), state=TrialState.PRUNED)
        ends.append(stopped)
    assert ends[0] == ends[1]
    rungs = [minimum * factor**k for k in range(6) if minimum * factor**k < epochs]
    assert set(ends[0].values()) <= set(rungs)
    assert len(set(ends[0].values())) >= 2


def test_the_study_names_its_objectives_for_other_tools(tmp_path: Path) -> None:
    space = search_space(study={"trials": 2, "objectives": ["val_dice", "parameters"], "pruner": "none", "name": "named"})
    assert open_study(space, StudyFolder(tmp_path / "named")).metric_names == ["val_dice", "parameters"]
    assert open_study(space, StudyFolder(tmp_path / "named")).metric_names == ["val_dice", "parameters"]
