"""Files that were renumbered since the search bring no image that it has seen into the test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from carrying_helpers import Search, data_at, make_images
from PIL import Image
from rich.console import Console

from guidino_tune.data.carrying import beside, find_searched, provenance_of
from guidino_tune.data.cases import Case
from guidino_tune.data.identity import image_digests
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.openings import openings
from guidino_tune.data.sealed import open_test
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError
from guidino_tune.workflows.retrain import take_split


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


def rename(root: Path, names: dict[str, str]) -> None:
    """Files of cases get other names, all at once."""
    for kind in ("images", "masks"):
        for old in names:
            (root / kind / f"{old}.png").rename(root / kind / f"{old}.tmp")
        for old, new in names.items():
            (root / kind / f"{old}.tmp").replace(root / kind / f"{new}.png")


def test_renumbered_files_are_refused_and_no_seen_image_is_tested(search: Search, tmp_path: Path) -> None:
    """The ids are all there, and each part has as many; only the bytes tell."""
    search.leave()
    split, data = search.split, data_at(search.images)
    rename(search.images, {split.test[0]: split.train[0], split.train[0]: split.test[0]})
    taken = tmp_path / "retrained" / "split.json"
    with pytest.raises(UserError, match=f"1 of .* another image than in the search: {split.train[0]}") as refused:
        take_split(search.provenance, taken, data, Console(), file=search.file)
    assert not taken.exists()
    assert str(beside(search.file)) in refused.value.todo
    rename(search.images, {split.test[0]: split.train[0], split.train[0]: split.test[0]})  # the advice, followed
    take_split(search.provenance, taken, data, Console(), file=search.file)
    rename(search.images, {split.validation[1]: split.train[0], split.train[0]: split.validation[1]})
    with pytest.raises(UserError, match=rf"2 of .*; {split.train[0]} has that of {split.validation[1]}: the files were renumbered"):
        take_split(search.provenance, taken, data, Console(), file=search.file)  # begun before


@pytest.mark.parametrize("gone", [False, True])
def test_a_test_case_with_a_seen_image_is_not_opened(search: Search, gone: bool) -> None:
    """Also where of the seen cases only the one is missing whose file took the name of a test case."""
    one, other = search.split.test[0], search.split.validation[0]
    if gone:
        rename(search.images, {other: one})
    else:
        rename(search.images, {one: other, other: one})
    with pytest.raises(UserError, match=f"1 test cases have an image that the search has seen: {one}; {one} has that of {other}"):
        open_test(data_at(search.images), search.split_file, reason="measurement")
    assert openings(search.split_file) == []


def test_a_copy_that_was_there_from_the_start_is_no_renumbering(tmp_path: Path) -> None:
    """It is told as a leak where the split is drawn; the test can still be opened."""
    root = make_images(tmp_path / "images")
    first = open_for_search(data_at(root), cache=tmp_path / "cache").split
    for kind in ("images", "masks"):
        shutil.copy(root / kind / f"{first.train[0]}.png", root / kind / f"{first.test[0]}.png")
    split_file = tmp_path / "split.json"
    assert open_for_search(data_at(root, stratify=False), split_file=split_file, cache=tmp_path / "cache").split.test == first.test
    assert len(open_test(data_at(root), split_file, reason="measurement")) == len(first.test)


def test_the_same_images_saved_anew_need_a_person_s_word(search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search.leave()
    for file in (search.images / "images").iterdir():
        Image.open(file).save(file, compress_level=1)
    taken, data = tmp_path / "retrained" / "split.json", data_at(search.images)
    with pytest.raises(UserError, match=r"16 of 16 cases have another image than in the search: c\d\d") as refused:
        take_split(search.provenance, taken, data, Console(), file=search.file)
    assert "renumbered" not in str(refused.value)
    assert f"take the entry 'images' out of {beside(search.file)}" in refused.value.todo
    values = json.loads(beside(search.file).read_text())
    del values["images"]
    beside(search.file).write_text(json.dumps(values))
    take_split(search.provenance, taken, data, Console(width=300), file=search.file)
    assert "does not note its images" in capsys.readouterr().out
    assert open_test(data, taken, reason="measurement")
    rename(search.images, {search.split.train[0]: search.split.train[1], search.split.train[1]: search.split.train[0]})
    with pytest.raises(UserError, match="renumbered"):  # from then on they are known
        take_split(search.provenance, taken, data, Console(), file=search.file)


@pytest.mark.parametrize("form", ["beside", "printed", "given"])
def test_every_form_of_the_split_knows_its_images(form: str, search: Search, tmp_path: Path) -> None:
    provenance, given = dict(search.provenance), None
    if form == "printed":
        provenance |= provenance_of(search.split_file, ids=True)
    if form == "given":
        given = tmp_path / "given.json"
        shutil.copy(search.split_file, given)
    search.leave()
    if form != "beside":
        beside(search.file).unlink()
    found = find_searched(yaml.safe_load(yaml.safe_dump(provenance)), search.file, given=given)
    assert found is not None
    seen = {*search.split.train, *search.split.validation}
    assert found.images.keys() == seen  # of the test the search has opened nothing
    assert len(set(found.images.values())) == len(seen)


def test_digests_survive_a_move_and_know_every_file_of_an_image(tmp_path: Path) -> None:
    root = make_images(tmp_path / "images", 4)
    before = image_digests(find_cases(data_at(root)).cases)
    moved = tmp_path / "elsewhere" / "other"
    shutil.copytree(root, moved, copy_function=shutil.copyfile)  # with new dates
    Image.new("L", (32, 32), 255).save(moved / "masks" / "c00.png")  # a corrected mask is no other case
    assert image_digests(find_cases(data_at(moved)).cases) == before
    large = tmp_path / "large.bin"
    pairs = [Case("a", large, large, "a"), Case("b", large, large, "b", more_images=(root / "images" / "c00.png",))]
    known = set()
    for place in (None, 0, 70_000, 139_999):
        content = bytearray(140_000)
        if place is not None:
            content[place] = 1
        large.write_bytes(content)
        known |= set(image_digests(pairs).values())
    large.write_bytes(bytes(140_001))
    known |= set(image_digests(pairs).values())
    assert len(known) == 10
    assert image_digests([Case("gone", tmp_path / "gone", large, "g"), pairs[0]]).keys() == {"a"}
