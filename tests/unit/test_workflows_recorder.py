"""What observers are told of a study: tracking snapshots, the best configuration as a file, the tables."""

import io
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from rich.console import Console
from training_helpers import search_space

from guidino_tune import paths
from guidino_tune.config import Experiment
from guidino_tune.data.splits import Split, read_split, split_digest, write_split
from guidino_tune.errors import UserError
from guidino_tune.export import main as export
from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.tracking.snapshots import EndedTrial, StudySnapshot, TrialSnapshot
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows import trial_lines
from guidino_tune.workflows.export import export_trial
from guidino_tune.workflows.progress import Progress, leaderboard
from guidino_tune.workflows.recorder import Recorder, study_files


class Tracker:
    """Remembers what it is handed."""

    def __init__(self) -> None:
        self.trials: list[TrialSnapshot] = []
        self.studies: list[StudySnapshot] = []

    def update(self, trial: TrialSnapshot, ended: EndedTrial | None = None) -> None:
        self.trials.append(trial)
        assert ended is None or ended.read() == replace(trial, history=list(trial.history))  # what is kept is what was sent

    def update_ended(self, trial: EndedTrial) -> None:
        self.trials.append(trial.read())

    def update_study(self, study: StudySnapshot) -> None:
        self.studies.append(study)


def record(epoch: int, dice: float) -> EpochRecord:
    return EpochRecord(epoch, {"val_dice": dice}, 1e9 + epoch)


class Setup:
    """A study in its place under the home folder, with a recorder."""

    def __init__(self) -> None:
        self.space: Space = search_space(first_trials=[])
        self.folder = StudyFolder(paths.studies() / "small")
        self.study = open_study(self.space, self.folder)
        self.tracker = Tracker()
        self.recorder = Recorder(self.study, self.space, self.folder, self.tracker, StudySnapshot("small"))

    def trial(self, dices: list[float], state: TrialState | None, **attrs: str) -> optuna.Trial:
        trial = self.study.ask()
        experiment = self.space.experiment(suggest(self.space, trial))
        trial.set_user_attr("name", experiment.name)
        trial.set_user_attr("hash", experiment.hash)
        self.recorder.changed(trial.number, experiment, None)
        for epoch, dice in enumerate(dices, 1):
            trial.report(dice, epoch)
            self.folder.trial(trial.number).path.mkdir(parents=True, exist_ok=True)
            self.folder.trial(trial.number).append_history(record(epoch, dice))
            self.recorder.changed(trial.number, experiment, record(epoch, dice))
        for key, value in attrs.items():
            trial.set_user_attr(key, value)
        if state == TrialState.COMPLETE:
            self.study.tell(trial, max(dices))
        elif state is not None:
            self.study.tell(trial, state=state)
        if state is not None:
            self.recorder.changed(trial.number, experiment, None)
        return trial


@pytest.fixture
def setup(home: Path) -> Setup:
    return Setup()


def test_each_change_is_a_snapshot_with_all_epochs(setup: Setup) -> None:
    trial = setup.trial([0.1, 0.3], TrialState.PRUNED)
    told = [(t.number, t.state, [r.epoch for r in t.history]) for t in setup.tracker.trials]
    assert told == [(0, "running", []), (0, "running", [1]), (0, "running", [1, 2]), (0, "pruned", [1, 2])]
    last = setup.tracker.trials[-1]
    assert last.searched == trial.params
    assert last.params["training.lr"] == trial.params["training.lr"]
    assert last.finished is not None
    assert last.started is not None
    assert last.started <= last.finished


def test_epochs_in_the_file_are_not_told_twice(setup: Setup) -> None:
    """A trial's process writes its epoch before the driver hears of it."""
    trial = setup.trial([0.1], None)
    experiment = setup.space.experiment(trial.params)
    again = Recorder(setup.study, setup.space, setup.folder, setup.tracker, StudySnapshot("small"))
    again.changed(0, experiment, None)
    again.changed(0, experiment, record(1, 0.1))
    again.changed(0, experiment, record(2, 0.2))
    assert [r.epoch for r in setup.tracker.trials[-1].history] == [1, 2]


def test_failures_carry_their_reason(setup: Setup) -> None:
    setup.trial([], TrialState.FAIL, failure="diverged", message="the loss is nan")
    assert (setup.tracker.trials[-1].state, setup.tracker.trials[-1].reason) == ("fail", "diverged: the loss is nan")


def test_the_best_configuration_is_kept_beside_the_study(setup: Setup) -> None:
    setup.trial([0.9], TrialState.PRUNED)
    assert not setup.folder.best.exists()
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    first = yaml.safe_load(setup.folder.best.read_text())
    assert (first["provenance"]["trial"], first["provenance"]["val_dice"]) == (1, 0.5)
    trial = setup.trial([0.2, 0.6, 0.1, 0.1], TrialState.COMPLETE)
    setup.trial([0.2, 0.3, 0.1, 0.1], TrialState.COMPLETE)
    assert yaml.safe_load(setup.folder.best.read_text())["provenance"]["trial"] == 2
    assert Experiment.from_yaml(setup.folder.best) == setup.space.experiment(trial.params)
    metrics = setup.tracker.studies[-1].metrics
    expected = {"trials_complete": 3, "trials_pruned": 1, "trials_running": 0, "trials_fail": 0, "best_val_dice": 0.6, "best_trial": 2}
    assert {k: metrics[k] for k in expected} == expected


def test_the_best_configuration_is_written_only_when_another_is_best(setup: Setup) -> None:
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    setup.folder.best.unlink()
    setup.trial([0.2, 0.3, 0.1, 0.1], TrialState.COMPLETE)
    setup.trial([0.9], TrialState.PRUNED)
    assert not setup.folder.best.exists()
    Recorder(setup.study, setup.space, setup.folder, Tracker(), StudySnapshot("small")).sync()  # the next driver makes sure of it
    assert yaml.safe_load(setup.folder.best.read_text())["provenance"]["trial"] == 0


def test_a_resumed_driver_hands_over_every_trial(setup: Setup) -> None:
    setup.trial([0.1, 0.2], TrialState.PRUNED)
    setup.trial([0.3], None)
    setup.study.enqueue_trial({"training.lr": 5e-3})
    tracker = Tracker()
    again = Recorder(setup.study, setup.space, setup.folder, tracker, StudySnapshot("small"))
    again.sync()
    assert [(t.number, t.state, len(t.history)) for t in tracker.trials] == [(0, "pruned", 2), (1, "interrupted", 1)]
    again.interrupted()
    assert [(t.number, t.state) for t in tracker.trials[2:]] == [(1, "interrupted")]


def test_the_key_of_an_ended_trial_follows_what_is_measured_of_it_later(setup: Setup) -> None:
    trial = setup.trial([0.1, 0.2], TrialState.PRUNED)
    keys: list[str] = []
    place = setup.folder.trial(trial.number)
    for change in (lambda: None, lambda: place.test_file.write_text("[]"), lambda: place.pictures.mkdir(), lambda: None):
        change()
        setup.tracker.update_ended = lambda ended: keys.append(ended.key)  # type: ignore[method-assign]
        Recorder(setup.study, setup.space, setup.folder, setup.tracker, StudySnapshot("small")).sync()
    assert len(set(keys)) == 3
    assert keys[2] == keys[3]


def test_export_of_the_best_and_of_any_trial(setup: Setup) -> None:
    with pytest.raises(UserError, match="whole budget"):
        export_trial("small", None)
    setup.trial([0.9], TrialState.PRUNED)
    best = setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    text, line = export_trial("small", None)
    assert Experiment.from_dict(yaml.safe_load(text)["experiment"]) == setup.space.experiment(best.params)
    assert "trial 1" in line
    assert "0.5000" in line
    text, line = export_trial("small", 0)
    assert yaml.safe_load(text)["provenance"]["state"] == "PRUNED"
    assert yaml.safe_load(text)["provenance"]["epochs_trained"] == 1
    with pytest.raises(UserError, match="trials: 0 to 1"):
        export_trial("small", 7)
    with pytest.raises(UserError, match="no such study"):
        export_trial("smal", None)


def test_export_puts_the_split_beside_the_configuration_and_overwrites_none(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    split = Split(("a",), ("b",), ("c",), "seeded", 0)
    write_split(split, setup.folder.split, "groups")
    file = tmp_path / "mine.yaml"
    assert export(["small", "--output", str(file)]) == 0
    assert read_split(tmp_path / "mine.split.json") == split
    assert yaml.safe_load(file.read_text())["provenance"]["split_sha256"] == split_digest(split)
    assert "mine.split.json" in capsys.readouterr().out
    assert export(["small", "--output", str(file)]) == 0
    (tmp_path / "mine.split.json").write_text("of mine")
    file.unlink()
    assert export(["small", "--output", str(file)]) == 2
    assert (tmp_path / "mine.split.json").read_text() == "of mine"
    assert not file.exists()
    assert export(["small", "--output", str(file), "--force"]) == 0
    capsys.readouterr()
    assert export(["small", "--output", "-"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["provenance"]["split_ids"]["test"] == ["c"]
    assert {setup.folder.split, setup.folder.best} <= set(study_files(setup.folder))


def shown(renderable: Any) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_the_note_of_the_study_in_mlflow_has_its_best_trials_and_what_is_next(setup: Setup) -> None:
    setup.recorder.sync()
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    setup.trial([0.9], TrialState.PRUNED)
    setup.recorder.conclude()
    note = setup.tracker.studies[-1].tags["mlflow.note.content"]
    first, second = [line for line in note.splitlines() if (line.startswith("| ") and "GuiDINO" in line) or "0.9000" in line]
    assert "0.5000" in first
    assert "stopped early" in second
    assert "guidino-tune export small --output best.yaml" in note


def test_the_leaderboard_ranks_complete_trials_before_all_others(setup: Setup) -> None:
    setup.trial([0.9], TrialState.PRUNED)
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    setup.trial([0.2, 0.6, 0.1, 0.1], TrialState.COMPLETE)
    setup.trial([], TrialState.FAIL, failure="out-of-memory", message="too big")
    numbers = [line.split() for line in shown(leaderboard(setup.study, setup.space)[0]).splitlines() if "GuiDINO" in line]
    assert [row[:2] for row in numbers[:2]] == [["1", "2"], ["2", "1"]]
    assert "stopped early" in " ".join(numbers[2])
    assert "0.9000" in numbers[2]
    assert "out-of-memory" in numbers[3]


def test_progress_prints_a_line_for_each_beginning_and_end_of_a_trial(setup: Setup) -> None:
    setup.trial([0.2], TrialState.PRUNED)  # known before
    out = io.StringIO()
    with Progress(setup.study, setup.space, Console(file=out, width=200)) as progress:
        progress.changed(setup.trial([], None).number)
        setup.trial([0.2, 0.6, 0.1, 0.1], TrialState.COMPLETE)
        setup.trial([], TrialState.FAIL, failure="diverged", message="nan")
        for number in (0, 2, 3, 2, 3, setup.trial([0.3], None).number):
            progress.changed(number)
        table = shown(progress.draw())
        beat = progress.lines.heartbeat() if progress.lines else ""
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d trial \d ", line) for line in lines)
    assert "trial 1 begins: GuiDINO-U, " in lines[0]
    assert ", lr 0.0" in lines[0]
    assert "trial 2 ends: complete, Dice 0.6000 after 4 of " in lines[1]
    assert "trial 3 ends: diverged, no result after 0 of " in lines[2]
    assert "(diverged: nan) | 3/6 trials" in lines[2]
    assert lines[3].endswith(" trial 4 goes on after epoch 1")
    assert beat.startswith("running: trial 1 epoch 0/")
    assert ", trial 4 epoch 1/" in beat
    assert " Dice 0.3000 | 3/6 trials · 2 running" in beat
    assert "3/6 trials" in table
    assert "1 failed" in table
    assert "best Dice 0.6000" in table


def test_what_runs_is_told_soon_and_then_every_few_minutes_in_whole_lines(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a pipe, as under Slurm: whoever reads it has each line at once, and no codes of a terminal."""
    monkeypatch.setattr(trial_lines, "SOON", 0.05)
    monkeypatch.setattr(trial_lines, "OFTEN", 0.05)
    read, write = os.pipe()
    with open(write, "w", buffering=1 << 16) as pipe, Progress(setup.study, setup.space, Console(file=pipe, width=80)) as progress:
        progress.changed(setup.trial([0.3], None).number)
        first = os.read(read, 1 << 16).decode()
        told = first
        while told.count("running: ") < 2:
            told += os.read(read, 1 << 16).decode()
    assert first.endswith("\n")
    assert "\x1b" not in told
    assert "\r" not in told
    assert "time left unknown" in told
    os.close(read)


def test_a_trial_whose_driver_died_before_its_parameters_is_not_handed_over() -> None:
    """Of a part of its parameters the base experiment would fill up the rest, and MLflow keeps what it is told of parameters."""
    setup = Setup()
    setup.trial([0.5], None)
    setup.study.ask()
    setup.study.ask().suggest_float("training.lr", 1e-4, 1e-2, log=True)
    setup.tracker.trials.clear()
    setup.recorder.hand_over()
    setup.recorder.interrupted()
    assert [trial.number for trial in setup.tracker.trials] == [0, 0]
