"""A study in a database that two machines reach: one driver at a time, whatever becomes of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from study_helpers import dice
from training_helpers import search_space

from guidino_tune.errors import UserError
from guidino_tune.study import lease
from guidino_tune.study.driver import Driver
from guidino_tune.study.mirror import MirroredStorage
from guidino_tune.study.store import StoredStudy, StudyFolder, load_study, open_study

SPACE = search_space(first_trials=[])

DRIVER = """
import sys
from pathlib import Path
from guidino_tune.config.parsing import read_yaml
from guidino_tune.space.space import read_space
from guidino_tune.study import lease
from guidino_tune.study.store import StudyFolder, open_study
lease.BEAT, lease.STALE, lease.SETTLE = 0.2, 2.0, 0.05
folder = StudyFolder(Path(sys.argv[1]))
with folder.lock():
    open_study(read_space(read_yaml(Path(sys.argv[3])), source="space"), folder, sys.argv[2])
    print("held", flush=True)
    sys.stdin.read()
"""

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT": 0.2, "STALE": 2.0, "SETTLE": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/team.db"


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Start]:
    """Starts a driver in another process, as on a machine with another folder; gives it when it has the study."""
    import yaml

    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE.to_dict()))
    started: list[subprocess.Popen[str]] = []

    def run(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(tmp_path / name), url, str(tmp_path / "space.yaml")]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def take(folder: Path, url: str) -> float:
    """Opens the study as a driver does, and gives it back; the seconds until it had it."""
    mine, begun = StudyFolder(folder), time.monotonic()
    with mine.lock():
        open_study(SPACE, mine, url)
        return time.monotonic() - begun


def test_a_second_driver_is_refused_until_the_first_gives_the_study_back(tmp_path: Path, url: str, start: Start) -> None:
    first = start("elsewhere")
    with pytest.raises(UserError, match=rf"another search works on this study \(process {first.pid} on .*, since 20.* UTC\)") as told:
        take(tmp_path / "here", url)
    assert told.value.todo.endswith("of one that died the study is free after 2 seconds")
    mine = StudyFolder(tmp_path / "here")
    assert not mine.definition.exists()
    theirs = StudyFolder(tmp_path / "elsewhere")
    seen = StoredStudy(mine, load_study(theirs, url), SPACE)
    assert f"process {first.pid}" in seen.holder
    first.communicate("")
    assert seen.holder == ""
    assert take(tmp_path / "here", url) < lease.STALE


def test_a_driver_that_was_killed_elsewhere_is_waited_for_and_one_of_this_folder_is_not(tmp_path: Path, url: str, start: Start) -> None:
    for name, waits in (("elsewhere", True), ("here", False)):
        process = start(name)
        process.kill()
        process.wait()
        assert (take(tmp_path / "here", url) >= lease.STALE) is waits


def test_a_driver_whose_study_was_taken_over_says_so_and_touches_it_no_more(tmp_path: Path, url: str) -> None:
    mine, theirs = StudyFolder(tmp_path / "here"), StudyFolder(tmp_path / "elsewhere")
    with mine.lock() as held:
        driver = Driver(open_study(SPACE, mine, url), SPACE, mine, lambda *_: None, {"workers": 1})
        assert driver.stored(lambda: driver.ask("t"), None)
        # As after this machine slept: no renewal is seen for so long.
        study = load_study(mine, url)
        deadline = time.monotonic() + 20
        while not held.taken and time.monotonic() < deadline:
            # A renewal that was under way may overwrite it once.
            study.set_user_attr(lease.LEASE, {"who": "process 7 on moon", "since": "noon", "token": "theirs", "place": "moon:/x"})
            time.sleep(0.05)
        assert driver.stored(lambda: driver.report("t", dice(1, 0.5)), False) is False
        assert "another driver took this study over (process 7 on moon, since noon)" in str(driver.error)
        assert study.trials[0].state == TrialState.RUNNING
        assert not study.trials[0].intermediate_values
    assert lease.read_lease(study)["token"] == "theirs"
    assert theirs.held is None


def test_a_lease_is_given_back_when_its_driver_ends_at_its_start(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = StudyFolder(tmp_path / "here")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with mine.lock(), monkeypatch.context() as patched:
        patched.setattr(MirroredStorage, "begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_study(SPACE, mine, url)
    assert take(tmp_path / "elsewhere", url) < lease.STALE


@pytest.mark.parametrize("failed", [False, True])
def test_a_trial_that_another_driver_closed_is_no_traceback(failed: bool, tmp_path: Path, url: str) -> None:
    folder = StudyFolder(tmp_path / "here")
    driver = Driver(open_study(SPACE, folder, url), SPACE, folder, lambda *_: None, {"workers": 1})
    driver.ask("t")
    load_study(folder, url).tell(0, 0.5)
    if failed:
        driver.fail("t", "bug", "oh")
    driver.stored(lambda: driver.tell("t", crashed=False), None)
    assert isinstance(driver.error, UserError)
    assert "it closed a trial that runs here" in driver.error.what


def test_a_journal_has_no_lease_and_costs_no_time(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    with folder.lock():
        study = open_study(SPACE, folder)
        assert lease.LEASE not in study.user_attrs
