"""Full disks, folders that cannot be written, damaged files and clocks that jump: an earlier state stays readable, and it goes on."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console
from test_running_executors import actor, config, demo, records  # noqa: F401
from test_study_driver import Run, of_tune, result
from test_workflows_recorder import Setup
from training_helpers import make_data, make_experiment, search_space, train, values

from guidino_tune.data.opening import SearchData
from guidino_tune.errors import UserError
from guidino_tune.running.tune_adapter import StudyScheduler, StudySearcher
from guidino_tune.search import main as search
from guidino_tune.study.store import StudyFolder, load_study, open_study
from guidino_tune.training.checkpoints import OPTIMIZER, STATE, WEIGHTS, read_checkpoint
from guidino_tune.training.failures import failure_kind
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.workflows.progress import Progress

TIMES = ("epoch_seconds", "images_per_second")


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes: a write that reaches it is cut short, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A file system on ``folder``; skips where mounting is not permitted."""
    folder.mkdir()
    if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode:
        pytest.skip("this user may not mount anything")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"))


# ------------------------------------------------------------------------------------------------------------ before anything is spent


def small_search(*options: str) -> int:
    return search(["demo", "--set", "guide.backbone=tiny", "--set", "guide.weights=random", *options])


def refused(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    assert small_search() == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    for part in (*parts, "\n  -> "):
        assert part in output.err
    assert "Traceback" not in output.err + output.out


def test_a_home_below_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "file" / "home"))
    refused(capsys, str(tmp_path / "file"), "a part of this path is a file")


def test_a_disk_that_can_only_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs") as disk:
        monkeypatch.setenv("GUIDINO_TUNE_HOME", str(disk / "home"))
        refused(capsys, f"{disk}: this disk can only be read", "GUIDINO_TUNE_HOME")


def test_a_folder_that_cannot_be_written_is_refused_and_its_study_stays_readable(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = StudyFolder(home / "studies" / "demo")
    study.path.mkdir(parents=True)
    if subprocess.run(["chattr", "+i", str(study.path)], capture_output=True).returncode:
        pytest.skip("this file system has no immutable folders")
    try:
        refused(capsys, f"{study.path}: access is not permitted")
        assert list(study.path.iterdir()) == []
    finally:
        subprocess.run(["chattr", "-i", str(study.path)], check=True)


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as disk:
        monkeypatch.setenv("GUIDINO_TUNE_HOME", str(disk / "home"))
        refused(capsys, f"{disk}: the disk is full", "make room there")
        assert list(disk.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- a disk that fills up


@pytest.mark.parametrize("more", [0, 1, 57, 200])
def test_a_journal_that_cannot_grow_keeps_whole_lines_only(tmp_path: Path, more: int) -> None:
    folder = StudyFolder(tmp_path / "study")
    study = open_study(search_space(first_trials=[]), folder)
    study.tell(study.ask(), 0.5)
    before = folder.journal.read_bytes()
    trial = study.ask()
    asked = folder.journal.read_bytes()
    with largest_file(len(asked) + more), pytest.raises(OSError, match="File too large") as raised:  # noqa: PT012
        for epoch in range(9):
            trial.report(0.1, epoch)
    assert raised.value.filename == str(folder.journal)
    text = folder.journal.read_bytes()
    assert text.startswith(before)
    assert [json.loads(line)["op_code"] for line in text.decode().splitlines()]
    assert text.endswith(b"\n")
    # There is room again: the same process goes on, and so does another one.
    known = dict(study.trials[1].intermediate_values)
    trial.report(0.7, 50)
    study.tell(trial, 0.7)
    for seen in (study, load_study(folder)):
        assert [t.state for t in seen.trials] == [TrialState.COMPLETE, TrialState.COMPLETE]
        assert seen.trials[1].intermediate_values == {**known, 50: 0.7}


def test_a_search_whose_study_cannot_be_written_ends_and_goes_on(tmp_path: Path) -> None:
    driver = Run(tmp_path / "study")
    searcher, scheduler = StudySearcher(driver.driver), StudyScheduler(driver.driver)

    class Trial:
        trial_id = "a"

    def report(epoch: int) -> str:
        return scheduler.on_trial_result(SimpleNamespace(get_trials=list), Trial, of_tune(epoch, 0.5))  # type: ignore[arg-type]

    assert searcher.suggest("a")["number"] == 0
    assert report(1) == TrialScheduler.CONTINUE
    with largest_file(driver.folder.journal.stat().st_size + 20):
        assert report(2) == TrialScheduler.STOP
        searcher.on_trial_complete("a")
    # Room that comes too late changes nothing: what is half done is left to the next run.
    assert searcher.suggest("b") == Searcher.FINISHED
    assert "File too large" in str(driver.driver.error)
    again = Run(tmp_path / "study")
    assert [t.state for t in again.study.trials] == [TrialState.RUNNING]
    asked = again.driver.ask("c")
    assert asked is not None
    assert (asked["number"], asked["reported"]) == (0, 1)


def test_a_checkpoint_that_finds_no_room_fails_the_trial_as_environment(tmp_path: Path, data: SearchData) -> None:
    experiment = make_experiment()
    run = train(experiment, data, tmp_path / "trial", stop_after=2)
    run.saved = (3,)
    folder = TrialFolder(tmp_path / "trial")
    size = (folder.checkpoints()[0] / OPTIMIZER).stat().st_size
    with largest_file(size // 2), pytest.raises(OSError, match="File too large") as raised:
        run.run_epoch()
    assert failure_kind(raised.value) == "environment"
    assert raised.value.filename.endswith(".safetensors")
    assert sorted(p.name for p in (folder.path / "checkpoints").iterdir()) == ["epoch-00001", "epoch-00002"]
    assert len(read_checkpoint(folder.checkpoints()[0]).history) == 2
    continued = train(experiment, data, tmp_path / "trial", reported=2)
    straight = train(experiment, data, tmp_path / "straight")
    assert values(continued) == values(straight)


def test_a_text_that_finds_no_room_leaves_the_old_one_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    write_text(file, "old")
    with largest_file(10), pytest.raises(OSError, match="File too large") as raised:
        write_text(file, "x" * 50)
    assert raised.value.filename == str(file)
    assert [p.name for p in tmp_path.iterdir()] == ["best.yaml"]
    assert file.read_text() == "old"


def test_a_history_line_is_written_whole_or_not_at_all(tmp_path: Path, data: SearchData) -> None:
    folder = TrialFolder(tmp_path)
    told = train(make_experiment(), data, tmp_path / "run", stop_after=3).history
    folder.write_history(told[:1])
    with largest_file(folder.history_file.stat().st_size + 30), pytest.raises(OSError, match="File too large"):
        folder.append_history(told[1])
    folder.append_history(told[1])
    folder.append_history(told[2])
    assert folder.history() == told


# ------------------------------------------------------------------------------------------------------------------- damaged files


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def overwrite(file: Path) -> None:
    """The same length, as a file system gives a file back whose last blocks never reached the disk."""
    content = file.read_bytes()
    file.write_bytes(content[:-40] + bytes(40))


@pytest.mark.parametrize("damage", [shorten, empty, overwrite, Path.unlink])
@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE])
def test_with_a_damaged_checkpoint_the_one_before_it_is_used(
    name: str, damage: Callable[[Path], None], tmp_path: Path, demo: Path, actor: Any  # noqa: F811
) -> None:  # fmt: skip
    asked = config(tmp_path, demo, guide=None)
    first = actor(asked)
    told = records([first.step() for _ in range(2)])
    first.cleanup()
    folder = TrialFolder(Path(asked["folder"]))
    newest, older = folder.checkpoints()
    # The best has the same files under a second name; a damaged disk does not ask for names.
    damage(newest / name)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(newest)
    trial = actor({**asked, "reported": 2})
    steps = [trial.step()]
    assert [r.epoch for r in folder.history()] == [1, 2]
    steps.append(trial.step())
    trial.cleanup()
    assert [r.epoch for r in records(steps)] == [2, 3]
    assert [r.epoch for r in folder.history()] == [1, 2, 3]
    assert older.name == "epoch-00001"
    assert [p.name for p in folder.checkpoints()] == ["epoch-00003", "epoch-00002"]
    for checkpoint in folder.checkpoints():
        read_checkpoint(checkpoint)
    same = {k: v for k, v in told[1].metrics.items() if k not in TIMES}
    assert {k: v for k, v in folder.history()[1].metrics.items() if k not in TIMES} == same


def test_without_a_whole_checkpoint_a_trial_starts_again(tmp_path: Path, data: SearchData) -> None:
    experiment = make_experiment()
    train(experiment, data, tmp_path / "trial", stop_after=3)
    for checkpoint in TrialFolder(tmp_path / "trial").checkpoints():
        shorten(checkpoint / WEIGHTS)
    again = train(experiment, data, tmp_path / "trial", reported=3)
    assert again.reporter.epochs == [1, 2, 3, 4]  # type: ignore[attr-defined]
    assert values(again) == values(train(experiment, data, tmp_path / "straight"))


@pytest.mark.parametrize("tail", [b'{"epoch": 3, "metr', b"\x00" * 40, b"\xff\xfe\x80", b"[]\n", b"null\n"])
def test_a_torn_line_of_a_history_is_left_out(tail: bytes, tmp_path: Path, data: SearchData) -> None:
    folder = TrialFolder(tmp_path)
    told = train(make_experiment(), data, tmp_path / "run", stop_after=2).history
    folder.write_history(told)
    with folder.history_file.open("ab") as file:
        file.write(tail)
    assert folder.history() == told


def test_a_damaged_line_amid_the_journal_is_named(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    study = open_study(search_space(first_trials=[]), folder)
    for _ in range(3):
        study.tell(study.ask(), 0.5)
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    number = len(lines) - 2
    half = lines[number - 1][:20] + lines[number]  # as two writers leave it, of whom the first was cut short
    folder.journal.write_bytes(b"".join([*lines[: number - 1], half, *lines[number + 1 :]]))
    for opened in (lambda: load_study(folder), lambda: open_study(search_space(first_trials=[]), folder)):
        with pytest.raises(UserError, match=f"damaged in line {number} "):
            opened()
    folder.journal.write_bytes(b"".join(lines[: number - 1]))  # what the message says
    again = open_study(search_space(first_trials=[]), folder)
    assert again.trials[0] == study.trials[0]
    again.tell(again.ask(), 0.5)


def test_a_lock_that_a_dead_process_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    study = open_study(search_space(first_trials=[]), folder)
    folder.journal.with_name(folder.journal.name + ".lock").symlink_to(folder.journal)
    started = time.monotonic()
    study.tell(study.ask(), 0.5)
    assert time.monotonic() - started < 5


def test_two_processes_write_whole_lines_into_one_journal(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    open_study(search_space(first_trials=[]), folder)
    code = (
        "import sys; from pathlib import Path; from guidino_tune.study.store import StudyFolder, load_study\n"
        "study = load_study(StudyFolder(Path(sys.argv[1])))\n"
        "for _ in range(40): study.tell(study.ask(), 0.5)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(folder.path)]) for _ in range(2)]
    assert [w.wait(120) for w in writers] == [0, 0]
    trials = load_study(folder).trials
    assert [t.number for t in trials] == list(range(80))
    assert {t.state for t in trials} == {TrialState.COMPLETE}


# ----------------------------------------------------------------------------------------------------------------- a clock that jumps


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_jump_of_the_clock_neither_ends_nor_extends_a_search(hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    left, over = (Run(tmp_path / name, deadline=time.monotonic() + s) for name, s in (("left", 600.0), ("over", -1.0)))
    progress = Progress(left.study, left.space, Console(quiet=True))
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    assert (left.driver.expired, over.driver.expired) == (False, True)
    assert left.driver.ask("a") is not None
    assert left.driver.report("a", result(1, 0.5))
    assert "0m0" in progress._summary()


def test_epochs_are_in_order_whatever_the_clock_says(tmp_path: Path, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5000.0, 1400.0, 9000.0, 2.0])
    monkeypatch.setattr("guidino_tune.training.loop.time.time", lambda: next(clock))
    experiment = make_experiment()
    train(experiment, data, tmp_path, stop_after=2)
    run = train(experiment, data, tmp_path, reported=2)
    assert [r.epoch for r in run.history] == [1, 2, 3, 4]
    assert all(0 < r.metrics["epoch_seconds"] < 60 and math.isfinite(r.metrics["images_per_second"]) for r in run.history)


def test_a_run_in_mlflow_never_ends_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup()
    trial = setup.trial([0.5], None)
    start = setup.study.trials[0].datetime_start
    assert start is not None

    class Earlier(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return start - datetime.timedelta(hours=1)

    monkeypatch.setattr("optuna.storages.journal._storage.datetime", Earlier)
    setup.study.tell(trial, 0.5)
    assert setup.study.trials[0].datetime_complete == start - datetime.timedelta(hours=1)
    setup.recorder.sync()
    snapshot = setup.tracker.trials[-1]
    assert snapshot.finished == snapshot.started == start.timestamp()


def test_a_view_whose_draft_looks_old_is_made_nevertheless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes forward by an hour lets another process remove what is just being written."""
    import numpy as np

    from guidino_tune.data import store

    ours, real = store.ChunkStore(tmp_path, 10**7), store._write

    def write(path: Path, arrays: Any) -> None:
        real(path, arrays)
        with monkeypatch.context() as late:
            late.setattr(time, "time", lambda now=time.time: now() + 3600)
            ours._room._groups()
        assert not path.exists()

    monkeypatch.setattr(store, "_write", write)
    made = ours.get("views-ab/0/0", lambda: {"x": np.arange(6.0).reshape(3, 2)})
    monkeypatch.setattr(store, "_write", real)
    again = ours.get("views-ab/0/0", lambda: {"x": np.arange(6.0).reshape(3, 2)})
    assert made is not None
    assert again is not None
    assert (made["x"] == again["x"]).all()
    assert ours.made == 2
    assert ours.names("views-ab/0") == {"0"}
