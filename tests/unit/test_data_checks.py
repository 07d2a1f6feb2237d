"""What is told about a data set as a whole, and the split that divides no copies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_copies import scene

from guidino_tune import prepare
from guidino_tune.config import Data, Experiment
from guidino_tune.data import checks, opening
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.sources import find_cases


@pytest.fixture(autouse=True)
def any_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """What resizing takes from these small masks is told elsewhere."""
    monkeypatch.setattr(opening, "LOW_CEILING", 0.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for index in range(20):
        add(root, f"c{index:02}", scene(index))
    return root


def add(root: Path, name: str, image: np.ndarray, mask: np.ndarray | None = None, kind: str = "") -> None:
    for folder, array in ((f"{kind}images", image), (f"{kind}masks", spot() if mask is None else mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / folder / f"{name}.png")


def spot() -> np.ndarray:
    mask = np.zeros((96, 96), np.uint8)
    mask[30:50, 40:60] = 255
    return mask


def data(root: Path, **changes) -> Data:
    return Data(kind="folder", root=str(root), image_size=64, **changes)


def publish(root: Path, **parts: list[str]) -> None:
    for part, names in parts.items():
        (root / f"{part}.txt").write_text("\n".join(names))


def noisy(image: np.ndarray) -> np.ndarray:
    return np.clip(image + np.random.default_rng(1).normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def opened(root: Path, **changes) -> SearchData:
    """Without the note on the layout, which is always the first."""
    found = open_for_search(data(root, **changes))
    assert found.notes[0].startswith("layout: images/ and masks/")
    return replace(found, notes=found.notes[1:])


def test_a_clean_set_has_no_notes(root: Path) -> None:
    assert opened(root).notes == ()


def test_exact_copies_across_the_parts_are_always_told_and_near_ones_when_asked(root: Path, tmp_path: Path) -> None:
    publish(root, train=[f"c{i:02}" for i in range(12)], validation=["c12", "c13", "c14", "c15"], test=["c16", "c17", "c18", "c19"])
    add(root, "c12", scene(3))
    add(root, "c13", noisy(scene(4)))
    add(root, "c01", noisy(scene(2)))  # both in training: no leak
    add(root, "c16", scene(5))  # of the test, which is not opened
    split = tmp_path / "split.json"
    (leak,) = open_for_search(data(root), split_file=split).notes[1:]
    assert leak.startswith("LEAK: 1 pair (c03 and c12) of images with the very same pixels, once they are 64 wide and high, are")
    assert "--group-duplicates" in leak
    # Near-copies cost more, and are looked for where copies are to be kept together: a stored split may divide them.
    kept = open_for_search(data(root, group_duplicates=True), split_file=split).notes
    assert leak in kept
    assert any(note.startswith("1 pair (c04 and c13) of near-copies") and "--group-duplicates" in note for note in kept)


def test_looking_over_costs_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(root, train=[f"c{i:02}" for i in range(12)], validation=["c12", "c13"], test=["c16"])
    add(root, "c12", scene(3))
    first = opened(root)
    monkeypatch.setattr(checks, "copies_among", lambda *_, **__: pytest.fail("compared again"))
    assert opened(root).notes == first.notes


def test_grouped_copies_are_in_one_part_and_the_stored_split_is_kept_without_another_look(root: Path, tmp_path: Path) -> None:
    for index in range(10, 20):  # every image twice
        add(root, f"c{index:02}", noisy(scene(index - 10)))
    file = tmp_path / "split.json"
    settings = data(root, group_duplicates=True, validation_fraction=0.3, test_fraction=0.2)
    first = open_for_search(settings, split_file=file)
    part_of = {name: part for part in ("train", "validation", "test") for name in getattr(first.split, part)}
    assert [part_of[f"c{i:02}"] for i in range(10)] == [part_of[f"c{i + 10:02}"] for i in range(10)]
    assert len(part_of) == 20
    assert "0 pairs of copies and 10 of near-copies" in first.notes[1]
    assert first.split.origin == "seeded, copies together"
    for name in first.split.test:
        (root / "images" / f"{name}.png").write_bytes(b"sealed")
    again = open_for_search(settings, split_file=file)
    assert (again.split, again.fingerprint, again.notes[1:]) == (first.split, first.fingerprint, ())
    other = open_for_search(data(root, validation_fraction=0.3, test_fraction=0.2), split_file=file)
    assert other.split == first.split
    assert "drawn with data.group_duplicates" in other.notes[1]


def test_of_published_copies_training_loses_its_own_and_says_so(root: Path) -> None:
    publish(root, train=[f"c{i:02}" for i in range(12)], validation=["c12", "c13", "c14"], test=["c16", "c17", "c15"])
    add(root, "c03", scene(12))
    add(root, "c04", noisy(scene(16)))
    add(root, "c14", noisy(scene(17)))
    found = opened(root, group_duplicates=True)
    assert set(found.split.train) == {f"c{i:02}" for i in range(12)} - {"c03", "c04"}
    assert found.split.validation == ("c12", "c13")
    assert found.split.test == ("c15", "c16", "c17")
    assert any("left out 3 cases whose copies" in note and "c03, c04, c14" in note for note in found.notes)
    assert not any("LEAK" in note for note in found.notes)


def test_the_option_changes_no_hash_where_it_is_off() -> None:
    plain = Experiment.from_dict({"data": {"kind": "demo"}})
    assert "group_duplicates" not in plain.effective()["data"]
    grouped = Experiment.from_dict({"data": {"kind": "demo", "group_duplicates": True}})
    assert grouped.hash != plain.hash


def test_masks_turned_inside_out_are_told(root: Path) -> None:
    for path in (root / "masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    [note] = opened(root).notes
    assert note.startswith("masks look inverted: in 18 of 18")


def test_one_full_mask_and_many_empty_ones_are_named(root: Path) -> None:
    names = opened(root).split.train
    add(root, names[0], scene(90), np.full((96, 96), 255, np.uint8))
    [note] = opened(root).notes
    assert note.startswith(f"1 of 18 masks are foreground almost everywhere: {names[0]}")
    add(root, names[1], scene(91), np.zeros((96, 96), np.uint8))
    assert len(opened(root).notes) == 1  # a single empty mask is usual
    add(root, names[2], scene(92), np.zeros((96, 96), np.uint8))
    assert any(note.startswith(f"2 of 18 masks are empty: {names[1]}, {names[2]}") for note in opened(root).notes)


def test_ids_that_differ_in_capitals_are_told(root: Path) -> None:
    add(root, "C03", scene(50))
    found = opened(root)
    assert any("differ in capitals only" in note and "C03 and c03" in note for note in found.notes)


def test_prepare_compares_all_images_with_those_of_the_test(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(root, train=[f"c{i:02}" for i in range(12)], validation=["c12", "c13", "c14", "c15"], test=["c16", "c17", "c18", "c19"])
    add(root, "c16", scene(5))
    for path in (root / "masks").iterdir():
        path.write_bytes(b"not opened")
    assert prepare.main(["kvasir", "--root", str(root), "--find-copies"]) == 0
    printed = capsys.readouterr().out
    assert "copies: 1 pairs of copies and 0 pairs of near-copies among 20 images" in printed
    assert "copies: LEAK: 1 pair (c05 and c16)" in printed
    assert checks.copies_in(find_cases(data(root)))[1].startswith("LEAK")


def test_prepare_tells_of_a_leak_where_only_the_test_is_published(root: Path) -> None:
    publish(root, test=["c16", "c17"])
    add(root, "c16", scene(5))
    add(root, "c04", scene(3))  # neither is listed: the split will be drawn
    notes = checks.copies_in(find_cases(data(root)))
    assert notes[1].startswith("LEAK: 1 pair (c05 and c16)")
    assert len(notes) == 2
