"""The commands ``list`` and ``show``: what they tell of a home and of a database without folders, in any width, and that they only read."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_server import Server, needs_postgres, started
from test_study_driver import result
from training_helpers import search_space

from guidino_tune import list as listing
from guidino_tune import paths
from guidino_tune import show as showing
from guidino_tune.space.space import Space
from guidino_tune.study.driver import Driver
from guidino_tune.study.lease import LEASE
from guidino_tune.study.reading import Reader
from guidino_tune.study.store import StudyFolder, open_study

Shown = Callable[..., tuple[int, str, str]]


def space_of(name: str, **study: Any) -> Space:
    return search_space(first_trials=[], study={"trials": 6, "pruner": "none", "sampler": "random", "name": name, **study})


def make(name: str, url: str | None = None, folder: Path | None = None, trials: int = 6, **study: Any) -> Driver:
    """A study whose second trial diverged on a node, and whose last one was left running."""
    space, place = space_of(name, **study), StudyFolder(folder or paths.studies() / name)
    driver = Driver(open_study(space, place, url), space, place, lambda *_: None, {"workers": 1})
    driver.study.set_user_attr("data", {"num_train": 8, "num_validation": 2, "constant_mask_dice": 0.25})
    for number in range(trials):
        asked = driver.ask(str(number))
        assert asked is not None
        if number == 1:
            driver.running["1"].set_user_attr("node", "gpu-7 0123456789abcdef")
            driver.fail("1", "diverged", "a loss is not finite | \x1b[31mred")
            driver.tell("1", crashed=False)
            continue
        epochs = asked["experiment"]["training"]["epochs"]
        for epoch in range(1, epochs + (number < trials - 1)):
            driver.report(str(number), result(epoch, 0.1 * number + 0.01 * epoch))
        if number < trials - 1:
            driver.tell(str(number), crashed=False)
    return driver


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(command: Any, *argv: str) -> tuple[int, str, str]:
        code = command.main(list(argv))
        return code, *capsys.readouterr()

    return call


def files(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_home_is_listed_newest_first_and_left_as_it_is(home: Path, shown: Shown) -> None:
    make("first")
    time.sleep(1.1)
    done = make("second", trials=3)
    done.study.set_user_attr("exhausted", True)
    before = files(home)
    code, out, err = shown(listing)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    heading, second, first = (line.split() for line in out.splitlines())
    assert heading[:7] == ["study", "data", "state", "complete", "stopped", "failed", "running"]
    assert second[:8] == ["second", "demo", "ended", "1", "0", "1", "1", "0.0400"]
    assert first[:8] == ["first", "demo", "stopped", "4", "0", "1", "1", "0.4400"]
    assert files(home) == before


def test_who_drives_a_study_of_this_machine_is_told(shown: Shown, home: Path) -> None:
    make("held")
    holding = "import sys\nfrom pathlib import Path\nfrom guidino_tune.study.store import StudyFolder\n"
    holding += "with StudyFolder(Path(sys.argv[1])).lock():\n    print(1, flush=True)\n    sys.stdin.read()\n"
    begun = datetime.now()
    other = subprocess.Popen([sys.executable, "-c", holding, home / "studies" / "held"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        held = {f"{at:%Y-%m-%d %H:%M}" for at in (begun, datetime.now())}
        os.utime(home / "studies" / "held" / "driver.lock", (time.time() + 7200,) * 2)  # its last sign of life, two hours later
        out = shown(listing)[1]
        assert out.splitlines()[1].split()[2] == "running"
        assert f"held: is driven by process {other.pid} on " in out
        (told,) = json.loads(shown(listing, "--format", "json")[1])
        assert told["driver"].startswith(f"process {other.pid} on ")
        assert told["since"] in held
    finally:
        other.communicate()
    assert shown(listing)[1].splitlines()[1].split()[2] == "stopped"


def test_a_study_tells_everything(shown: Shown, home: Path) -> None:
    make("whole")
    code, out, _ = shown(showing, "whole")
    assert code == 0
    assert "\x1b" not in out  # not even the one that somebody's message brought along
    assert "whole: stopped, 1 trial is left" in out
    assert "demo, 8 training and 2 validation cases, 32 pixels" in out
    assert "objective: val Dice up" in out
    assert "1 diverged, first trial 1 on gpu-7 (01234567): a loss is not finite" in out
    table = [line for line in out.splitlines() if line.split()[:2] == ["1", "4"]]
    assert len(table) == 1
    assert "0.4400" in table[0]
    assert f"search {home}/studies/whole/study.yaml" in out
    assert "do not fit" not in out  # a pipe has no width
    found = json.loads(shown(showing, "whole", "--format", "json")[1])
    assert [t["trial"] for t in found["trials"]] == [4, 3, 2, 0, 1, 5]
    assert [t["state"] for t in found["trials"]][-2:] == ["diverged", "interrupted"]
    assert found["trials"][0]["training.lr"] > 0
    assert found["failures"][0]["node"] == "gpu-7 (01234567)"
    rows = list(csv.DictReader(io.StringIO(shown(showing, "whole", "--format", "csv")[1])))
    assert [float(r["val_dice"]) for r in rows if r["rank"]] == sorted((t["val_dice"] for t in found["trials"] if t["rank"]), reverse=True)
    markdown = shown(showing, "whole", "--format", "markdown")[1]
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 6
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_the_command_that_it_names_goes_on_with_the_study(shown: Shown) -> None:
    from guidino_tune.api import load_space
    from guidino_tune.study.store import check_same_search

    folder = make("named").folder
    words = next(line for line in shown(showing, "named")[1].splitlines() if line.startswith("go on")).split()
    assert check_same_search(load_space(words[-1]), folder) == []


def test_mistakes_leave_nothing_behind(shown: Shown, tmp_path: Path, home: Path) -> None:
    for command, argv in ((showing, ["kvasr"]), (listing, ["--storage", f"sqlite:///{tmp_path}/typo.db"])):
        code, out, err = shown(command, *argv)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
    assert shown(listing) == (0, f"no studies in {home}/studies; a search makes one\n", "")
    assert not home.exists()
    assert not list(tmp_path.iterdir())
    make("kvasir")
    assert "did you mean 'kvasir'?" in shown(showing, "kvasr")[2]
    optuna.create_study(storage=f"sqlite:///{tmp_path}/team.db", study_name="of another program")
    (tmp_path / "empty.db").touch()
    before = files(tmp_path)
    storage = ["--storage", f"sqlite:///{tmp_path}/"]
    assert "did you mean 'team.db'?" in shown(listing, storage[0], storage[1] + "tem.db")[2]
    assert "has no studies in it" in shown(listing, storage[0], storage[1] + "empty.db")[2]
    assert shown(listing, storage[0], storage[1] + "team.db")[0] == 0
    assert "there are no studies" in shown(showing, "kvasir", storage[0], storage[1] + "team.db")[2]
    assert "of another program" in shown(showing, "of another program", storage[0], storage[1] + "team.db")[2]
    assert files(tmp_path) == before


def test_a_damaged_study_does_not_hide_the_others(shown: Shown, home: Path) -> None:
    make("sound")
    broken = make("broken", trials=2).folder
    lines = broken.journal.read_bytes().splitlines(keepends=True)
    broken.journal.write_bytes(b"".join([*lines[:3], b"no entry\n", *lines[3:]]))
    code, out, _ = shown(listing)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [["sound", "demo", "stopped"], ["broken", "unreadable"]]
    assert "damaged in line 4" in out


def test_studies_that_cannot_be_read_at_all_do_not_hide_the_others(shown: Shown) -> None:
    make("sound")
    for name, odd in {"listed": "study: [a]\n", "nameless": "study: {trials: 3}\n", "empty": "space: {}\n"}.items():
        make(name, trials=1).folder.definition.write_text(odd)
    journal = make("unread", trials=1).folder.journal
    journal.unlink()
    journal.mkdir()
    code, out, _ = shown(listing)
    assert code == 0
    assert sorted(line.split()[:2] for line in out.splitlines()[2:6]) == [
        [n, "unreadable"] for n in ("empty", "listed", "nameless", "unread")
    ]
    assert out.count("study.name is missing, so its trials cannot be found") == 3
    assert "Is a directory" in out


def test_a_journal_is_read_while_it_is_written(shown: Shown) -> None:
    """A driver on a thread that never rests; half a line at the end is what a reader may see at any moment."""
    driver = make("busy", trials=3, pruner="none")
    going = threading.Event()

    def write() -> None:
        while not going.is_set():
            driver.study.set_user_attr("noise", "x" * 5000)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(15):
            assert shown(showing, "busy", "--format", "csv")[0] == 0
    finally:
        going.set()
        thread.join()
    with driver.folder.journal.open("ab") as file:
        file.write(b'{"op_code": 2, "worker_id": "half')
    before = files(driver.folder.path)
    assert len(shown(showing, "busy", "--format", "csv")[1].splitlines()) == 4
    assert files(driver.folder.path) == before


@pytest.mark.parametrize("command", ["list", "show"])
def test_nothing_heavy_is_imported(command: str, home: Path) -> None:
    make("light", trials=2)
    argv = ["light"] if command == "show" else []
    code = f"import sys\nfrom guidino_tune import {command} as c\nassert c.main({argv}) == 0\n"
    code += "print(sorted({'torch', 'ray', 'mlflow', 'pandas', 'pyarrow', 'matplotlib'} & {n.partition('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a study with trials of many digits, and with one of the longest name."""
    home = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDINO_TUNE_HOME", str(home))
        make("wide")
        make("a" + "long-" * 19 + "name", trials=3)
    return home


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(20, 240))
def test_no_width_cuts_a_trial_an_epoch_or_a_dice(width: int, wide: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(wide))
    monkeypatch.setenv("COLUMNS", str(width))
    out = shown(showing, "wide")[1]
    table = out[out.index("rank") :].splitlines()
    assert "…" not in out
    found = [line.split() for line in table if line.split()[:2] in (["1", "4"], ["2", "3"], ["3", "2"], ["4", "0"])]
    assert len(found) == 4
    for row, dice in zip(found, ("0.4400", "0.3400", "0.2400", "0.0400"), strict=True):
        assert row[row.index(dice) - 1] == "4"  # the epochs stand before it
    searched = list(search_space().parameters)
    cut = next((line for line in table if "not fit" in line), "")
    hidden = cut.partition("(")[2].partition(")")[0].split(", ") if cut else []
    heading = table[0]
    assert heading.split()[:2] == ["rank", "trial"]
    if cut:
        assert int(cut.split()[0]) == len(hidden)
        assert not [name for name in hidden if f" {name} " in heading]
    else:
        assert len(heading.split()) >= len(searched)
    if width >= 72:
        assert len(heading) <= width
    out = shown(listing)[1]
    assert "…" not in out
    for row in (["4", "0", "1", "1", "0.4400"], ["1", "0", "1", "1", "0.0400"]):
        assert any(" ".join(row) in " ".join(line.split()) for line in out.splitlines())
    if width >= 80:
        assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    folded = "".join(line.split()[0] for line in out.splitlines()[1:] if line[:1] not in ("", " "))
    assert "wide" in folded
    assert "a" + "long-" * 19 + "name" in folded


# ---------------------------------------------------------------------------------------------------------------- a database


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started() as server:
        yield server


@needs_postgres
def test_a_database_is_read_from_a_laptop_without_any_folder(
    server: Server, tmp_path: Path, home: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a user who may do nothing but read, as the study runs elsewhere."""
    cluster = tmp_path / "shared" / "guidino_tune" / "studies" / "kvasir"
    server.ask("CREATE DATABASE team")
    url = server.url_of("team")
    driver = make("kvasir", url, cluster)
    server.ask("CREATE ROLE reader LOGIN")
    server.ask("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", "team")
    optuna.create_study(storage=url, study_name="of another program")
    with driver.folder.lock():
        driver.folder.held.lease(driver.study)  # type: ignore[union-attr]
        driver.study.set_user_attr(LEASE, driver.study.user_attrs[LEASE] | {"place": "gpu-head:/shared", "who": "process 7 on gpu-head"})
        shutil.rmtree(cluster)
        reading = ["--storage", server.url_of("team", "reader")]
        code, out, err = shown(listing, *reading)
        assert (code, err) == (0, "")
        assert out.splitlines()[1].split()[:8] == ["kvasir", "demo", "running", "4", "0", "1", "1", "0.4400"]
        assert "kvasir: is driven by process 7 on gpu-head, since 20" in out
        assert "of another program" not in out
        driver.study.set_user_attr(LEASE, driver.study.user_attrs[LEASE] | {"renewed": time.time() - 3600})
        out = shown(listing, *reading)[1]
        assert out.splitlines()[1].split()[2] == "stopped"
        assert "was driven by process 7 on gpu-head" in out
        assert "silent for 60 min" in out
    monkeypatch.setenv("GUIDINO_TUNE_STORAGE", server.url_of("team", "reader"))
    begun = time.monotonic()
    code, out, _ = shown(showing, "kvasir")
    assert time.monotonic() - begun < 5
    assert code == 0
    assert "1 diverged, first trial 1 on gpu-7 (01234567)" in out
    assert f"guidino-tune search {cluster}/study.yaml" in out
    found = json.loads(shown(showing, "kvasir", "--format", "json")[1])
    assert [t["trial"] for t in found["trials"]] == [4, 3, 2, 0, 1, 5]
    assert found["commands_on"] == found["links"]["folder"].partition(":")[0]
    assert "did you mean 'kvasir'?" in shown(showing, "kvasr")[2]
    assert not home.exists()


def test_a_study_of_the_same_name_in_the_home_is_another_one(shown: Shown, tmp_path: Path, home: Path) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    make("kvasir", url, tmp_path / "shared" / "kvasir", trials=3)
    with make("kvasir", trials=2).folder.lock():
        assert shown(listing)[1].splitlines()[1].split()[2] == "running"
        assert shown(listing, "--storage", url)[1].splitlines()[1].split()[2] == "stopped"
        out = shown(showing, "kvasir", "--storage", url)[1]
    assert "folder: the machine that began it:$GUIDINO_TUNE_HOME/studies/kvasir" in out
    assert str(home) not in out


@needs_postgres
def test_a_typo_in_a_database_makes_nothing(server: Server, shown: Shown, home: Path) -> None:
    server.ask("CREATE DATABASE bare")
    before = server.ask("SELECT count(*) FROM pg_database"), server.ask("SELECT count(*) FROM pg_tables", "bare")
    assert "does not exist" in shown(listing, "--storage", server.url_of("tem"))[2]
    assert "has no studies in it" in shown(showing, "kvasir", "--storage", server.url_of("bare"))[2]
    assert (server.ask("SELECT count(*) FROM pg_database"), server.ask("SELECT count(*) FROM pg_tables", "bare")) == before
    assert not home.exists()


@needs_postgres
def test_postgres_itself_keeps_the_reader_from_writing(server: Server) -> None:
    server.ask("CREATE DATABASE kept")
    optuna.create_study(storage=server.url_of("kept"), study_name="a")
    reader = Reader(server.url_of("kept"))
    with pytest.raises(optuna.exceptions.StorageInternalError):
        reader._storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "b")  # type: ignore[union-attr]


@needs_postgres
def test_the_roles_that_the_page_for_teams_makes(server: Server, shown: Shown, home: Path) -> None:
    """The owner searches, the reader only looks, and other teams do not get in."""
    page = (Path(__file__).parents[2] / "docs" / "team.md").read_text(encoding="utf-8")
    statements = page.partition("```sql\n")[2].partition("```")[0]
    command = [str(server.binaries / "psql"), "-v", "ON_ERROR_STOP=1", server.url]
    subprocess.run(command, input=statements, text=True, check=True, capture_output=True, timeout=60)
    server.ask("CREATE ROLE lesions LOGIN")
    make("anna-kvasir", server.url_of("polyps_studies", "polyps"), trials=2)
    code, out, _ = shown(listing, "--storage", server.url_of("polyps_studies", "polyps_reader"))
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["anna-kvasir", "demo", "stopped"]
    for database, user in (("polyps_studies", "lesions"), ("polyps_mlflow", "polyps_reader")):
        assert "permission denied" in shown(listing, "--storage", server.url_of(database, user))[2]
    for statement in ("UPDATE trials SET number = 7", "CREATE TABLE mine (a int)", "CREATE TEMPORARY TABLE mine (a int)"):
        refused = subprocess.run([*command[:-1], "-c", statement, server.url_of("polyps_studies", "polyps_reader")], capture_output=True)
        assert b"permission denied" in refused.stderr, statement
    assert server.ask("SELECT string_agg(number::text, ' ' ORDER BY number) FROM trials", "polyps_studies") == "0 1"
