"""A home folder that was moved or copied: MLflow finds its pictures, new ones land in the new place, and other paths follow."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from test_track import make_study

from guidino_tune import known_backbones as known
from guidino_tune import paths
from guidino_tune.config import Data
from guidino_tune.data.openings import copied_from, openings, record_opening
from guidino_tune.data.sources import find_cases
from guidino_tune.doctor import main as doctor
from guidino_tune.errors import UserError
from guidino_tune.retrain import main as retrain
from guidino_tune.space.space import read_space
from guidino_tune.space.suggest import suggest
from guidino_tune.study.store import StudyFolder, load_study
from guidino_tune.track import main as track
from guidino_tune.tracking import log_model_run
from guidino_tune.tracking.client import OWN, connect, place, same_place
from guidino_tune.tracking.inspection import MLFLOW_EXPERIMENT
from guidino_tune.tracking.moved import _PLACES, BACKUP, find_moved, home_database
from guidino_tune.training.folder import write_text
from guidino_tune.workflows.home import follow_home
from guidino_tune.workflows.progress import make_console

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a study of two trials and a registered model in its MLflow, which takes seconds to make."""
    home = tmp_path_factory.mktemp("template") / "old home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDINO_TUNE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        make_study()
        for picture in (home / "studies").rglob("*.png"):
            Image.new("RGB", (4, 4), (9, 8, 7)).save(picture)
        assert track(["small", "--flush"]) == 0
        model = home / "retrained" / "m" / "model"
        write_text(model / "weights.txt", "weights")
        uri, where = home_database(home), home / "mlartifacts"
        log_model_run(uri, MLFLOW_EXPERIMENT, "m", {}, {}, [], model, "registered", {}, artifact_location=where)
    return home


@pytest.fixture
def old(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That home at a place of its own, as if it had been made there."""
    home = tmp_path / "old home"
    shutil.copytree(template, home)
    (home / paths.PLACES).write_text(f'["{home}"]')
    with sqlite3.connect(home / "mlflow.db") as database:
        for table, column in _PLACES:
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (template.as_uri(), home.as_uri()))
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    assert find_moved(home) == []
    return home


def files(home: Path) -> tuple[Any, list[str]]:
    """An MLflow client of a home, and where it reads every picture and the model from; they must be whole."""
    client = connect(home_database(home))
    experiment = client.get_experiment_by_name(MLFLOW_EXPERIMENT)
    found = [experiment.artifact_location]
    for run in client.search_runs([experiment.experiment_id], "tags.`guidino.kind` = 'trial'"):
        with Image.open(client.download_artifacts(run.info.run_id, "pictures/case_epoch0003.png")) as picture:
            assert picture.getpixel((0, 0)) == (9, 8, 7)
        found.append(run.info.artifact_uri)
    (version,) = client.search_model_versions("name='registered'")
    found += [version.source, client.get_model_version_download_uri("registered", version.version)]
    return client, found


def new_trial(home: Path) -> None:
    """The study of the home goes on with one more trial, which has a picture."""
    folder = StudyFolder(home / "studies" / "small")
    study = load_study(folder)
    one = study.ask()
    suggest(read_space(study.user_attrs["definition"], source="test"), one)
    pictures = folder.trial(one.number).pictures
    pictures.mkdir(parents=True)
    Image.new("RGB", (4, 4), (9, 8, 7)).save(pictures / "case_epoch0003.png")
    study.tell(one, 0.3)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_moved_home_keeps_its_pictures_and_takes_new_ones(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    home = tmp_path / "neu 100% ? #1 'x'"
    old.rename(home)
    before = digest(home / "mlflow.db")
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    client = connect(home_database(home))  # a reader that was there before, as a server would be
    client.get_experiment_by_name(MLFLOW_EXPERIMENT)
    assert track(["small"]) == 0  # sent before, and not to another MLflow
    assert "everything is in MLflow" in capsys.readouterr().out

    assert doctor(["--study", "small"]) in (0, 1)
    row = [line for line in capsys.readouterr().out.splitlines() if "was moved here from" in line or "mends that" in line]
    assert f"moved here from {old}" in row[0]
    assert digest(home / "mlflow.db") == before
    command = row[1].partition("or now: ")[2]
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=120)
    assert f"moved from {old}" in done.stdout
    assert not old.exists()
    assert digest(home / BACKUP) != ""

    _, places = files(home)
    assert all(place.startswith((home / "mlartifacts").as_uri()) for place in places)
    assert client.get_experiment_by_name(MLFLOW_EXPERIMENT).artifact_location == (home / "mlartifacts").as_uri()
    new_trial(home)
    assert track(["small", "--flush"]) == 0
    assert "moved" not in capsys.readouterr().out
    assert len(files(home)[1]) == len(places) + 1
    assert not old.exists()
    assert find_moved(home) == []
    assert paths.places() == [old, home]


def test_a_copied_home_leaves_the_original_alone(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "copy"
    shutil.copytree(old, home)
    kept = {file: digest(file) for file in old.rglob("*") if file.is_file()}
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    new_trial(home)
    assert track(["small", "--flush"]) == 0
    assert all(place.startswith((home / "mlartifacts").as_uri()) for place in files(home)[1])
    assert {file: digest(file) for file in old.rglob("*") if file.is_file()} == kept


def test_a_home_reached_by_another_path_was_not_moved(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(old)
    assert find_moved(link) == []


def test_what_was_not_copied_is_still_read_where_it_is(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    home = tmp_path / "copy"
    shutil.copytree(old, home, ignore=shutil.ignore_patterns("mlartifacts"))
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    assert track(["small", "--flush"]) == 0
    assert "are there and not here" in capsys.readouterr().out
    assert all(place.startswith((old / "mlartifacts").as_uri()) for place in files(home)[1])
    assert doctor(["--study", "small"]) in (0, 1)
    (command,) = [line.partition("to move them here: ")[2] for line in capsys.readouterr().out.splitlines() if "to move them here" in line]
    copying, _, sending = command.rpartition(" && ")  # the advice, followed
    subprocess.run(["bash", "-c", copying], check=True, timeout=120)
    assert track(shlex.split(sending.partition("track ")[2])) == 0
    assert all(place.startswith((home / "mlartifacts").as_uri()) for place in files(home)[1])


def test_other_experiments_of_the_database_are_left_alone(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(home_database(old))
    client.create_experiment("mine", artifact_location=(tmp_path / "gone" / "elsewhere").as_uri())
    client.create_experiment("bucket", artifact_location="s3://bucket/mlartifacts")
    home = old.rename(tmp_path / "new")
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    follow_home(make_console())
    client = connect(home_database(home))
    assert client.get_experiment_by_name("mine").artifact_location == (tmp_path / "gone" / "elsewhere").as_uri()
    assert client.get_experiment_by_name("bucket").artifact_location == "s3://bucket/mlartifacts"


def test_nothing_is_mended_while_a_search_works_there(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = old.rename(tmp_path / "new")
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    holding = "import sys\nfrom guidino_tune.study.store import StudyFolder\nfrom pathlib import Path\n"
    holding += "with StudyFolder(Path(sys.argv[1])).lock():\n    print(1, flush=True)\n    sys.stdin.read()\n"
    other = subprocess.Popen(
        [sys.executable, "-c", holding, str(home / "studies" / "small")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="'small' is at work"):
            follow_home(make_console())
        assert len(find_moved(home)) == 1
    finally:
        other.communicate()
    follow_home(make_console())
    assert find_moved(home) == []


def test_a_database_that_cannot_be_written_stops_before_anything_new(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    home = old.rename(tmp_path / "new")
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    monkeypatch.setattr("guidino_tune.tracking.moved.WAIT", 0.1)
    with sqlite3.connect(home / "mlflow.db", isolation_level=None) as busy:
        busy.execute("BEGIN IMMEDIATE")
        assert track(["small", "--flush"]) == 2
        assert "database is locked" in capsys.readouterr().err
        busy.execute("ROLLBACK")
    busy.close()
    assert not old.exists()
    assert track(["small", "--flush"]) == 0


@pytest.mark.parametrize("folds", [[], ["--folds", "2"]])
def test_a_retraining_follows_before_it_writes(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown, folds: list[str]
) -> None:
    home = old.rename(tmp_path / "new")
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    for part in ("images", "masks"):
        (tmp_path / "mine" / part).mkdir(parents=True)
        Image.new("L", (8, 8), 255).save(tmp_path / "mine" / part / "a.png")
    values = {"data": {"kind": "folder", "root": str(tmp_path / "mine")}, "guide": {"kind": "none"}, "segmenter": {"kind": "unet"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    assert retrain([str(tmp_path / "mine.yaml"), "--workers", "3", *folds]) == 2  # refused, but only once the home is known
    shown = capsys.readouterr()
    assert "cannot be shared out to 3 workers" in shown.err
    assert f"moved from {old}" in shown.out
    assert find_moved(home) == []


# --------------------------------------------------------------------------------------------------------------- other paths


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where a home was and where it is; it holds a data set, a study's split, and a retraining that took the split over."""
    before, now = tmp_path / "before", tmp_path / "now"
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(before))
    for part in ("images", "masks"):
        for name in "abc":
            file = before / "datasets" / "mine" / part / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 255).save(file)
    paths.remember_home()
    source, copy = before / "studies" / "s" / "split.json", before / "retrained" / "r" / "split.json"
    for file in (source, copy):
        write_text(file, "{}")
    copied_from(copy, source)
    before.rename(now)
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(now))
    return before, now


def test_the_data_set_in_the_home_is_found(moved: tuple[Path, Path]) -> None:
    before, now = moved
    cases = find_cases(Data(kind="folder", root=str(before / "datasets" / "mine"))).cases
    assert [case.image.parent for case in cases] == [now / "datasets" / "mine" / "images"] * 3


def test_a_backbone_in_the_home_is_found(moved: tuple[Path, Path]) -> None:
    before, now = moved
    (now / "backbones" / "mine").mkdir(parents=True)
    assert known.place_of(str(before / "backbones" / "mine")) == str(now / "backbones" / "mine")
    assert known.place_of("vits16") == "vits16"


def test_openings_of_the_test_cases_reach_the_study_s_record(moved: tuple[Path, Path]) -> None:
    before, now = moved
    record_opening(now / "retrained" / "r" / "split.json", "why", 3)
    assert [opening["reason"] for opening in openings(now / "studies" / "s" / "split.json")] == ["why"]
    assert not before.exists()


def test_only_what_is_gone_and_was_in_the_home_is_taken_from_it(moved: tuple[Path, Path], tmp_path: Path) -> None:
    before, now = moved
    assert paths.rebased(before / "datasets") == now / "datasets"
    assert paths.rebased(before / "datasets" / "other") == before / "datasets" / "other"  # not here either: told by its own name
    assert paths.rebased(tmp_path / "elsewhere" / "datasets") == tmp_path / "elsewhere" / "datasets"
    (before / "datasets").mkdir(parents=True)
    assert paths.rebased(before / "datasets") == before / "datasets"  # what is there as it was named is what was meant


def test_what_mlflow_has_is_remembered_without_the_home_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(home))
    uri = home_database(home)
    assert place(uri) == OWN
    server = "http://me:secret@server:5000"
    assert "secret" not in place(server)
    assert same_place(place(server), server)
    assert same_place(uri, uri)  # as earlier versions wrote it
    assert same_place(f"sqlite:///{tmp_path}/gone/mlflow.db", uri)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mlflow.db").touch()
    assert not same_place(f"sqlite:///{tmp_path}/other/mlflow.db", uri)
    assert not same_place(place(server), uri)
    assert shlex.split(OWN) == [OWN]
