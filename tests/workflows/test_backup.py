"""A search and its MLflow are copied while they run, lost, put back elsewhere, and the search goes on as if nothing had been."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from in_process import without_ray
from mlflow.tracking._tracking_service import utils
from optuna.trial import TrialState
from postgres_server import Server, needs_postgres, started
from small_searches import agrees_with_mlflow, check_history, slow_space, study_folder, trials_of

import guidino_tune as gt
from guidino_tune.study import lease
from guidino_tune.study.store import load_study

CLUSTER = Path(__file__).parents[2] / "cluster"
EPOCHS, TRIALS = 6, 6
MEANWHILE, AFTER = 5, 2
"""Epochs that the search may do at the side of the copy before it waits for its end, and after that."""


def run(script: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GUIDINO_", "MLFLOW_"))} | variables
    command = ["bash", str(CLUSTER / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


class Copying:
    """Starts the copy in the middle of a trial, lets the search go on at its side, and stops it for good some epochs later."""

    def __init__(self, target: Path, home: Path, url: str | None) -> None:
        environment = os.environ | {"GUIDINO_TUNE_HOME": str(home)} | ({"GUIDINO_TUNE_STORAGE": url} if url else {})
        self.command, self.environment = ["bash", str(CLUSTER / "backup.sh"), str(target)], environment
        self.process: subprocess.Popen[str] | None = None
        self.told, self.meanwhile, self.after = "", 0, 0

    def epoch_ended(self, trial: Any, record: Any) -> None:
        if self.process is None and (trial.number, record.epoch) == (1, 1):
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if self.process is None:
            return
        if self.process.poll() is None and self.meanwhile < MEANWHILE:
            self.meanwhile += 1
            return
        self.told = self.told or self.process.communicate(timeout=120)[0]
        self.after += 1
        if self.after == AFTER:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> dict[int, tuple[Any, ...]]:
    """The same search, which nothing happens to."""
    folder = tmp_path_factory.mktemp("truth")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        patch.setenv("GUIDINO_TUNE_HOME", str(folder / "home"))
        gt.run_search(gt.load_space(str(slow_space(folder, demo, epochs=EPOCHS, trials=TRIALS, pruner="asha"))))
    return told(trials_of(folder / "home", "small"))


def told(trials: list[Any]) -> dict[int, tuple[Any, ...]]:
    return {t.number: (t.state, t.params, t.intermediate_values, t.value) for t in trials}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started() as server:
        yield server


@pytest.mark.parametrize("kept", ["journal", pytest.param("database", marks=needs_postgres)])
def test_a_search_goes_on_from_a_copy_that_was_made_while_it_ran(
    kept: str,
    home: Path,
    tmp_path: Path,
    demo: Path,
    truth: dict[int, tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    urls: list[str] = []
    if kept == "database":
        for name, seconds in {"BEAT": 0.2, "STALE": 1.0, "SETTLE": 0.05}.items():
            monkeypatch.setattr(lease, name, seconds)
        server: Server = request.getfixturevalue("server")
        for name in ("before", "after"):
            server.ask(f"CREATE DATABASE {name}")
            urls.append(server.url_of(name))
    before, after = urls or (None, None)
    space = gt.load_space(str(slow_space(tmp_path, demo, epochs=EPOCHS, trials=TRIALS, pruner="asha")))
    copying = Copying(tmp_path / "backup", home, before)
    result = gt.run_search(space, callbacks=[copying], storage=before)
    assert copying.process is not None
    assert copying.process.returncode == 0, copying.told
    assert "1 studies, 2 trials" in copying.told
    assert copying.meanwhile >= 1  # it really ran at its side
    assert result.ended == "Interrupted"
    lost = told(load_study(study_folder(home, "small"), before).get_trials())

    shutil.rmtree(home)
    utils._artifact_repos_cache.clear()  # where MLflow's files are: the search goes on in another process
    if before:
        server.ask("DROP DATABASE before WITH (FORCE)")
    elsewhere = tmp_path / "else where" / "home"
    done = run("restore.sh", tmp_path / "backup", elsewhere, **({"GUIDINO_TUNE_STORAGE": after} if after else {}))
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(elsewhere))
    found = load_study(study_folder(elsewhere, "small"), after).get_trials()
    assert len(told(found)) <= len(lost)
    assert [t.state for t in found if t.state == TrialState.RUNNING] == [TrialState.RUNNING]
    for number, trial in told(found).items():
        assert trial[1] == lost[number][1]
        assert trial[2].items() <= lost[number][2].items()

    caplog.clear()
    assert gt.run_search(space, storage=after).exit_code == 0
    assert "is waited for" not in caplog.text  # no lock came along
    assert ("drove this study" in caplog.text) == bool(after)  # a lease in a database did, and is watched
    assert told(load_study(study_folder(elsewhere, "small"), after).get_trials()) == truth
    assert not home.exists()
    if after:
        monkeypatch.setenv("GUIDINO_TUNE_STORAGE", after)
    agrees_with_mlflow(elsewhere, "small")
    check_history(elsewhere, "small", EPOCHS)
    assert all((study_folder(elsewhere, "small").trial(number).best / "weights.safetensors").exists() for number in truth)


@needs_postgres
def test_a_team_finds_its_studies_in_the_databases_that_its_page_makes(server: Server, home: Path, tmp_path: Path) -> None:
    """By an account that may make no database itself; who could only look before can look there, and nobody else comes in."""
    page = (CLUSTER.parent / "docs" / "team.md").read_text(encoding="utf-8")
    first, second = (part.partition("```")[0] for part in page.split("```sql\n")[1:])
    psql = [str(server.binaries / "psql"), "-v", "ON_ERROR_STOP=1", server.url]
    subprocess.run(psql, input=first, text=True, check=True, capture_output=True, timeout=60)
    before, after = (server.url_of(name, "polyps") for name in ("polyps_studies", "polyps_studies_2"))
    optuna.create_study(storage=before, study_name="anna-kvasir")
    (home / "studies" / "anna-kvasir").mkdir(parents=True)
    (home / "studies" / "anna-kvasir" / "study.yaml").touch()
    copied = run("backup.sh", tmp_path / "copy", GUIDINO_TUNE_HOME=str(home), GUIDINO_TUNE_STORAGE=before)
    assert copied.returncode == 0, copied.stderr
    subprocess.run(psql, input=second, text=True, check=True, capture_output=True, timeout=60)
    restored = run("restore.sh", tmp_path / "copy", tmp_path / "new", GUIDINO_TUNE_STORAGE=after)
    assert restored.returncode == 0, restored.stderr
    server.ask("CREATE ROLE guests LOGIN")
    for user, answer in {"polyps_reader": "anna-kvasir", "guests": "permission denied"}.items():
        url = server.url_of("polyps_studies_2", user)
        asked = subprocess.run([*psql[:-1], "-tAc", "SELECT study_name FROM studies", url], capture_output=True, text=True, timeout=60)
        assert answer in asked.stdout + asked.stderr


def test_a_study_whose_database_nobody_named_is_an_error(home: Path, tmp_path: Path) -> None:
    """As from cron, which knows no variables; all else is copied."""
    (home / "studies" / "far").mkdir(parents=True)
    (home / "studies" / "far" / "study.yaml").write_text("name: far")
    done = run("backup.sh", tmp_path / "copy", GUIDINO_TUNE_HOME=str(home))
    assert done.returncode == 1
    assert "error: the trials of studies/far are in a database, which was not copied\n  -> name it as GUIDINO_TUNE_STORAGE" in done.stderr
    assert (tmp_path / "copy" / "home" / "studies" / "far" / "study.yaml").read_text() == "name: far"
    line = next(line for line in (CLUSTER / "backup.sh").read_text().splitlines() if "0 3 * * *" in line)
    assert " GUIDINO_TUNE_HOME=/shared/guidino_tune /opt/" in line


def program(file: Path, text: str) -> str:
    """A program in front of others of its name; gives the PATH."""
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{text}")
    file.chmod(0o755)
    return f"{file.parent}:{os.environ['PATH']}"


@needs_postgres
def test_a_password_is_on_no_command_line(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    path = program(tmp_path / "bin" / "pg_dump", f'echo "$PGPASSWORD $*" >> {tmp_path}/called\n')
    url = "postgresql+psycopg://me:s%40cret@db.example.org:5433/team?sslmode=require"
    done = run("backup.sh", tmp_path / "copy", GUIDINO_TUNE_HOME=str(home), PATH=path, MLFLOW_BACKEND_STORE_URI=url)
    assert done.returncode == 0, done.stderr
    password, *words = (tmp_path / "called").read_text().split()
    assert password == "s@cret"
    assert words[-1] == "--dbname=postgresql://me@db.example.org:5433/team?sslmode=require"
    assert not [word for word in words if "cret" in word]


def test_the_order_leaves_out_what_no_study_knows(home: Path, tmp_path: Path) -> None:
    """A trial that begins between the copy of the study and that of the folders has no folder in the copy; drafts and caches have none."""
    study = home / "studies" / "a"
    for name in ("trials/00000/best", "trials/00000/checkpoints/.epoch-00002.77", "trials/00000/checkpoints/epoch-00001", "ray", "reports"):
        (study / name).mkdir(parents=True)
        (study / name / "file").write_text(name)
    for name in ("study.yaml", "optuna.journal", "driver.lock", "mlflow-sent.jsonl", "trials/00000/.lock"):
        (study / name).write_text(name)
    os.link(study / "trials/00000/best/file", study / "trials/00000/checkpoints/epoch-00001/shared")
    (home / "cache").mkdir()
    (home / "datasets").mkdir()
    sqlite3.connect(home / "mlflow.db").close()
    home.chmod(0o750)
    # What is in the copy before each step of it; and between the journal and the folders one trial ends, and another one begins.
    path = program(
        tmp_path / "bin" / "cp",
        f'echo "$* HAS" $(cd {tmp_path}/copy.partial.*/home && find . -type f) >> {tmp_path}/steps\n/bin/cp "$@"\n'
        f'case "$*" in *optuna.journal*) rm -rf {study}/trials/00000/checkpoints; mkdir -p {study}/trials/00001;; esac\n',
    )
    done = run("backup.sh", "--without-datasets", tmp_path / "copy", GUIDINO_TUNE_HOME=str(home), PATH=path)
    assert done.returncode == 0, done.stderr
    steps = [line.partition(" HAS") for line in (tmp_path / "steps").read_text().splitlines()]
    has = {name: next(files for step, _, files in steps if name in step) for name in ("mlflow-sent", "optuna.journal", "trials/00000 ")}
    assert "mlflow.db" not in has["mlflow-sent"]
    assert all(name in has["optuna.journal"] for name in ("mlflow-sent.jsonl", "mlflow.db"))
    assert "optuna.journal" in has["trials/00000 "]
    copied = {str(p.relative_to(tmp_path / "copy" / "home")) for p in (tmp_path / "copy" / "home").rglob("*") if p.is_file()}
    assert copied == {
        os.path.normpath(f"studies/a/{name}")
        for name in (
            "../../mlflow.db", "study.yaml", "optuna.journal", "mlflow-sent.jsonl", "reports/file", "trials/00000/best/file",
            "trials/00000/checkpoints/epoch-00001/file", "trials/00000/checkpoints/epoch-00001/shared",
        )
    }  # fmt: skip
    assert (study / "trials" / "00001").is_dir()
    assert not (tmp_path / "copy" / "home" / "studies" / "a" / "trials" / "00001").exists()
    assert ((tmp_path / "copy").stat().st_mode & 0o777, (tmp_path / "copy" / "home").stat().st_mode & 0o777) == (0o700, 0o750)
    best = tmp_path / "copy" / "home" / "studies" / "a" / "trials" / "00000" / "best" / "file"
    assert best.stat().st_nlink == 2
    assert sorted(p.name for p in home.iterdir()) == ["cache", "datasets", "mlflow.db", "studies"]  # nothing is left there


def test_mistakes_are_told_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert "name the home folder" in run("backup.sh", copy, GUIDINO_TUNE_HOME=str(home)).stderr
    home.mkdir()
    (home / "file").touch()
    assert "lies in the home folder" in run("backup.sh", home / "copy", GUIDINO_TUNE_HOME=str(home)).stderr
    assert (
        "neither a PostgreSQL nor an SQLite"
        in run("backup.sh", copy, GUIDINO_TUNE_HOME=str(home), GUIDINO_TUNE_STORAGE="mysql://h/d").stderr
    )
    team = {"GUIDINO_TUNE_HOME": str(home), "GUIDINO_TUNE_STORAGE": f"sqlite:///{tmp_path}/none.db"}
    assert run("backup.sh", copy, **team).returncode == 1  # it failed on the way
    assert not [*tmp_path.iterdir()]
    assert [p.name for p in home.iterdir()] == ["file"]
    assert run("backup.sh", copy, GUIDINO_TUNE_HOME=str(home)).returncode == 0
    assert "is there already" in run("backup.sh", copy, GUIDINO_TUNE_HOME=str(home)).stderr
    assert "is not empty" in run("restore.sh", copy, home).stderr
    assert "is no folder of cluster/backup.sh" in run("restore.sh", tmp_path, tmp_path / "new").stderr
    (copy / "studies.db").touch()
    assert "name it as GUIDINO_TUNE_STORAGE" in run("restore.sh", copy, tmp_path / "new").stderr
    assert "is not empty" in run("restore.sh", copy, tmp_path / "new", GUIDINO_TUNE_STORAGE=f"sqlite:///{home}/file").stderr
    assert not (tmp_path / "new").exists()
