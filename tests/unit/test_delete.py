"""``delete``: it says what goes, asks, and leaves neither half a study nor a file of it; a study at work stays."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image
from test_list_and_show import make
from test_track import make_study

from guidino_tune import delete as deleting
from guidino_tune import paths
from guidino_tune.data.openings import record_opening
from guidino_tune.errors import UserError
from guidino_tune.study.store import StudyFolder, folder_of, known_studies, open_study
from guidino_tune.track import main as track
from guidino_tune.tracking import tracking_uri
from guidino_tune.tracking.client import connect
from guidino_tune.workflows.delete import delete_study, doomed
from guidino_tune.workflows.progress import silent_console

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a study of which MLflow has everything."""
    home = tmp_path_factory.mktemp("template") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDINO_TUNE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        make_study()
        for picture in (home / "studies").rglob("*.png"):
            Image.new("RGB", (4, 4)).save(picture)
        assert track(["small", "--flush"]) == 0
    return home


def test_everything_of_a_study_goes_and_nothing_of_another(
    template: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(template, home)
    make("other", trials=2)
    (folder_of("small").trial(0).path / "best.safetensors").write_bytes(b"x" * 2_000_000)
    uri = tracking_uri(paths.home() / "mlflow.db")
    client = connect(uri)
    (number,) = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    before = client.search_runs([number])
    assert len(before) == 3
    assert deleting.main(["small", "--yes"]) == 0
    out = capsys.readouterr().out
    assert "2 trials, in the journal in its folder" in out
    assert "2.0 MB are weights and checkpoints" in out
    assert "3 runs in MLflow, with " in out
    assert "stays: registered models" in out
    assert "deleted: study 'small'" in out
    assert known_studies() == ["other"]
    assert sorted(file.name for file in (home / "studies").iterdir()) == ["other"]
    assert not client.search_runs([number])
    assert not [file for file in (home / "mlartifacts").rglob("*") if file.is_file()]
    assert not [tag for tag in client.get_experiment(number).tags if tag.startswith("mlflow.sharedViewState.")]
    assert deleting.main(["small", "--yes"]) == 2
    assert "no such study" in capsys.readouterr().err
    assert deleting.main(["other", "--yes"]) == 0


def test_a_study_at_work_is_refused(home: Path, capsys: Shown) -> None:
    with make("busy", trials=2).folder.lock():
        assert deleting.main(["busy", "--yes"]) == 2
    assert "is at work (process " in capsys.readouterr().err
    assert folder_of("busy").definition.exists()


def test_a_study_that_is_compared_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/none.db")
    comparison = make("compared", trials=2).folder.comparison
    with comparison.lock("comparison"):
        assert deleting.main(["compared", "--yes"]) == 2
        assert "is at work (process " in capsys.readouterr().err
    looked = doomed("compared")
    with comparison.lock("comparison"), pytest.raises(UserError, match="another deletion works on this study"):
        delete_study(looked, silent_console())  # it began while the question stood
    assert folder_of("compared").definition.exists()
    assert "compare/model" in "".join(looked.lines)
    assert deleting.main(["compared", "--yes"]) == 0
    with pytest.raises(UserError, match="was deleted meanwhile"):
        delete_study(looked, silent_console())
    assert not folder_of("compared").path.exists()


def test_a_driver_elsewhere_that_came_while_the_question_stood_keeps_its_study(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    url = f"sqlite:///{tmp_path}/team.db"
    make("mine", url, trials=2)
    looked = doomed("mine", url)
    other = StudyFolder(tmp_path / "elsewhere" / "mine")
    with other.lock():
        open_study(looked.stored.space, other, url)
        with pytest.raises(UserError, match="is at work"):
            delete_study(looked, silent_console())
    assert folder_of("mine").definition.exists()


def test_a_closed_input_is_a_no(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/none.db")
    make("mine", trials=2)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", Mock(side_effect=EOFError))
    assert deleting.main(["mine"]) == 1
    assert "nothing was deleted" in capsys.readouterr().out
    assert folder_of("mine").definition.exists()


def test_a_study_that_mlflow_does_not_give_up_stays_whole(
    template: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import RestException

    def refuse(*_: object) -> None:
        raise RestException({"error_code": "PERMISSION_DENIED", "message": "Permission denied"})

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(template, home)
    monkeypatch.setattr(MlflowClient, "delete_run", refuse)
    assert deleting.main(["small", "--yes"]) == 2
    assert "MLflow refuses (PERMISSION_DENIED: Permission denied)" in capsys.readouterr().err
    assert folder_of("small").definition.exists()
    assert [file for file in (home / "mlartifacts").rglob("*") if file.is_file()]


def test_to_look_makes_no_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make("mine", trials=2)
    assert deleting.main(["mine"]) == 2
    assert not (home / "mlflow.db").exists()
    assert deleting.main(["mine", "--yes"]) == 0
    assert not (home / "mlflow.db").exists()


def test_who_interrupts_it_is_told_what_is_left(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/none.db")
    make("mine", trials=2)
    monkeypatch.setattr(shutil, "rmtree", Mock(side_effect=KeyboardInterrupt))
    assert deleting.main(["mine", "--yes"]) == 130
    (left,) = (home / "studies").iterdir()
    assert f"left: {left}, " in capsys.readouterr().out
    assert known_studies() == []


@pytest.mark.parametrize("answer", ["", "n", "yes"])
def test_it_asks(answer: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/none.db")
    make("mine", trials=2)
    record_opening(folder_of("mine").split, "the winner of a comparison", 3)
    assert deleting.main(["mine"]) == 2  # a test has no terminal
    assert "its sealed test was opened (1 time)" in capsys.readouterr().out
    assert deleting.main(["mine"]) == 2
    assert "add --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert deleting.main(["mine"]) == (0 if answer == "yes" else 1)
    assert folder_of("mine").definition.exists() == (answer != "yes")
    assert ("nothing was deleted" in capsys.readouterr().out) == (answer != "yes")


def test_a_study_in_a_database_and_one_whose_mlflow_is_away(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    url = f"sqlite:///{tmp_path}/team.db"
    make("mine", url, trials=2)
    make("theirs", url, trials=2)
    assert deleting.main(["mine", "--yes", "--storage", url]) == 0
    out = capsys.readouterr().out
    assert "2 trials, in the database sqlite" in out
    assert "left: its runs in MLflow, which did not answer" in out
    import optuna

    assert optuna.get_all_study_names(url) == ["theirs"]
