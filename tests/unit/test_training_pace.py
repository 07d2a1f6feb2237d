"""Checkpoints on a slow file system: a bounded share of the time, and still the same training after a stop or a kill."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_training_loop import same_optimizer, same_state
from training_helpers import Listener, make_data, make_experiment, values

from guidino_tune.data.opening import SearchData
from guidino_tune.training import pace
from guidino_tune.training.checkpoints import read_checkpoint
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.pace import Pace

SLOW, EPOCHS = 0.1, 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    return make_data(tmp_path_factory.mktemp("data"))


class SlowFolder(Listener):
    """Every write takes as long as a large checkpoint on a busy file server."""

    seconds = 0.0

    def save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        begun = time.monotonic()
        time.sleep(SLOW)
        super().save(epoch, write, best=best)
        self.seconds += time.monotonic() - begun


def test_a_slow_file_system_gets_few_checkpoints_and_the_training_is_the_same(
    data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(epochs=EPOCHS)
    straight = TrainingRun(experiment, data, Listener(tmp_path / "quick"), validated=(2, 4, 8, 16))
    straight.run()
    assert {2, EPOCHS} <= set(straight.reporter.saved) <= {2, 4, 8, 16, EPOCHS}  # on a quick disk at validations, and not while it writes
    monkeypatch.setattr(pace, "MOMENT", 0.01)

    run = TrainingRun(experiment, data, SlowFolder(tmp_path / "slow"), validated=(2, 4, 8, 16), saved=(2, 8))
    while run.epoch < 11:
        run.run_epoch()
    better = {e for e in (2, 4, 8) if run.history[e - 1].metrics["val_dice"] > max([0, *_dice(run, e)])}
    assert {2, 8} | better <= set(run.reporter.saved) <= {2, 4, 8}
    assert run.reporter.epochs == list(range(1, 12))
    # Killed: what was told and not saved is trained again, and no more than that.
    again = TrainingRun(experiment, data, SlowFolder(tmp_path / "slow"), validated=(2, 4, 8, 16), saved=(2, 8), reported=11)
    assert again.epoch == run.reporter.saved[-1] < 11
    while again.epoch < 13:
        again.run_epoch()
    # Stopped: nothing is trained again.
    again.close()
    assert again.reporter.saved[-1] == 13
    last = TrainingRun(experiment, data, SlowFolder(tmp_path / "slow"), validated=(2, 4, 8, 16), saved=(2, 8), reported=13)
    assert last.epoch == 13
    last.run()
    assert last.reporter.saved[-1] == EPOCHS
    last.close()
    assert values(last) == values(straight)
    assert same_state(last.model.trained_state(), straight.model.trained_state())
    assert same_optimizer(last.optimizer, straight.optimizer)
    for one in (straight, last):
        assert (one.reporter.best / "weights.safetensors").exists()
    assert len({(r.best / "weights.safetensors").read_bytes() for r in (straight.reporter, last.reporter)}) == 1


def _dice(run: TrainingRun, before: int) -> list[float]:
    return [r.metrics["val_dice"] for r in run.history[: before - 1] if "val_dice" in r.metrics]


def test_near_the_end_of_a_time_budget_every_epoch_is_saved(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a worker group ends with the first epoch that it tells, and with it what was not saved."""
    monkeypatch.setattr(pace, "MOMENT", 0.0)
    monkeypatch.setattr(pace, "SHARE", 0.0)
    experiment = make_experiment(epochs=6)
    for seconds, saved in ((3600, [1]), (pace.SOON / 2, [1, 2, 3])):
        run = TrainingRun(experiment, data, SlowFolder(tmp_path / f"{seconds}"), validated=(1,), time_left=seconds)
        for _ in range(3):
            run.run_epoch()
            if len(saved) == 3:
                assert run.reporter.saved[-1] == run.epoch
        run._saver.finish()
        assert run.reporter.saved == saved


def test_an_epoch_that_was_broken_off_is_not_saved(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun(make_experiment(), data, SlowFolder(tmp_path), saved=(1,))
    run.run_epoch()
    run._saved = 0  # as if the first one had not been worth its time
    monkeypatch.setattr(run, "_check_weights", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run_epoch()
    run.close()
    assert run.reporter.saved == [1]


class FullFolder(Listener):
    """A disk that is full whenever the test says so."""

    full = False

    def save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().save(epoch, write, best=best)


def test_a_best_epoch_whose_save_failed_is_trained_again_with_its_best_weights(data: SearchData, tmp_path: Path) -> None:
    """There is room again when the run is closed; a checkpoint made then would know the epoch, and its best weights would be lost."""
    experiment = make_experiment(epochs=3)
    straight = TrainingRun(experiment, data, Listener(tmp_path / "straight"))
    straight.run_epoch()
    run = TrainingRun(experiment, data, FullFolder(tmp_path / "full"))
    run.reporter.full = True
    with pytest.raises(OSError, match="No space left"):
        run.run()  # the first epoch is the best so far; a later one finds out that it could not be written
    run.reporter.full = False
    run.close()
    again = TrainingRun(experiment, data, FullFolder(tmp_path / "full"), saved=(1,))
    assert again.epoch == 0
    again.run_epoch()
    assert values(again) == values(straight)
    straight.close()
    best = [(folder.best / "weights.safetensors").read_bytes() for folder in (again.reporter, straight.reporter)]
    assert best[0] == best[1]


def test_what_cannot_be_saved_at_the_end_is_no_error_of_the_next_trial(
    data: SearchData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = TrainingRun(make_experiment(), data, FullFolder(tmp_path), saved=(1,))
    run.run_epoch()
    run._saved = 0  # as if it had not been worth its time
    run.reporter.full = True
    run.close()
    assert "epoch 1 is not saved: [Errno 28] No space left" in caplog.text


class HeldFolder(Listener):
    """A disk that writes when the test lets it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.free = threading.Event()

    def save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        assert self.free.wait(60)
        super().save(epoch, write, best=best)


def test_training_goes_on_while_a_checkpoint_of_its_state_is_written(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(epochs=4), data, HeldFolder(tmp_path), validated=(1, 4))
    run.run_epoch()
    weights = {name: value.clone() for name, value in run.model.trained_state().items()}
    run.run_epoch()
    assert run.reporter.epochs == [1, 2]
    assert run.reporter.checkpoints() == []
    run.reporter.free.set()
    run._saver.finish()
    (folder,) = run.reporter.checkpoints()
    saved = read_checkpoint(folder)
    assert (folder.name, len(saved.history)) == ("epoch-00001", 1)
    assert same_state(saved.weights, weights)
    assert not same_state(saved.weights, dict(run.model.trained_state()))
    run.close()


def test_an_epoch_after_which_the_trial_may_end_is_told_when_it_is_written(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(epochs=4), data, HeldFolder(tmp_path), saved=(1,))
    threading.Timer(0.5, lambda: (run.reporter.told and run.reporter.told.clear(), run.reporter.free.set())).start()
    run.run_epoch()
    assert run.reporter.epochs == [1]  # told before the disk was free, it would have been forgotten
    assert run.reporter.saved == [1]


def test_the_end_of_a_run_waits_for_its_checkpoint(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(epochs=4), data, SlowFolder(tmp_path))
    run.run_epoch()
    run.close()
    assert run.reporter.saved == [1]


def test_between_validations_an_epoch_is_saved_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    measured, saved = Pace(), []
    for epoch in range(1, 11):
        now += 25
        if measured.allows(validated=epoch == 5):
            with measured.measured():
                now += 1
            saved.append(epoch)
    assert saved == [3, 5, 8]


def test_the_share_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: an epoch takes 5 ms, and a checkpoint 50 ms."""
    now = 0.0
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(pace, "MOMENT", 0.01)
    measured, checkpoints = Pace(), 0
    while now < 20:
        if measured.allows(validated=True):
            with measured.measured():
                now += 0.05
            checkpoints += 1
        now += 0.005
    assert 0.09 < 0.05 * checkpoints / now < 0.105
