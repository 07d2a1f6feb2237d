"""A trial's folder: whatever is interrupted, what was there before stays whole."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from guidino_tune.training.folder import TrialFolder, read_history, replace_folder, write_text
from guidino_tune.training.reporter import EpochRecord


def writes(text: str):
    def write(folder: Path) -> None:
        (folder / "weights.safetensors").write_text(text)
        (folder / "state.json").write_text(text)
        (folder / "optimizer.safetensors").write_text(text)

    return write


def breaks(folder: Path) -> None:
    (folder / "weights.safetensors").write_text("half")
    raise OSError(28, "No space left on device")


def names(folder: TrialFolder) -> list[str]:
    return [p.name for p in folder.checkpoints()]


def record(epoch: int, dice: float = 0.5) -> EpochRecord:
    return EpochRecord(epoch, {"val_dice": dice, "train_loss_total": 1 / 3}, 1e9 + epoch / 7)


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return TrialFolder(tmp_path / "00007")


def test_the_newest_two_checkpoints_are_kept_newest_first(folder: TrialFolder) -> None:
    assert folder.checkpoints() == []
    for epoch in range(1, 12):
        folder.save(epoch, writes(str(epoch)), best=False)
    assert names(folder) == ["epoch-00011", "epoch-00010"]
    assert [(p / "state.json").read_text() for p in folder.checkpoints()] == ["11", "10"]
    assert not folder.best.exists()


def test_a_history_of_an_earlier_version_has_the_present_names(folder: TrialFolder) -> None:
    """What was called `train_dice` is a loss, which falls while the score `val_dice` rises."""
    terms = ("total", "dice", "bce", "cross_entropy", "guide", "hinge")
    line = {"epoch": 1, "metrics": {"lr": 1.0, "val_dice": 0.3, **{f"train_{t}": float(n) for n, t in enumerate(terms)}}, "time": 5.0}
    folder.path.mkdir()
    folder.history_file.write_text(json.dumps(line) + '\n{"epoch": 2, "metrics": 3, "time": 6.0}\n{"epoch": 2')
    (first,) = folder.history()
    assert first.metrics == {"lr": 1.0, "val_dice": 0.3, **{f"train_loss_{t}": float(n) for n, t in enumerate(terms)}}
    assert EpochRecord.from_dict(record(2).to_dict()) == record(2)


def test_a_crash_while_writing_leaves_everything_as_it_was(folder: TrialFolder) -> None:
    folder.save(1, writes("one"), best=True)
    folder.save(2, writes("two"), best=False)
    with pytest.raises(OSError, match="No space"):
        folder.save(3, breaks, best=True)
    assert names(folder) == ["epoch-00002", "epoch-00001"]
    assert (folder.checkpoints()[0] / "weights.safetensors").read_text() == "two"
    assert (folder.best / "weights.safetensors").read_text() == "one"
    folder.save(3, writes("three"), best=True)
    assert names(folder) == ["epoch-00003", "epoch-00002"]
    assert sorted(p.name for p in folder.checkpoints()[0].iterdir()) == ["optimizer.safetensors", "state.json", "weights.safetensors"]


def test_best_is_replaced_whole_and_holds_no_optimiser(folder: TrialFolder) -> None:
    folder.save(1, writes("one"), best=True)
    (folder.best / "stray.txt").write_text("of the old best")
    folder.save(2, writes("two"), best=False)
    assert (folder.best / "state.json").read_text() == "one"
    folder.save(3, writes("three"), best=True)
    assert {p.name: p.read_text() for p in folder.best.iterdir()} == {"weights.safetensors": "three", "state.json": "three"}


def test_best_is_a_second_name_of_the_checkpoint_and_a_copy_where_there_is_none(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save(1, writes("one"), best=True)
    assert (folder.best / "weights.safetensors").samefile(folder.checkpoints()[0] / "weights.safetensors")
    folder.save(1, writes("one again"), best=False)
    assert (folder.best / "weights.safetensors").read_text() == "one"

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    folder.save(2, writes("two"), best=True)
    assert (folder.best / "weights.safetensors").read_text() == "two"


def test_a_history_begins_without_a_folder(tmp_path: Path) -> None:
    """The first checkpoint, which makes the folder, is written by a thread."""
    place = TrialFolder(tmp_path / "new" / "trial")
    place.append_history(EpochRecord(1, {"val_dice": 0.5}, 1.0))
    assert [record.epoch for record in place.history()] == [1]


def test_the_same_epoch_saved_again_replaces_it(folder: TrialFolder) -> None:
    folder.save(1, writes("first"), best=False)
    folder.save(1, writes("again"), best=False)
    assert names(folder) == ["epoch-00001"]
    assert (folder.checkpoints()[0] / "state.json").read_text() == "again"


def test_the_checkpoint_counts_only_after_best(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.save(1, writes("one"), best=True)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_replace_best", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.save(2, writes("two"), best=True)
    assert names(folder) == ["epoch-00001"]


def test_tidy_keeps_best_history_and_pictures(folder: TrialFolder) -> None:
    folder.write_history([record(1)])
    folder.save(1, writes("one"), best=True)
    folder.pictures.mkdir()
    (folder.path / ".best.4711").mkdir()  # of a process that was killed
    folder.tidy()
    assert sorted(p.name for p in folder.path.iterdir()) == ["best", "history.jsonl", "pictures"]


def test_history_survives_a_torn_line_and_grows_on(folder: TrialFolder) -> None:
    folder.write_history([record(1), record(2)])
    with folder.history_file.open("a") as file:
        file.write(json.dumps(record(3).to_dict())[:25])
    assert folder.history() == [record(1), record(2)]
    folder.write_history(folder.history())
    folder.append_history(record(3))
    assert folder.history() == [record(1), record(2), record(3)]


def test_no_history_is_an_empty_one(folder: TrialFolder) -> None:
    assert folder.history() == []
    assert read_history(folder.path / "nothing.jsonl") == []


@examples(15)
@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=4), max_size=5))
def test_history_reads_back_what_was_written_exactly(metrics: list[dict[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = TrialFolder(Path(name) / "trial")
        records = [EpochRecord(epoch, values, 1.7e9 + epoch / 3) for epoch, values in enumerate(metrics, 1)]
        folder.write_history(records[:2])
        for later in records[2:]:
            folder.append_history(later)
        assert folder.history() == records


def test_text_is_replaced_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.txt"
    write_text(file, "old")
    write_text(file, "ünew")
    assert file.read_text(encoding="utf-8") == "ünew"
    assert [p.name for p in file.parent.iterdir()] == ["file.txt"]


HOLDER = """
import sys, time
from guidino_tune.training.folder import Path, TrialFolder
held = TrialFolder(Path(sys.argv[1])).hold()
print("has it", flush=True)
time.sleep(60)
"""


def test_a_process_waits_for_the_one_that_still_trains_there(folder: TrialFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder.path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(TimeoutError, match=r"process \d+ on .* has held .*00007/\.lock"):
            folder.hold(patience=0.2)
        other.kill()  # no word of farewell
        with folder.hold(patience=10):
            pass


def test_a_folder_is_free_again_when_it_is_let_go(folder: TrialFolder) -> None:
    first = folder.hold()
    with pytest.raises(TimeoutError):
        folder.hold(patience=0)
    first.close()
    clock = time.monotonic()
    folder.hold().close()
    assert time.monotonic() - clock < 1


def test_a_folder_is_replaced_by_one_that_is_whole_or_stays(tmp_path: Path) -> None:
    target, draft = tmp_path / "model", tmp_path / "draft"
    for folder, text in ((target, "old"), (draft, "new")):
        folder.mkdir()
        (folder / "weights").write_text(text)
    with pytest.raises(OSError, match="nothing"):
        replace_folder(tmp_path / "nothing", target)
    assert (target / "weights").read_text() == "old"
    replace_folder(draft, target)
    assert (target / "weights").read_text() == "new"
    replace_folder(target, tmp_path / "first")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
