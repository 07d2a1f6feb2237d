"""The table of decoded cases: right pixels, no copies, one build, no half files."""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guidino_tune.data import table as module
from guidino_tune.data.cases import Case
from guidino_tune.data.table import CaseTable, build_table
from guidino_tune.errors import UserError


def make_cases(root: Path, count: int = 5, size: tuple[int, int] = (64, 64)) -> list[Case]:
    rng = np.random.default_rng(0)
    cases = []
    for index in range(count):
        image, mask = root / f"i{index}.png", root / f"m{index}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
        Image.fromarray((rng.random(size) > 0.5).astype(np.uint8) * 255).save(mask)
        cases.append(Case(f"c{index}", image, mask, f"c{index}"))
    return cases


def count_decoding(monkeypatch) -> list[str]:
    seen: list[str] = []
    decode = module.read_case_and_digest

    def counted(case, num_classes):
        seen.append(case.id)
        return decode(case, num_classes)

    monkeypatch.setattr(module, "read_case_and_digest", counted)
    return seen


def test_same_size_keeps_every_pixel_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_BYTES", 2 * 64 * 64 * 4)  # two cases a batch: 5 cases are 3 batches
    cases = make_cases(tmp_path)
    table = build_table(reversed(cases), 64, tmp_path / "cache")
    assert table.ids == ("c0", "c1", "c2", "c3", "c4")
    assert len(table) == 5
    for index, case in enumerate(cases):
        assert np.array_equal(table.image(index), np.asarray(Image.open(case.image)))
        assert np.array_equal(table.mask(index) * 255, np.asarray(Image.open(case.mask)))
        assert table.positions[case.id] == index


def test_arrays_are_views_of_the_file(tmp_path):
    table = build_table(make_cases(tmp_path, 1), 64, tmp_path / "cache")
    first, second = table.image(0), table.image(0)
    assert np.shares_memory(first, second)
    assert not first.flags.writeable
    assert not first.flags.owndata
    assert first.dtype == table.mask(0).dtype == np.uint8
    assert (first.shape, table.mask(0).shape) == ((64, 64, 3), (64, 64))


def test_resizing_averages_images_and_keeps_masks_binary(tmp_path):
    image = np.zeros((128, 64, 3), np.uint8)
    image[::2] = 200  # rows alternate: an average is 100, a picked pixel 0 or 200
    mask = np.zeros((128, 64), np.uint8)
    mask[:64, :32] = 255
    Image.fromarray(image).save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    table = build_table([Case("a", tmp_path / "i.png", tmp_path / "m.png", "a")], 32, tmp_path / "cache")
    assert table.original_size(0) == (128, 64)
    assert np.abs(table.image(0)[2:-2].astype(int) - 100).max() <= 2
    expected = np.zeros((32, 32), np.uint8)
    expected[:16, :16] = 1
    assert np.array_equal(table.mask(0), expected)


def label_cases(root: Path, count: int = 3, num_classes: int = 4) -> list[Case]:
    cases = make_cases(root, count)
    for index, case in enumerate(cases):
        labels = np.random.default_rng(index).integers(0, num_classes + 1, (64, 64)).astype(np.uint8)
        Image.fromarray(labels).save(case.mask)
    return cases


@pytest.mark.parametrize("size", [32, 64, 128])
def test_labels_stay_labels_at_any_size(tmp_path, size):
    cases = label_cases(tmp_path)
    table = build_table(cases, size, tmp_path / "cache", num_classes=4)
    assert table.num_classes == 4
    assert pickle.loads(pickle.dumps(table.subset(["c1"]))).num_classes == 4
    at = ((np.arange(size) + 0.5) * 64 / size).astype(int)  # the pixel under the centre of each new one
    for index, case in enumerate(cases):
        assert np.array_equal(table.mask(index), np.asarray(Image.open(case.mask))[np.ix_(at, at)])


def test_the_number_of_classes_is_part_of_name_and_fingerprint(tmp_path, monkeypatch):
    seen = count_decoding(monkeypatch)
    cases = make_cases(tmp_path, 2)
    for case in cases:
        Image.fromarray(np.eye(64, dtype=np.uint8)).save(case.mask)  # 0 and 1: fits any number of classes
    tables = [build_table(cases, 64, tmp_path / "cache", num_classes=number) for number in (1, 2, 3)]
    assert len(seen) == 6
    assert len({table.path for table in tables}) == len({table.fingerprint for table in tables}) == 3
    build_table(cases, 64, tmp_path / "cache", num_classes=2)
    assert len(seen) == 6
    with pytest.raises(UserError, match="the value 4"):
        build_table(label_cases(tmp_path), 64, tmp_path / "cache", num_classes=3)


def test_a_fingerprint_of_binary_masks_never_changes(tmp_path):
    """Studies keep it, and refuse to go on with another one."""
    cases = make_cases(tmp_path, 2)
    digest = hashlib.sha256(b"1 64")
    for case in cases:
        files = [hashlib.sha256(path.read_bytes()).digest() for path in (case.image, case.mask)]
        digest.update(case.id.encode() + b"\0" + hashlib.sha256(b"".join(files)).digest())
    assert build_table(cases, 64, tmp_path / "cache").fingerprint == digest.hexdigest()


def test_second_opening_decodes_nothing_and_a_change_decodes_again(tmp_path, monkeypatch):
    seen = count_decoding(monkeypatch)
    cases = make_cases(tmp_path)
    first = build_table(cases, 64, tmp_path / "cache")
    assert len(seen) == 5
    second = build_table(cases[::-1], 64, tmp_path / "cache")
    assert len(seen) == 5
    assert second.path == first.path
    build_table(cases, 32, tmp_path / "cache")
    assert len(seen) == 10
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(cases[0].image)
    changed = build_table(cases, 64, tmp_path / "cache")
    assert changed.image(0).max() == 9
    assert changed.fingerprint != first.fingerprint


def test_fingerprint_is_of_contents_not_of_places_or_times(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = build_table(make_cases(tmp_path / "a"), 64, tmp_path / "cache")
    there = make_cases(tmp_path / "b")
    os.utime(there[0].image, (1, 1))
    second = build_table(there, 64, tmp_path / "cache")
    assert first.path != second.path
    assert first.fingerprint == second.fingerprint
    assert build_table(there, 32, tmp_path / "cache").fingerprint != first.fingerprint
    assert build_table(there[1:], 64, tmp_path / "cache").fingerprint == first.subset(["c4", "c3", "c2", "c1"]).fingerprint


def test_subset_is_a_view_in_the_given_order(tmp_path):
    table = build_table(make_cases(tmp_path), 64, tmp_path / "cache")
    part = table.subset(["c3", "c1"])
    assert part.ids == ("c3", "c1")
    assert np.array_equal(part.image(0), table.image(3))
    assert np.array_equal(part.subset(["c1"]).mask(0), table.mask(1))
    with pytest.raises(KeyError):
        part.subset(["c0"])


def test_table_travels_to_another_process_by_path(tmp_path):
    table = build_table(make_cases(tmp_path), 64, tmp_path / "cache").subset(["c2"])
    sent = pickle.dumps(table)
    assert len(sent) < 2000
    assert np.array_equal(pickle.loads(sent).image(0), table.image(0))


def test_bad_cases_stop_or_are_left_out_and_named(tmp_path):
    cases = make_cases(tmp_path)
    cases[1].image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"i1\.png"):
        build_table(cases, 64, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.arrow"))
    assert not list((tmp_path / "cache").glob(".*.tmp"))
    table = build_table(cases, 64, tmp_path / "cache", "skip")
    assert table.ids == ("c0", "c2", "c3", "c4")
    assert len(table.skipped) == 1
    assert "i1.png" in table.skipped[0]
    assert np.array_equal(table.image(1), np.asarray(Image.open(cases[2].image)))
    with pytest.raises(UserError, match=r"i1\.png"):  # the table is there now, and still this is an error
        build_table(cases, 64, tmp_path / "cache", "error")


def test_no_readable_case_is_an_error(tmp_path):
    cases = make_cases(tmp_path, 2)
    for case in cases:
        case.mask.unlink()
    with pytest.raises(UserError, match="none of 2 cases"):
        build_table(cases, 64, tmp_path / "cache", "skip")
    with pytest.raises(UserError, match="no cases"):
        build_table([], 64, tmp_path / "cache")


def test_damaged_file_is_built_again(tmp_path):
    cases = make_cases(tmp_path)
    path = build_table(cases, 64, tmp_path / "cache").path
    good = path.read_bytes()
    for bad in (b"", b"nonsense", good[: len(good) // 2]):
        path.unlink()
        path.write_bytes(bad)
        assert len(build_table(cases, 64, tmp_path / "cache")) == 5


def test_progress_counts_every_case(tmp_path):
    told: list[tuple[int, int]] = []
    build_table(make_cases(tmp_path, 3), 64, tmp_path / "cache", progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_unwritable_cache_is_a_user_error(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write the cache") as caught:
        build_table(make_cases(tmp_path, 1), 64, tmp_path / "cache")
    assert "GUIDINO_TUNE_HOME" in caught.value.todo


BUILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_data_table import Case
from guidino_tune.data import table
decode = table.read_case_and_digest
def slow(case, num_classes):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[2]))
    return decode(case, num_classes)
table.read_case_and_digest = slow
root = Path(sys.argv[1])
cases = [Case(f"c{i}", root / f"i{i}.png", root / f"m{i}.png", f"c{i}") for i in range(5)]
table.build_table(cases, 64, root / "cache")
"""


def start_build(root: Path, delay: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), str(delay), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )


def test_processes_that_start_together_build_once(tmp_path):
    make_cases(tmp_path)
    outputs = [process.communicate(timeout=60)[0] for process in [start_build(tmp_path, 0.2) for _ in range(3)]]
    assert "".join(outputs).count("decoding") == 5


def test_killed_build_leaves_no_table_and_the_next_one_cleans_up(tmp_path):
    cases = make_cases(tmp_path)
    process = start_build(tmp_path, 30)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 10
    while not list((tmp_path / "cache").glob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((tmp_path / "cache").glob(".*.tmp"))
    assert not list((tmp_path / "cache").glob("*.arrow"))
    assert len(build_table(cases, 64, tmp_path / "cache")) == 5
    assert not list((tmp_path / "cache").glob(".*.tmp"))


def test_file_of_another_format_is_refused(tmp_path, monkeypatch):
    path = build_table(make_cases(tmp_path, 1), 64, tmp_path / "cache").path
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    with pytest.raises(ValueError, match="format"):
        CaseTable(path)
