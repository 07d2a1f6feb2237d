"""Opening for a search and opening the test: the split is kept, test files stay closed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guidino_tune.config import Data
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.sealed import open_test
from guidino_tune.data.splits import read_split
from guidino_tune.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GUIDINO_TUNE_SEALED", raising=False)
    root = tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for index in range(20):
        add(root, f"c{index:02}", index)
    return root


def add(root: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(root / "images" / f"{name}.png")
    Image.fromarray((rng.random((40, 40)) > 0.5).astype(np.uint8) * 255).save(root / "masks" / f"{name}.png")


def data(root: Path, **changes) -> Data:
    return Data(kind="folder", root=str(root), image_size=32, **changes)


def test_search_gets_training_and_validation_and_never_touches_test(root, tmp_path):
    first = open_for_search(data(root), split_file=tmp_path / "study" / "split.json")
    assert (len(first.train), len(first.validation), len(first.split.test)) == (16, 2, 2)
    assert set(first.train.ids) == set(first.split.train)
    assert set(first.validation.ids) == set(first.split.validation)
    assert first.notes[0] == "layout: images/ and masks/, 20 cases"
    assert all(note.startswith("masks at 32 px and back") for note in first.notes[1:])
    for name in first.split.test:  # were they opened, this would be seen
        (root / "images" / f"{name}.png").write_bytes(b"sealed")
        (root / "masks" / f"{name}.png").write_bytes(b"sealed")
    for path in (tmp_path / "home" / "cache").iterdir():
        path.unlink()
    again = open_for_search(data(root), split_file=tmp_path / "study" / "split.json")
    assert again.fingerprint == first.fingerprint
    assert again.split == first.split == read_split(tmp_path / "study" / "split.json")


def test_fingerprint_follows_content_and_split(root, tmp_path):
    first = open_for_search(data(root))
    assert open_for_search(data(root, split_seed=1)).fingerprint != first.fingerprint
    assert open_for_search(data(root, max_train_cases=5)).fingerprint != first.fingerprint
    add(root, first.split.train[0], 99)
    assert open_for_search(data(root)).fingerprint != first.fingerprint


def test_label_maps_are_opened_with_their_number_of_classes(root):
    binary = open_for_search(data(root))
    with pytest.raises(UserError, match=r"0 and 255, but with data\.num_classes=2"):
        open_for_search(data(root, num_classes=2))
    for path in (root / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255 * 2).save(path)
    two, three = (open_for_search(data(root, num_classes=number)) for number in (2, 3))
    assert (two.train.num_classes, two.validation.num_classes, three.train.num_classes) == (2, 2, 3)
    assert two.split == three.split == binary.split
    assert set(np.unique(two.train.mask(0))) == {0, 2}
    assert two.fingerprint != three.fingerprint
    high = Image.fromarray(np.full((40, 40), 9, np.uint8))
    high.save(root / "masks" / f"{two.split.train[0]}.png")
    skipped = open_for_search(data(root, num_classes=2, bad_cases="skip"))
    assert len(skipped.train) == len(two.train) - 1
    assert "holds 9; that does not fit" in skipped.notes[1]


def test_fewer_cases_are_a_seeded_part_of_more(root):
    ten = open_for_search(data(root, max_train_cases=10, max_validation_cases=1))
    four = open_for_search(data(root, max_train_cases=4))
    assert (len(ten.train), len(ten.validation), len(four.train)) == (10, 1, 4)
    assert set(four.train.ids) < set(ten.train.ids) < set(ten.split.train)
    assert ten.split == four.split
    assert len(open_for_search(data(root, max_train_cases=500)).train) == 16


def test_stored_split_wins_over_new_cases_and_fractions_but_not_over_a_new_seed(root, tmp_path):
    file = tmp_path / "split.json"
    first = open_for_search(data(root), split_file=file)
    other = open_for_search(data(root, validation_fraction=0.4), split_file=file)
    assert other.split == first.split
    assert "another one would be drawn" in other.notes[1]
    with pytest.raises(UserError, match=r"drawn with seed 0, but data\.split_seed is 3"):
        open_for_search(data(root, split_seed=3), split_file=file)
    add(root, "new", 77)
    grown = open_for_search(data(root), split_file=file)
    assert grown.split == first.split
    assert "1 cases of the data set are in no part" in grown.notes[1]
    assert "new" in grown.notes[1]


def test_split_of_missing_cases_is_an_error(root, tmp_path):
    file = tmp_path / "split.json"
    split = open_for_search(data(root), split_file=file).split
    for kind in ("images", "masks"):
        (root / kind / f"{split.test[0]}.png").unlink()
    with pytest.raises(UserError, match=f"1 cases of the stored split are not in the data set: {split.test[0]}"):
        open_for_search(data(root), split_file=file)


def test_bad_cases_stop_or_are_noted(root):
    bad = open_for_search(data(root)).split.train[0]
    (root / "masks" / f"{bad}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=rf"{bad}\.png"):
        open_for_search(data(root))
    opened = open_for_search(data(root, bad_cases="skip"))
    assert bad not in opened.train.ids
    assert len(opened.train) == 15
    assert f"{bad}.png" in opened.notes[1]


def test_progress_runs_over_both_parts(root):
    told: list[tuple[int, int]] = []
    open_for_search(data(root), progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 18) for done in range(1, 19)]


def test_patients_in_two_published_parts_are_noted(tmp_path, root):
    tn3k = tmp_path / "tn3k"
    for part, names in (("trainval", ("1_1", "2_1", "3_1", "4_1")), ("test", ("1_2",))):
        for kind, source in (("image", "images"), ("mask", "masks")):
            (tn3k / f"{part}-{kind}").mkdir(parents=True, exist_ok=True)
            for name in names:
                (tn3k / f"{part}-{kind}" / f"{name}.png").write_bytes((root / source / "c00.png").read_bytes())
    opened = open_for_search(Data(kind="tn3k", root=str(tn3k), image_size=32))
    assert "1 groups (patients) have cases in more than one part" in opened.notes[0]


def test_test_is_opened_once_known_by_a_line_each_time(root, tmp_path):
    file = tmp_path / "split.json"
    split = open_for_search(data(root), split_file=file).split
    assert not (tmp_path / "test-openings.jsonl").exists()
    cases = open_test(data(root), file, reason="final measurement")
    assert tuple(case.id for case in cases) == split.test
    assert all(case.image.is_file() and case.mask.is_file() for case in cases)
    open_test(data(root), file, reason="again")
    lines = [json.loads(line) for line in (tmp_path / "test-openings.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["final measurement", "again"]
    assert all(line["time"].endswith("+00:00") and line["cases"] == 2 for line in lines)


def test_test_is_sealed_during_a_search(root, tmp_path, monkeypatch):
    file = tmp_path / "split.json"
    open_for_search(data(root), split_file=file)
    monkeypatch.setenv("GUIDINO_TUNE_SEALED", "1")
    with pytest.raises(RuntimeError, match="the test split is sealed during a search"):
        open_test(data(root), file, reason="just a look")
    assert not (tmp_path / "test-openings.jsonl").exists()
    open_for_search(data(root), split_file=file)  # a search itself goes on


def test_test_needs_a_split_a_reason_and_cases(root, tmp_path):
    with pytest.raises(UserError, match="cannot read the split"):
        open_test(data(root), tmp_path / "absent.json", reason="x")
    file = tmp_path / "split.json"
    open_for_search(data(root, test_fraction=0.0), split_file=file)
    with pytest.raises(UserError, match="no test cases"):
        open_test(data(root), file, reason="x")
    with pytest.raises(ValueError, match="reason"):
        open_test(data(root), file, reason=" ")
    assert not (tmp_path / "test-openings.jsonl").exists()
