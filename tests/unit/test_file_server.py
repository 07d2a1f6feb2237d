"""A file server that answers ESTALE or EIO for a moment, or for long. No kernel gives these on demand: ``open`` does in their place."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from guidino_tune.data import file_server
from guidino_tune.study.journal import open_journal, open_storage
from guidino_tune.training import checkpoints
from guidino_tune.training.failures import failure_kind
from guidino_tune.training.folder import TrialFolder, append_whole, write_text
from guidino_tune.training.reporter import EpochRecord

Fail = Callable[[str, int, int], None]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_server, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Lets the next so many openings of files with this end of their name fail."""
    left: dict[str, list[int]] = {}
    real = builtins.open

    def failing(file: Any, *args: Any, **kwargs: Any) -> Any:
        for name, numbers in left.items():
            if str(file).endswith(name) and numbers:
                number = numbers.pop()
                raise OSError(number, os.strerror(number), str(file))
        return real(file, *args, **kwargs)

    def set_up(name: str, number: int, times: int) -> None:
        left[name] = [number] * times

    monkeypatch.setattr(builtins, "open", failing)
    monkeypatch.setattr(io, "open", failing)  # what pathlib opens with
    return set_up


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, {"val_dice": epoch / 10}, 1.7e9 + epoch)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_passing_error_costs_neither_a_line_nor_a_second_one(number: int, tmp_path: Path, fail: Fail) -> None:
    journal, folder = tmp_path / "optuna.journal", TrialFolder(tmp_path / "trial")
    import optuna

    study = optuna.create_study(storage=open_journal(journal))
    folder.write_history([record(1)])
    for times in (1, 3):
        fail("optuna.journal", number, times)
        study.ask().set_user_attr("name", times)
        fail("history.jsonl", number, times)
        folder.append_history(record(len(folder.history()) + 1))
        fail("history.jsonl", number, times)
        assert [r.epoch for r in folder.history()] == list(range(1, len(folder.history()) + 1))
        fail(f".note.{os.getpid()}", number, times)
        write_text(tmp_path / "note", str(times))
        assert (tmp_path / "note").read_text() == str(times)
    assert [
        t.user_attrs["name"]
        for t in optuna.create_study(storage=open_journal(journal), load_if_exists=True, study_name=study.study_name).trials
    ] == [1, 3]


def test_one_that_lasts_is_an_environment_failure_that_names_the_file(tmp_path: Path, fail: Fail) -> None:
    folder = TrialFolder(tmp_path)
    folder.write_history([record(1)])
    fail("history.jsonl", errno.ESTALE, 99)
    with pytest.raises(OSError, match=r"Stale file handle, in each of 4 tries: .*history.jsonl") as caught:
        folder.append_history(record(2))
    assert failure_kind(caught.value) == "environment"
    fail("history.jsonl", errno.ENOSPC, 1)
    with pytest.raises(OSError, match="No space left"):  # nobody waits for a full disk
        folder.append_history(record(2))
    assert [r.epoch for r in folder.history()] == [1]


def test_what_a_server_kept_of_a_write_that_it_refused_is_not_there_twice(tmp_path: Path) -> None:
    file, refused = tmp_path / "lines", list[int]()
    append_whole(file, b"one\n")

    def after_it_was_written(opened: io.FileIO) -> None:
        if not refused:
            refused.append(opened.seek(0, os.SEEK_END))

    real = io.FileIO.write

    class Refusing(io.FileIO):
        def write(self, data: Any) -> int:
            real(self, data)
            if len(refused) == 1:
                refused.append(0)
                raise OSError(errno.EIO, "I/O error")
            return len(data)

        def truncate(self, size: int | None = None) -> int:
            if len(refused) == 2:
                refused.append(0)
                raise OSError(errno.EIO, "I/O error")
            return super().truncate(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", lambda path, mode, **_: Refusing(path, "ab"))
        append_whole(file, b"two\n", after_it_was_written)
    assert len(refused) == 3
    assert file.read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors"])
def test_a_checkpoint_that_is_away_is_not_taken_for_damaged(name: str, tmp_path: Path, fail: Fail) -> None:
    """An older one would train epochs again, and none at all the whole trial."""
    folder, weights = TrialFolder(tmp_path), {"w": torch.ones(3)}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    fail("state.json", errno.ESTALE, 2)
    folder.save(
        1,
        lambda place: checkpoints.write_checkpoint(
            place, checkpoints.snapshot(weights, optimizer), experiment_hash="h", history=[record(1)]
        ),
        best=True,
    )
    (place,) = folder.checkpoints()
    fail(name, errno.ESTALE, 2)
    assert checkpoints.read_checkpoint(place).experiment == "h"
    fail(name, errno.ESTALE, 99)
    with pytest.raises(OSError, match="Stale file handle") as caught:
        checkpoints.read_checkpoint(place)
    assert failure_kind(caught.value) == "environment"


def test_the_journal_of_a_study_is_opened_through_a_passing_error(tmp_path: Path, fail: Fail) -> None:
    journal = tmp_path / "optuna.journal"
    open_storage(journal, None, name="s", new=True)
    fail("optuna.journal", errno.ESTALE, 2)
    assert open_storage(journal, None, name="s").get_all_studies() == []
