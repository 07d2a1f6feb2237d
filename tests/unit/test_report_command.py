"""The command ``report``, where its file goes, and the report that a search ends with."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report_helpers import Parts, simulated
from rich.console import Console
from test_list_and_show import make

from guidino_tune import paths
from guidino_tune import report as command
from guidino_tune.workflows.report import report_at_end


def test_the_command_writes_where_it_is_told(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("whole")
    output = tmp_path / "one.html"
    assert command.main(["whole", "--output", str(output), "--price-per-hour", "3", "--currency", "USD"]) == 0
    assert f"written: {output}" in capsys.readouterr().out
    assert "3 USD an hour of one worker" in Parts(output.read_text()).text
    assert command.main(["whole", "--format", "markdown", "--output", str(tmp_path / "one.md")]) == 0
    assert (tmp_path / "one.md").read_text().startswith("# whole\n")
    for argv, message in (
        (["whol"], "no study 'whol'"),
        (["whole", "--output", str(tmp_path)], "is a folder"),
        (["whole", "--output", "/proc/none/x.html"], "/proc/none"),
    ):
        assert command.main(argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_study_in_a_database_is_reported_on_a_machine_without_its_folder(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    make("team-1", url, folder=tmp_path / "other" / "team-1")
    (tmp_path / "laptop").mkdir()
    monkeypatch.chdir(tmp_path / "laptop")
    assert command.main(["team-1", "--storage", url]) == 0
    assert [file.name for file in Path().iterdir()] == ["report-team-1.html"]
    parts = Parts(Path("report-team-1.html").read_text())
    assert "folder is not on this machine" in parts.text
    assert "0.4400" in parts.text
    assert not (home / "studies").exists()


def test_the_report_of_a_study_is_sent_to_mlflow(home: Path, empty_mlflow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    shutil.copy(empty_mlflow, home)
    make("sent")
    assert command.main(["sent"]) == 0
    assert (home / "studies" / "sent" / "reports" / "report.html").is_file()
    assert len(list(home.rglob("mlartifacts/**/report.html"))) == 1


def test_the_report_of_a_copied_home_goes_to_the_copy(home: Path, empty_mlflow: Path, tmp_path: Path) -> None:
    home.mkdir()
    shutil.copy(empty_mlflow, home)
    make("sent")
    assert command.main(["sent"]) == 0
    paths.remember_home()
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    before = {file: file.stat().st_mtime_ns for file in home.rglob("*") if file.is_file()}
    # A process of its own: MLflow remembers where the files of a run are.
    call = [sys.executable, "-m", "guidino_tune.report", "sent", "--home", str(copy)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"the home folder was moved from {home}" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in home.rglob("*") if file.is_file()} == before
    assert len(list(copy.rglob("mlartifacts/**/report.html"))) == 1


def test_what_spoils_a_report_spoils_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken [bold]")

    monkeypatch.setattr("guidino_tune.workflows.report.build", fail)
    text = io.StringIO()
    assert report_at_end(simulated(tmp_path / "a", 60), Console(file=text, width=200)) is None
    assert "warning: no report was written (RuntimeError: broken [bold])" in text.getvalue()
