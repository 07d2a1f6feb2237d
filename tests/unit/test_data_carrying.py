"""The split of a search travels with its configuration: no retraining tests on a case that the search has seen."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from carrying_helpers import Search, data_at
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from guidino_tune.config import Data
from guidino_tune.data.carrying import (
    DIGEST,
    IDS,
    SPLIT,
    Searched,
    beside,
    check_taken,
    find_searched,
    fit,
    provenance_beside,
    provenance_of,
)
from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.openings import copied_from, openings, record_opening
from guidino_tune.data.sealed import open_test
from guidino_tune.data.splits import PARTS, Split, groups_digest, groups_of, make_split, read_split, split_digest, split_text, write_split
from guidino_tune.errors import UserError
from guidino_tune.retrain import main as retrain
from guidino_tune.training.evaluation import find_split
from guidino_tune.workflows.retrain import take_split


def listing(names: list[str]) -> Listing:
    return Listing(tuple(Case(name, Path(f"images/{name}"), Path(f"masks/{name}"), name.partition("_")[0]) for name in names))


@given(st.integers(8, 60), st.integers(0, 3), st.data(), st.randoms(use_true_random=False))
def test_whatever_happens_to_the_files_no_seen_case_is_tested(count: int, seed: int, draw: st.DataObject, rng: random.Random) -> None:
    """Files removed, added and listed in another order: each part of the retraining is within that of the search."""
    names = [f"{index // 2}_{index}" for index in range(count)]
    data = Data(kind="folder", split_seed=seed, test_fraction=0.2, validation_fraction=0.2)
    searched = make_split(listing(names), data)
    gone = draw.draw(st.sets(st.sampled_from(names), max_size=count // 4))
    new = draw.draw(st.lists(st.integers(count, 2 * count), unique=True, max_size=count))
    later = [name for name in names if name not in gone] + [f"{index // 2}_{index}" for index in new]
    rng.shuffle(later)
    try:
        fitted, notes = fit(Searched(searched), listing(later), "here")
    except UserError:
        assert any(set(getattr(searched, part)) <= gone for part in PARTS)
        return
    seen = {*searched.train, *searched.validation}
    assert not set(fitted.test) & seen
    assert not set(fitted.test) & {f"{index // 2}_{index}" for index in new}
    for part in PARTS:
        assert set(getattr(fitted, part)) == set(getattr(searched, part)) - gone
    assert len(notes) == sum(bool(gone & set(getattr(searched, part))) for part in PARTS)
    check_taken(fitted, searched, "here")


def test_drawn_anew_a_seen_case_would_have_been_tested() -> None:
    """What this is for: one file of the test is removed, and the same seed draws another one in its place."""
    names = [f"c{index}_" for index in range(60)]
    data = Data(kind="folder", stratify=False)
    searched = make_split(listing(names), data)
    again = make_split(listing([name for name in names if name != searched.test[0]]), data)
    assert set(again.test) & {*searched.train, *searched.validation}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


def test_a_retraining_elsewhere_tests_on_the_search_s_test_cases_only(
    search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data root is moved, a test file and a training file are gone, a file is new: told, and nothing seen is tested."""
    search.leave()
    moved = tmp_path / "there" / "images"
    shutil.copytree(search.images, moved)
    for name in (search.split.test[0], search.split.train[0]):
        for kind in ("images", "masks"):
            (moved / kind / f"{name}.png").unlink()
    for kind in ("images", "masks"):
        shutil.copy(moved / kind / f"{search.split.train[1]}.png", moved / kind / "a-new-one.png")
    taken = tmp_path / "retrained" / "split.json"
    for _ in range(2):  # and continued
        take_split(search.provenance, taken, data_at(moved), Console(width=300), file=search.file)
        opened = open_for_search(data_at(moved), split_file=taken, cache=tmp_path / "cache")
        tested = [case.id for case in open_test(data_at(moved), taken, reason="measurement")]
        assert sorted(tested) == sorted(search.split.test[1:])
        assert opened.split.train == search.split.train[1:]
        assert opened.split.validation == search.split.validation
        assert any("a-new-one" in note for note in opened.notes)
        said = capsys.readouterr().out
        assert f"1 of {len(search.split.test)} test cases of the search are not here, and are left out: {search.split.test[0]}" in said
        assert f"1 of {len(search.split.train)} train cases of the search are not here" in said


def test_a_configuration_without_its_split_is_refused_until_it_is_given(search: Search, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    shutil.copy(search.split_file, kept)
    search.leave()
    beside(search.file).unlink()
    taken, data = tmp_path / "retrained" / "split.json", data_at(search.images)
    with pytest.raises(UserError, match="the split of its search is not here") as refused:
        take_split(search.provenance, taken, data, Console(), file=search.file)
    assert "best.split.json" in refused.value.todo
    assert "the split file" in refused.value.todo
    assert not taken.exists()
    take_split(search.provenance, taken, data, Console(), file=search.file, given=kept)  # the advice, followed
    assert read_split(taken) == search.split
    take_split(search.provenance, taken, data, Console(), file=search.file)  # continued without it: it was taken over before
    kept.rename(beside(search.file))
    other = tmp_path / "other" / "split.json"
    take_split(search.provenance, other, data, Console(), file=search.file)
    assert read_split(other) == search.split


@pytest.mark.parametrize("what", ["beside", "given", "embedded"])
def test_an_altered_split_is_refused(search: Search, tmp_path: Path, what: str) -> None:
    search.leave()
    values = json.loads(beside(search.file).read_text())
    values["test"][0], values["train"][0] = values["train"][0], values["test"][0]
    altered = tmp_path / "altered.json"
    altered.write_text(json.dumps(values))
    provenance = dict(search.provenance)
    if what == "embedded":
        provenance[IDS] = values
    elif what == "beside":
        beside(search.file).write_text(json.dumps(values))
    given = altered if what == "given" else None
    with pytest.raises(UserError, match=r"altered since the export|this is not the split that the configuration was searched on"):
        take_split(provenance, tmp_path / "new" / "split.json", data_at(search.images), Console(), file=search.file, given=given)
    assert not (tmp_path / "new").exists()


def test_the_same_ids_in_another_order_or_layout_are_the_same_split(search: Search) -> None:
    values = json.loads(search.split_file.read_text())
    beside(search.file).write_text(json.dumps({key: values[key] for key in reversed(values)} | {"test": values["test"][::-1]}) + "\r\n")
    search.leave()
    found = find_searched(search.provenance, search.file)
    assert found is not None
    assert set(found.split.test) == set(search.split.test)


def test_ids_go_into_a_printed_configuration(search: Search, tmp_path: Path) -> None:
    provenance = {"study": "mine", **provenance_of(search.split_file, ids=True)}
    search.leave()
    beside(search.file).unlink()
    read = yaml.safe_load(yaml.safe_dump(provenance))
    found = find_searched(read, search.file)
    assert found is not None
    assert found.split == search.split


def test_a_study_in_a_home_that_moved_is_found_and_one_of_the_same_name_is_not_taken_for_it(search: Search, tmp_path: Path) -> None:
    studies = tmp_path / "elsewhere" / "mine" / "split.json"
    studies.parent.mkdir(parents=True)
    search.split_file.rename(studies)
    beside(search.file).unlink()
    found = find_searched(search.provenance, search.file, studies=[studies])
    assert found is not None
    assert (found.split, found.study) == (search.split, studies)
    write_split(make_split(listing([f"c{i:02}" for i in range(20)]), Data(kind="folder", split_seed=9)), studies)
    with pytest.raises(UserError, match="is not here"):
        find_searched(search.provenance, search.file, studies=[studies])


def test_an_export_of_an_earlier_version_needs_the_study_or_its_split(
    search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a path and no digest: a file of whatever content beside it proves nothing."""
    old = {key: value for key, value in search.provenance.items() if key != DIGEST}
    found = find_searched(old, search.file)
    assert found is not None
    assert found.study == search.split_file
    search.leave()
    with pytest.raises(UserError, match=r"without a proof of its split.*nothing says whether best\.split\.json is the split of") as refused:
        find_searched(old, search.file)
    assert str(search.split_file) in refused.value.what
    assert "export it again where study mine is" in refused.value.todo
    taken = tmp_path / "retrained" / "split.json"
    take_split(old, taken, data_at(search.images), Console(width=300), file=search.file, given=beside(search.file))  # at one's own word
    assert read_split(taken) == search.split
    assert "nothing proves that" in capsys.readouterr().out
    beside(search.file).unlink()
    with pytest.raises(UserError, match="without a proof of its split") as refused:
        find_searched(old, search.file)
    assert "best.split.json" not in str(refused.value)  # to put it there would not help


def test_an_experiment_that_was_never_searched_has_a_split_of_its_own(search: Search, tmp_path: Path) -> None:
    assert find_searched({}, search.file) is None
    assert provenance_beside(search.file) == {}
    assert provenance_beside(tmp_path / "experiment.yaml") == {}


def test_an_experiment_in_a_study_s_or_a_model_s_folder_keeps_their_split(search: Search, tmp_path: Path) -> None:
    trial = search.split_file.parent / "trials" / "00003" / "experiment.yaml"
    assert provenance_beside(trial) == {SPLIT: str(search.split_file)}
    model = tmp_path / "model"
    model.mkdir()
    (model / "provenance.yaml").write_text(yaml.safe_dump(dict(search.provenance)))
    shutil.copy(search.split_file, model / "split.json")
    search.leave()
    found = find_searched(provenance_beside(model / "experiment.yaml"), model / "experiment.yaml")
    assert found is not None
    assert found.split == search.split


def test_other_data_are_refused_with_the_way_to_train_on_them(search: Search, tmp_path: Path) -> None:
    others = listing(["x", "y", "z"])
    with pytest.raises(UserError, match="none of the 20 cases of the search is here") as refused:
        fit(Searched(search.split), others, "there")
    assert "take the section `provenance` out" in refused.value.todo
    assert find_searched({}, search.file) is None  # the advice, followed


def test_a_part_of_which_nothing_is_left_is_an_error() -> None:
    split = Split(("a", "b"), ("c",), ("d",), "seeded", 0)
    with pytest.raises(UserError, match="no test case of the search is here") as refused:
        fit(Searched(split), listing(["a", "b", "c"]), "there")
    assert "d" in refused.value.todo


def test_other_groups_are_told() -> None:
    split = Split(("a_1", "b_1"), ("c_1",), ("d_1",), "seeded", 0)
    cases = listing(["a_1", "b_1", "c_1", "d_1"])
    same = Searched(split, None, groups_digest(cases, split))
    assert fit(same, cases, "x")[1] == ()
    regrouped = Listing(tuple(Case(c.id, c.image, c.mask, "one patient") for c in cases.cases))
    assert "grouped (into patients) in another way" in fit(same, regrouped, "x")[1][0]


def test_a_retraining_that_began_with_another_split_is_refused(search: Search, tmp_path: Path) -> None:
    values = json.loads(search.split_file.read_text())
    values["validation"], values["test"] = values["test"], values["validation"]
    taken = tmp_path / "retrained" / "split.json"
    taken.parent.mkdir()
    taken.write_text(json.dumps(values))
    with pytest.raises(UserError, match="the split differs from the study's"):
        take_split(search.provenance, taken, data_at(search.images), Console(), file=search.file)


def test_files_and_digests(tmp_path: Path) -> None:
    split = Split(("a",), ("b",), ("c",), "seeded", 0)
    write_split(split, tmp_path / "split.json", "abc", searched="def")
    assert read_split(tmp_path / "split.json") == split
    assert groups_of(tmp_path / "split.json") == "abc"
    assert json.loads((tmp_path / "split.json").read_text())["searched"] == "def"
    assert groups_of(tmp_path / "none.json") == ""
    digest = split_digest(split)
    assert digest == split_digest(Split(("a",), ("b",), ("c",), "seeded", 0))
    others = [
        Split(("a",), ("c",), ("b",), "seeded", 0),
        Split(("a",), ("b",), ("c",), "seeded", 1),
        Split(("a",), ("b",), (), "seeded", 0),
    ]
    assert len({digest, *map(split_digest, others)}) == 4
    assert json.loads(split_text(split)) == {"train": ["a"], "validation": ["b"], "test": ["c"], "origin": "seeded", "seed": 0}
    assert beside(Path("a/b.c.yaml")) == Path("a/b.c.split.json")
    assert provenance_of(tmp_path / "none.json") == {SPLIT: str(tmp_path / "none.json")}


def test_openings_of_a_copy_of_a_copy_reach_the_study(tmp_path: Path) -> None:
    """The model's own split is a copy of the retraining's, and that one of the study's."""
    study, retrained, model = (tmp_path / name / "split.json" for name in ("study", "retrained", "model"))
    for file in (study, retrained, model):
        file.parent.mkdir()
        file.write_text("{}")
    copied_from(retrained, study)
    copied_from(model, retrained)
    record_opening(model, "first", 3)
    record_opening(retrained, "second", 3)
    for file in (study, retrained, model):
        assert [opening["reason"] for opening in openings(file)] == ["first", "second"]
    copied_from(study, model)  # in a circle, by hand
    record_opening(study, "third", 3)
    assert len(openings(model)) == 3


def test_the_split_in_a_model_s_folder_is_preferred_to_one_above_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "split.json").write_text("{}")
    assert find_split(tmp_path / "model", None) == tmp_path / "split.json"
    (tmp_path / "model" / "split.json").write_text("{}")
    assert find_split(tmp_path / "model", None) == tmp_path / "model" / "split.json"


def export_of(search: Search, **provenance: Any) -> None:
    experiment = {
        "data": {"kind": "folder", "root": str(search.images), "image_size": 32, "test_fraction": 0.2, "validation_fraction": 0.2}
    }
    experiment |= {"guide": {"kind": "none"}, "segmenter": {"kind": "unet", "base_width": 2}}
    search.file.write_text(yaml.safe_dump({"provenance": {**search.provenance, **provenance}, "experiment": experiment}))


def test_the_command_refuses_before_anything_is_spent(search: Search, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_of(search)
    kept = search.file.with_name("kept")
    beside(search.file).rename(kept)
    search.leave()
    assert retrain([str(search.file)]) == 2
    said = capsys.readouterr().err
    assert "the split of its search is not here; another one would test on cases that the search has seen" in said
    assert "the split file" in said
    assert not (home / "retrained").exists()
    assert retrain([str(search.file), "--folds", "3"]) == 2  # nor does cross-validation draw its own
    assert not (home / "retrained").exists()
    # The file that is named is looked at: this one holds other ids.
    other = kept.with_name("other.json")
    write_split(Split(search.split.train, search.split.test, search.split.validation, "seeded", 0), other)
    assert retrain([str(search.file), "--split-file", str(other)]) == 2
    assert "this is not the split that the configuration was searched on" in capsys.readouterr().err


def test_without_test_cases_nothing_is_trained_in_vain(search: Search, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = Split(search.split.train, search.split.validation, (), "seeded", 0)
    write_split(split, beside(search.file))
    export_of(search, split_sha256=split_digest(split))
    search.leave()
    assert retrain([str(search.file)]) == 2
    said = capsys.readouterr().err
    assert "no test cases to measure on at the end" in said
    assert "such as 5 folds" in said
