"""Checkpoints on a slow file system: a bounded share of the time, and still the same training after a stop or a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_training_loop import same_optimizer, same_state
from training_helpers import Listener, make_data, make_experiment, values

from guidino_tune.data.opening import SearchData
from guidino_tune.training import pace
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
    assert straight.reporter.saved == list(range(1, EPOCHS + 1))  # a quick disk gets all
    monkeypatch.setattr(pace, "MOMENT", 0.01)

    run = TrainingRun(experiment, data, SlowFolder(tmp_path / "slow"), validated=(2, 4, 8, 16), saved=(2, 8))
    while run.epoch < 11:
        run.run_epoch()
    better = {e for e in (2, 4, 8) if run.history[e - 1].metrics["val_dice"] > max([0, *_dice(run, e)])}
    assert {1, 2, 8} | better <= set(run.reporter.saved)
    assert len(run.reporter.saved) <= 7
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


def test_an_epoch_that_was_broken_off_is_not_saved(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun(make_experiment(), data, SlowFolder(tmp_path))
    run.run_epoch()
    run._saved = 0  # as if the first one had not been worth its time
    monkeypatch.setattr(run, "_check_weights", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.run_epoch()
    run.close()
    assert run.reporter.saved == [1]


def test_the_share_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: an epoch takes 5 ms, and a checkpoint 50 ms."""
    now = 0.0
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(pace, "MOMENT", 0.01)
    measured, checkpoints = Pace(), 0
    while now < 20:
        if measured.allows():
            with measured.measured():
                now += 0.05
            checkpoints += 1
        now += 0.005
    assert 0.09 < 0.05 * checkpoints / now < 0.105
