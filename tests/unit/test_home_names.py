"""A home folder of any name: the tracking database, its pictures, and the commands that are printed."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy.engine import make_url

from guidino_tune import cli, paths
from guidino_tune.track import main as track
from guidino_tune.tracking import MLflowTracker, StudySnapshot, TrialSnapshot, tracking_uri, ui_command
from guidino_tune.tracking.client import connect, sqlite_file, sqlite_uri
from guidino_tune.tracking.inspection import reach

ODD = "Übung 100% ? #1 'x'"
CHARACTERS = ("%", "?", "#", " ", "'", '"', "$", "&", ";", "`", "\\", "@", ":", "+", "[b]", ":smile:", "%20", "u\u0308", "日本")


@pytest.fixture(autouse=True)
def no_named_home() -> Iterator[None]:
    yield
    paths.use_home(None)


def send(home: Path) -> None:
    """A run with a picture, as a search sends it, into the database of a home folder; reads both back."""
    picture = home / "case_epoch0003.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(picture)
    uri = tracking_uri(home / "mlflow.db")
    tracker = MLflowTracker(uri, "e", StudySnapshot("s"), home / "ledger.jsonl", home / "mlartifacts")
    tracker.update(TrialSnapshot(0, "x", state="complete", pictures=(picture,), finished=1.0))
    tracker.start()
    assert tracker.close(60), tracker.last_error
    assert tracker.last_error is None
    client = connect(uri)
    experiment = client.get_experiment_by_name("e").experiment_id
    (run,) = client.search_runs([experiment], "tags.`guidino.kind` = 'trial'")
    kept = client.download_artifacts(run.info.run_id, f"pictures/{picture.name}")
    assert Path(kept).read_bytes() == picture.read_bytes()
    assert len(list((home / "mlartifacts").rglob(picture.name))) == 1
    assert "1 experiment" in reach(uri) or "2 experiments" in reach(uri)


@pytest.mark.parametrize("name", [ODD, f"h{''.join(CHARACTERS)}x"])
def test_tracking_writes_and_reads_in_a_home_of_any_name(name: str, tmp_path: Path) -> None:
    home = tmp_path / "there" / name
    home.mkdir(parents=True)
    send(home)
    assert {place.name for place in home.iterdir()} == {"mlflow.db", "mlartifacts", "ledger.jsonl", "case_epoch0003.png"}
    assert [place.name for place in home.parent.iterdir()] == [name]  # nothing lands beside it


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\x7f"), min_size=1))
def test_a_database_url_names_its_file(name: str) -> None:
    file = Path("/") / name.replace("\0", "") / "mlflow.db"
    assert make_url(sqlite_uri(file)).database == str(file)
    assert sqlite_file(sqlite_uri(file)) == file


def test_a_plain_home_keeps_the_url_that_its_studies_know() -> None:
    assert sqlite_uri(Path("/home/me/guidino_tune/mlflow.db")) == "sqlite:////home/me/guidino_tune/mlflow.db"
    assert sqlite_file("postgresql://x/y") is None


def bash(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_printed_command_works_when_copied(tmp_path: Path) -> None:
    home = tmp_path / ODD
    paths.use_home(str(home))
    (home / "studies").mkdir(parents=True)
    assert bash(paths.next_command("track --all")).startswith("no studies yet")
    store = shlex.split(ui_command(tracking_uri(home / "mlflow.db")))[3]
    assert make_url(store).database == str(home / "mlflow.db")


@pytest.mark.parametrize("name", ["-x", *CHARACTERS])
def test_every_word_of_a_printed_command_is_one_word(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.use_home(name)
    monkeypatch.setattr(sys, "executable", f"/venv of {name}/bin/python")
    words = shlex.split(paths.next_command("track --all"))
    assert words[:5] == [f"/venv of {name}/bin/python", "-m", "guidino_tune", "track", "--all"]
    assert cli.parser("x", "about", "").parse_args(words[5:]).home == name


@pytest.mark.parametrize(("name", "told"), [("a\nb", "line break"), ("a\x7fb", "control character"), ("a\udcffb", "no UTF-8")])
def test_a_home_that_cannot_work_is_refused_at_once(name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert track(["--all", "--home", str(tmp_path / name)]) == 2
    shown = capsys.readouterr()
    assert (told in shown.err, shown.out) == (True, "")
    assert list(tmp_path.iterdir()) == []


def test_an_old_sqlalchemy_cannot_name_every_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.metadata, "version", lambda _: "2.0.44")
    for name, code in (("100%", 2), ("why?", 2), ("a b#1", 0)):
        assert track(["--all", "--home", str(tmp_path / name)]) == code
        assert (f"{name[-1]!r} in its name" in capsys.readouterr().err) == (code == 2)


def test_brackets_and_colons_of_a_name_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from guidino_tune.workflows.progress import make_console

    make_console().print(f"folder {tmp_path}/[/red]/[bold]/:smile:")
    assert f"folder {tmp_path}/[/red]/[bold]/:smile:" in capsys.readouterr().out


MOUNTS = r"""
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local ext4 rw 0 0
server:/my\040data /my\040data fuse.sshfs rw 0 0
tmpfs /over tmpfs rw 0 0
lustre@tcp:/l /over lustre rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/tmp/x", False),
        ("/home/me/guidino_tune", True),
        ("/home/local/x", False),
        ("/my data/x", True),
        ("/over/x", True),
        ("/homes", False),
    ],
)
def test_a_network_file_system_is_known_by_the_nearest_mount(path: str, network: bool, tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(MOUNTS.lstrip())
    assert paths.is_on_network(Path(path), tmp_path / "mounts") == network
    assert not paths.is_on_network(Path(path), tmp_path / "none")


def test_views_are_not_read_over_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.views() == paths.cache() / "views"
    monkeypatch.setattr(paths, "is_on_network", lambda path: True)
    asked = []
    monkeypatch.setattr(paths, "_own_folder", lambda folder: asked.append(folder) or tmp_path)
    assert paths.views() == tmp_path / "views"
    assert asked == [Path(f"/var/tmp/guidino_tune-{os.getuid()}")]


def test_a_folder_that_others_made_or_can_change_is_not_taken(tmp_path: Path) -> None:
    mine, shared, link = tmp_path / "mine", tmp_path / "shared", tmp_path / "link"
    assert paths._own_folder(mine) == mine == paths._own_folder(mine)
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    shared.mkdir()
    shared.chmod(0o777)
    link.symlink_to(mine)
    assert paths._own_folder(shared) is paths._own_folder(link) is paths._own_folder(tmp_path / "no" / "parent") is None
