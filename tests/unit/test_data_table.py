"""The table of decoded cases: right pixels, no copies, one build, no half files."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from table_helpers import damage, table_of

from guidino_tune.config.data import IGNORED, Data
from guidino_tune.data import table as module
from guidino_tune.data.cases import Case
from guidino_tune.data.rules import measure_rules
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

    def counted(case, rules):
        seen.append(case.id)
        return decode(case, rules)

    monkeypatch.setattr(module, "read_case_and_digest", counted)
    return seen


def test_same_size_keeps_every_pixel_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_BYTES", 2 * 64 * 64 * 4)  # two cases a batch: 5 cases are 3 batches
    cases = make_cases(tmp_path)
    table = table_of(reversed(cases), 64, tmp_path / "cache")
    assert table.ids == ("c0", "c1", "c2", "c3", "c4")
    assert len(table) == 5
    for index, case in enumerate(cases):
        assert np.array_equal(table.image(index), np.asarray(Image.open(case.image)))
        assert np.array_equal(table.mask(index) * 255, np.asarray(Image.open(case.mask)))
        assert table.positions[case.id] == index


def test_arrays_are_views_of_the_file(tmp_path):
    table = table_of(make_cases(tmp_path, 1), 64, tmp_path / "cache")
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
    table = table_of([Case("a", tmp_path / "i.png", tmp_path / "m.png", "a")], 32, tmp_path / "cache")
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
    table = table_of(cases, size, tmp_path / "cache", num_classes=4, mask_resize="nearest")
    assert table.num_classes == 4
    assert pickle.loads(pickle.dumps(table.subset(["c1"]))).num_classes == 4
    at = ((np.arange(size) + 0.5) * 64 / size).astype(int)  # the pixel under the centre of each new one
    for index, case in enumerate(cases):
        assert np.array_equal(table.mask(index), np.asarray(Image.open(case.mask))[np.ix_(at, at)])


def test_whatever_changes_pixels_is_part_of_name_and_fingerprint(tmp_path, monkeypatch):
    seen = count_decoding(monkeypatch)
    cases = make_cases(tmp_path, 2)
    for case in cases:
        Image.fromarray(np.eye(64, dtype=np.uint8)).save(case.mask)  # 0 and 1: fits any number of classes
    settings = [
        {}, {"num_classes": 2}, {"num_classes": 3}, {"resize": "pad"}, {"mask_resize": "nearest"}, {"labels": {"a": 1}},
        {"view": "patch"}, {"ignore_label": 7},
    ]  # fmt: skip
    tables = [table_of(cases, 64, tmp_path / "cache", **values) for values in settings]
    assert len(seen) == 2 * len(settings)
    assert len({table.path for table in tables}) == len({table.fingerprint for table in tables}) == len(settings)
    table_of(cases, 64, tmp_path / "cache", num_classes=2)
    assert len(seen) == 2 * len(settings)


def test_a_mask_that_does_not_fit_the_rule_is_named_or_left_out_whole(tmp_path):
    cases, data = make_cases(tmp_path, 4), Data(kind="folder", image_size=64)
    rules = measure_rules(cases, [], data)
    Image.fromarray(np.full((64, 64), 3, np.uint8)).save(cases[2].mask)
    with pytest.raises(UserError, match="holds 3; that does not fit"):
        build_table(cases, data, rules, tmp_path / "cache")
    table = build_table(cases, replace(data, bad_cases="skip"), rules, tmp_path / "other")
    assert table.ids == ("c0", "c1", "c3")
    assert "c2: " in table.skipped[0]


def test_native_cases_keep_their_own_size(tmp_path):
    cases = [case for number in (1, 2, 3) for case in make_sized(tmp_path, number)]
    table = table_of(cases, 32, tmp_path / "cache", view="patch")
    assert table.native
    for index, case in enumerate(cases):
        assert np.array_equal(table.image(index), np.asarray(Image.open(case.image)))
        assert np.array_equal(table.mask(index) * 255, np.asarray(Image.open(case.mask)))


def make_sized(root: Path, number: int) -> list[Case]:
    (root / str(number)).mkdir()
    (case,) = make_cases(root / str(number), 1, (30 + 17 * number, 41 * number))
    return [replace(case, id=f"n{number}")]


def test_pad_keeps_the_aspect_and_leaves_out_its_margin(tmp_path):
    table = table_of(make_cases(tmp_path, 1, (32, 64)), 64, tmp_path / "cache", resize="pad")
    assert (table.mask(0)[:16] == IGNORED).all()
    assert (table.mask(0)[48:] == IGNORED).all()
    assert np.array_equal(table.mask(0)[16:48] * 255, np.asarray(Image.open(tmp_path / "m0.png")))
    assert table.foreground[0] == (table.mask(0) == 1).mean()


def test_the_ceiling_is_the_dice_of_masks_that_were_made_small_and_large_again(tmp_path):
    thin = np.zeros((256, 256), np.uint8)
    thin[::8, :] = 255
    thick = np.zeros((256, 256), np.uint8)
    thick[64:192, 64:192] = 255
    found = []
    for name, mask in (("thin", thin), ("thick", thick)):
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(tmp_path / "image.png")
        table = table_of([Case("a", tmp_path / "image.png", tmp_path / f"{name}.png", "a")], 64, tmp_path / "cache")
        small = np.array(table.mask(0))
        back = np.asarray(Image.fromarray(small.astype(np.float32)).resize((256, 256), Image.Resampling.BILINEAR)) > 0.5
        expected = 2 * (back & (mask > 0)).sum() / (back.sum() + (mask > 0).sum())
        assert table.ceiling == pytest.approx(expected)
        found.append(table.ceiling)
    assert found[0] < 0.1
    assert found[1] > 0.99


def test_second_opening_decodes_nothing_and_a_change_decodes_again(tmp_path, monkeypatch):
    seen = count_decoding(monkeypatch)
    cases = make_cases(tmp_path)
    first = table_of(cases, 64, tmp_path / "cache")
    assert len(seen) == 5
    second = table_of(cases[::-1], 64, tmp_path / "cache")
    assert len(seen) == 5
    assert second.path == first.path
    table_of(cases, 32, tmp_path / "cache")
    assert len(seen) == 10
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(cases[0].image)
    changed = table_of(cases, 64, tmp_path / "cache")
    assert changed.image(0).max() == 9
    assert changed.fingerprint != first.fingerprint


def test_fingerprint_is_of_contents_not_of_places_or_times(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = table_of(make_cases(tmp_path / "a"), 64, tmp_path / "cache")
    there = make_cases(tmp_path / "b")
    os.utime(there[0].image, (1, 1))
    second = table_of(there, 64, tmp_path / "cache")
    assert first.path != second.path
    assert first.fingerprint == second.fingerprint
    assert table_of(there, 32, tmp_path / "cache").fingerprint != first.fingerprint
    assert table_of(there[1:], 64, tmp_path / "cache").fingerprint == first.subset(["c4", "c3", "c2", "c1"]).fingerprint


def test_subset_is_a_view_in_the_given_order(tmp_path):
    table = table_of(make_cases(tmp_path), 64, tmp_path / "cache")
    part = table.subset(["c3", "c1"])
    assert part.ids == ("c3", "c1")
    assert np.array_equal(part.image(0), table.image(3))
    assert np.array_equal(part.subset(["c1"]).mask(0), table.mask(1))
    with pytest.raises(KeyError):
        part.subset(["c0"])


def test_table_travels_to_another_process_by_path(tmp_path):
    table = table_of(make_cases(tmp_path), 64, tmp_path / "cache").subset(["c2"])
    sent = pickle.dumps(table)
    assert len(sent) < 2000
    assert np.array_equal(pickle.loads(sent).image(0), table.image(0))


def test_bad_cases_stop_or_are_left_out_and_named(tmp_path):
    cases = make_cases(tmp_path)
    cases[1].image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"i1\.png"):
        table_of(cases, 64, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.arrow"))
    assert not list((tmp_path / "cache").glob(".*.tmp"))
    table = table_of(cases, 64, tmp_path / "cache", bad_cases="skip")
    assert table.ids == ("c0", "c2", "c3", "c4")
    assert len(table.skipped) == 1
    assert "i1.png" in table.skipped[0]
    assert np.array_equal(table.image(1), np.asarray(Image.open(cases[2].image)))
    with pytest.raises(UserError, match=r"i1\.png"):  # the table is there now, and still this is an error
        table_of(cases, 64, tmp_path / "cache")


def test_no_readable_case_is_an_error(tmp_path):
    cases = make_cases(tmp_path, 2)
    for case in cases:
        case.mask.unlink()
    with pytest.raises(UserError, match="none of 2 masks can be read"):
        table_of(cases, 64, tmp_path / "cache", bad_cases="skip")
    with pytest.raises(UserError, match="none of 0 masks"):
        table_of([], 64, tmp_path / "cache")


def test_damaged_file_is_built_again(tmp_path):
    cases = make_cases(tmp_path)
    path = table_of(cases, 64, tmp_path / "cache").path
    good = path.read_bytes()
    for bad in (b"", b"nonsense", good[: len(good) // 2]):
        path.unlink()
        path.write_bytes(bad)
        assert len(table_of(cases, 64, tmp_path / "cache")) == 5


@examples(40)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), length=st.sampled_from([1, 1, 1, 64, 4096]))
def test_no_flipped_bit_and_no_lost_page_becomes_a_pixel(place: float, bit: int, length: int, tmp_path_factory) -> None:
    """Wherever it is in the file: the table is as it was written, or made again."""
    folder = tmp_path_factory.mktemp("table")
    cases = make_cases(folder, 3, (24, 20))
    first = table_of(cases, 32, folder / "cache")
    file, wanted = first.path, contents(first)
    damage(file, place, bit, length)
    assert contents(table_of(cases, 32, folder / "cache")) == wanted


def contents(table: CaseTable) -> list[object]:
    rows = range(len(table))
    pixels = [(table.image(i).tobytes(), table.mask(i).tobytes(), table.original_size(i)) for i in rows]
    return [table.ids, table.fingerprint, table.foreground.tolist(), table.skipped, table.size, table.num_classes, pixels]


def test_the_content_of_a_table_is_checked_once(tmp_path, monkeypatch):
    checked: list[int] = []
    real = module.checksum
    monkeypatch.setattr(module, "checksum", lambda array, start=0: checked.append(array.nbytes) or real(array, start))
    cases = make_cases(tmp_path, 2)
    for count in (4, 8, 8):  # an image and a mask of each case: as they are written, as the file is first opened, and never again
        table_of(cases, 64, tmp_path / "cache")
        assert len(checked) == count


def test_progress_counts_every_case(tmp_path):
    told: list[tuple[int, int]] = []
    table_of(make_cases(tmp_path, 3), 64, tmp_path / "cache", progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_unwritable_cache_is_a_user_error(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write the cache") as caught:
        table_of(make_cases(tmp_path, 1), 64, tmp_path / "cache")
    assert "GUIDINO_TUNE_HOME" in caught.value.todo


BUILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from table_helpers import table_of
from guidino_tune.data.cases import Case
from guidino_tune.data import table
decode = table.read_case_and_digest
def slow(case, rules):
    print("decoding", flush=True)
    time.sleep(float(sys.argv[2]))
    return decode(case, rules)
table.read_case_and_digest = slow
root = Path(sys.argv[1])
cases = [Case(f"c{i}", root / f"i{i}.png", root / f"m{i}.png", f"c{i}") for i in range(5)]
table_of(cases, 64, root / "cache")
"""


def start_build(root: Path, delay: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), str(delay), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )


def test_processes_that_start_together_build_once(tmp_path):
    make_cases(tmp_path)
    outputs = [process.communicate(timeout=60)[0] for process in [start_build(tmp_path, 0.2) for _ in range(2)]]
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
    assert len(table_of(cases, 64, tmp_path / "cache")) == 5
    assert not list((tmp_path / "cache").glob(".*.tmp"))


def test_file_of_another_format_is_refused(tmp_path, monkeypatch):
    path = table_of(make_cases(tmp_path, 1), 64, tmp_path / "cache").path
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    with pytest.raises(ValueError, match="format"):
        CaseTable(path)
