"""The pages of a study and of its trials in MLflow: how each ended, with a picture and commands, and no text that breaks out."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from PIL import Image
from test_workflows_recorder import Setup
from training_helpers import search_space

from guidino_tune import paths
from guidino_tune.export import main as export
from guidino_tune.study.outcomes import REPEATS
from guidino_tune.study.store import StudyFolder, open_study, stored_study
from guidino_tune.tracking import StudySnapshot
from guidino_tune.tracking.notes import NOTE, link, picture
from guidino_tune.workflows.notes import LONGEST, TrialNotes, cell, code, study_note
from guidino_tune.workflows.recorder import Recorder

EVIL = "x` ![](http://evil/p.png) <img src=x onerror=alert(1)> [a](javascript:alert(1)) | b\n\n# loud\n@me :smile: ``` \\"


@pytest.fixture
def setup(home: Path) -> Setup:
    return Setup()


def note_of(setup: Setup, number: int) -> str:
    """The description that was handed over last."""
    return next(t.tags[NOTE] for t in reversed(setup.tracker.trials) if t.number == number and NOTE in t.tags)


def shot(setup: Setup, number: int, name: str) -> None:
    pictures = setup.folder.trial(number).pictures
    pictures.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 32), "red").save(pictures / name)


def outside_code(note: str) -> str:
    """What a Markdown renderer takes for markup: neither blocks of commands nor what stands between backticks."""
    return re.sub(r"`[^`\n]*`", "CODE", re.sub(r"(?ms)^```$.*?^```$", "", note))


# ------------------------------------------------------------------------------------------------------------- how a trial ended


def test_a_complete_trial_tells_its_place_when_it_ended_and_keeps_it(setup: Setup) -> None:
    for best in (0.5, 0.7, 0.6):
        setup.trial([0.2, best, 0.1, 0.1], TrialState.COMPLETE)
    told = [note_of(setup, number) for number in range(3)]
    assert ["number 1 of 1" in told[0], "number 1 of 2" in told[1], "number 2 of 3" in told[2]] == [True] * 3
    assert "Best validation Dice **0.7000**, in epoch 2." in told[1]
    assert "**Complete**: GuiDINO-U, 4 epochs." in told[1]
    setup.trial([0.2, 0.9, 0.1, 0.1], TrialState.COMPLETE)
    setup.tracker.trials.clear()
    Recorder(setup.study, setup.space, setup.folder, setup.tracker, StudySnapshot("small")).sync()  # the next driver finds the same
    assert [note_of(setup, number) for number in range(3)] == told


def test_what_a_trial_searched_other_than_the_default(home: Path) -> None:
    space = search_space(first_trials=[{"training.lr": 1e-3, "segmenter.base_width": 2}])
    study = optuna.create_study(direction="maximize")
    for params in ({"training.lr": 5e-3, "segmenter.base_width": 2}, {"training.lr": 1e-3, "segmenter.base_width": 2}):
        made = optuna.trial.create_trial(
            value=0.5, params=params, intermediate_values={4: 0.5}, user_attrs={"name": "U-Net", "epochs": 4},
            distributions={"training.lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
                           "segmenter.base_width": optuna.distributions.CategoricalDistribution([2, 4])},
        )  # fmt: skip
        study.add_trial(made)
    other, alike = map(TrialNotes(study, space, StudyFolder(paths.studies() / "small")).of, study.trials)
    assert "- `training.lr` 0.005 (default 0.001)\n\n1 searched setting is as in the default." in other
    assert "base_width" not in other
    assert "2 searched settings are as in the default." in alike
    assert "- `" not in alike


def test_with_several_objectives_a_place_is_that_by_dice_and_the_front_keeps_its_weights_too(home: Path) -> None:
    space = search_space(first_trials=[], study={"objectives": ["val_dice", "parameters"], "trials": 4, "pruner": "none"})
    study = optuna.create_study(directions=["maximize", "minimize"])
    for dice, size in ((0.5, 9.0), (0.4, 1.0)):
        made = optuna.trial.create_trial(
            values=[dice, size], intermediate_values={4: dice}, user_attrs={"name": "U-Net", "epochs": 4, "parameters": size}
        )
        study.add_trial(made)
    told = TrialNotes(study, space, StudyFolder(paths.studies() / "small")).of(study.trials[1])
    assert "number 2 of 2 by Dice that had run" in told
    assert "as long as it is among the 20 best or on the Pareto front, whose weights are kept" in told


def test_a_trial_that_was_stopped_or_failed_tells_why_and_what_to_do(setup: Setup) -> None:
    setup.trial([0.1, 0.3], TrialState.PRUNED)
    setup.trial([0.4], TrialState.FAIL, failure="out-of-memory", message="no room for 2 GiB")
    assert "**Stopped early**" in note_of(setup, 0)
    assert "after epoch 2: " in note_of(setup, 0)
    assert "its Dice there was not among the best. Best validation Dice **0.3000**, in epoch 2." in note_of(setup, 0)
    failed = note_of(setup, 1)
    assert "**Failed** (out-of-memory)" in failed
    assert "Why: `no room for 2 GiB`. What to do: lower batch or image size" in failed
    assert "retrain" not in failed


def test_the_commands_of_a_note_name_the_study_and_the_trial(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup.trial([0.1, 0.3], TrialState.PRUNED)
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        commands = [line for line in note_of(setup, number).split("\n") if line.startswith("guidino-tune")]
        first = shlex.split(commands[0])
        assert first[:2] == ["guidino-tune", "export"]
        assert export(first[2:]) == 0
        assert f"trial: {number}" in Path(f"small-{number}.yaml").read_text()
        assert f"small-{number}.yaml" in commands[1]
        assert commands[1].startswith("guidino-tune retrain ")
    predict = next(line for line in note_of(setup, 1).split("\n") if "predict" in line).removesuffix(" \\")
    told = subprocess.run(["sh", "-c", predict.replace("guidino-tune predict", "echo")], capture_output=True, text=True, check=True)
    assert told.stdout == f"{setup.folder.trial(1).path}\n"
    assert len([line for line in note_of(setup, 0).split("\n") if "predict" in line]) == 0  # whose weights are not kept


def test_a_note_stays_when_the_home_folder_is_moved(setup: Setup, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    before = note_of(setup, 0)
    assert str(home) not in before
    new = home.with_name("new home")
    home.rename(new)
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(new))
    moved = stored_study("small")
    assert TrialNotes(moved.study, moved.space, moved.folder).of(moved.study.trials[0]) == before


@pytest.mark.parametrize("default", [True, False])
def test_commands_that_must_be_told_of_the_home_folder_or_a_database_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: bool
) -> None:
    """Copied into a shell, `show small` looks in ~/guidino_tune."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / ("guidino_tune" if default else "elsewhere")))
    setup = Setup()
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    setup.trial([0.4], TrialState.FAIL, failure="out-of-memory", message="no room")
    notes = [note_of(setup, 0), note_of(setup, 1), study_note(setup.study, setup.space, setup.folder)]
    assert ["set `GUIDINO_TUNE_HOME` to it" in note for note in notes] == [not default] * 3
    assert not any("database" in note for note in notes)
    elsewhere, trials = TrialNotes(setup.study, setup.space, setup.folder), setup.study.get_trials()
    setup.folder.journal.unlink()
    assert ["name it with `--storage`" in elsewhere.of(trial) for trial in trials] == [True, True]


def test_proposals_that_repeat_a_trial_are_no_trials(setup: Setup) -> None:
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    for _ in range(3):
        again = setup.study.ask()
        again.set_user_attr(REPEATS, 0)
        setup.study.tell(again, state=TrialState.FAIL)
    assert "After 1 trial" in study_note(setup.study, setup.space, setup.folder)
    assert "After 1 trials" not in study_note(setup.study, setup.space, setup.folder)


def test_a_study_in_another_place_is_named_by_its_path(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "my studies" / "small")
    space = search_space(first_trials=[])
    study = open_study(space, folder)
    assert f"guidino-tune show '{folder.path}'" in study_note(study, space, folder)


# ------------------------------------------------------------------------------------------------------------------------ safety


def test_text_of_users_is_no_markup_and_no_secret(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3tword@host")
    setup.trial([0.4], TrialState.FAIL, failure=EVIL, message=f"{'y' * 590}s3cr3tword {EVIL} http://u:pw@h/x", name=EVIL)
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE, name=EVIL)
    setup.recorder.conclude()
    notes = [note_of(setup, 0), note_of(setup, 1), setup.tracker.studies[-1].tags[NOTE]]
    for note in notes:
        plain = outside_code(note)
        assert "evil" in note
        assert not re.search(r"evil|onerror|javascript|loud|@me|:smile:|<|http", plain), plain
        assert plain.count("`") == 0
        assert "s3cr3t" not in note
        assert "u:pw" not in note
    rows = [line for line in notes[2].split("\n") if line.startswith("|")]
    assert len({line.count("|") - line.count("\\|") for line in rows}) == 1


def test_cells_that_are_words_or_numbers_stand_as_they_are() -> None:
    for plain in ("GuiDINO-U", "0.0012", "1e-05", "stopped early", "-", ""):
        assert cell(plain) == plain
    for other in ("a_b", "*a*", "a|b", "<b>", "-0.5", "[a](b)", "a:b:", "# a", "x" * 100):
        assert cell(other).startswith("`")
        assert cell(other).endswith("`")
    assert code("a`b\nc") == "`a'b c`"
    assert len(code("x" * 1000)) == 62


def test_a_note_is_short_however_much_is_searched(home: Path) -> None:
    names = [f"segmenter_{n}" for n in range(60)]
    space, folder = search_space(first_trials=[]), StudyFolder(paths.studies() / "small")
    study = open_study(space, folder)
    distributions = dict.fromkeys(names, optuna.distributions.FloatDistribution(0, 1)) | {
        "training.lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "segmenter.base_width": optuna.distributions.CategoricalDistribution([2, 4]),
    }
    for number in range(20):
        study.add_trial(
            optuna.trial.create_trial(
                value=0.1,
                intermediate_values={4: 0.1},
                distributions=distributions,
                user_attrs={"name": "U-Net " * 60, "epochs": 4},
                params={**dict.fromkeys(names, number / 20), "training.lr": 1e-3, "segmenter.base_width": 2},
            )
        )
    assert len(TrialNotes(study, space, folder).of(study.trials[0])) < LONGEST
    assert len(study_note(study, space, folder)) <= LONGEST


# ---------------------------------------------------------------------------------------------------------------------- pictures


def test_the_picture_that_tells_most_is_shown_and_that_of_the_best_on_the_study(setup: Setup) -> None:
    shot(setup, 0, "validation.png")
    setup.trial([0.2, 0.5, 0.1, 0.1], TrialState.COMPLETE)
    assert picture(0, "validation.png") in note_of(setup, 0)
    shot(setup, 1, "validation.png")
    shot(setup, 1, "worst-and-best.png")
    setup.trial([0.2, 0.6, 0.1, 0.1], TrialState.COMPLETE)
    assert picture(1, "worst-and-best.png") in note_of(setup, 1)
    assert "validation.png" not in note_of(setup, 1)
    study = setup.tracker.studies[-1].tags[NOTE]
    assert picture(1, "worst-and-best.png") in study
    assert picture(0, "validation.png") not in study
    assert f"Best so far: {link(1, 'trial 1')}" in study
