"""Splits: disjoint, complete, whole groups, and the same on every machine."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guidino_tune.config import Data
from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.splits import Split, check_split, make_split, read_split, shared_groups, write_split
from guidino_tune.errors import UserError


def case(name: str, group: str | None = None) -> Case:
    return Case(name, Path(f"images/{name}"), Path(f"masks/{name}"), group or name)


def plain(count: int) -> Listing:
    return Listing(tuple(case(f"c{i:04}") for i in range(count)))


def data(**changes) -> Data:
    return Data(kind="folder", **changes)


@st.composite
def listings(draw) -> Listing:
    """Cases in groups; a group is published as a whole, in part, or not at all."""
    cases, published = [], {}
    for group in range(draw(st.integers(3, 25))):
        part = draw(st.sampled_from([None, None, "train", "trainval", "validation", "test"]))
        for index in range(draw(st.integers(1, 4))):
            name = f"{group}_{index}"
            cases.append(case(name, str(group)))
            if part and draw(st.integers(0, 3)):
                published[name] = part
    return Listing(tuple(cases), published)


@given(listings(), st.integers(0, 5), st.floats(0.05, 0.4), st.floats(0, 0.4), st.randoms(use_true_random=False))
def test_split_is_disjoint_complete_keeps_groups_and_ignores_order(listing, seed, validation, test, rng):
    settings = data(split_seed=seed, validation_fraction=validation, test_fraction=test)
    try:
        split = make_split(listing, settings)
    except UserError:
        assume(False)
    parts = [split.train, split.validation, split.test]
    assert sorted(name for part in parts for name in part) == sorted(case.id for case in listing.cases)
    assert shared_groups(listing, split) == ()
    for name, part in listing.published.items():
        if part in ("validation", "test"):
            assert name in getattr(split, part)
        elif part == "trainval" and "test" in listing.published.values():
            assert name not in split.test
    mixed = list(listing.cases)
    rng.shuffle(mixed)
    assert make_split(Listing(tuple(mixed), dict(reversed(listing.published.items()))), settings) == split


@given(st.integers(3, 400), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_single_cases_give_exact_fractions(count, validation, test):
    sizes = [max(1, round(fraction * count)) for fraction in (validation, test)]
    assume(sum(sizes) < count)
    split = make_split(plain(count), data(validation_fraction=validation, test_fraction=test))
    assert [len(split.validation), len(split.test)] == sizes
    assert split.origin == "seeded"


def test_drawn_split_is_pinned():
    """Another draw for the same seed would silently change every study."""
    split = make_split(plain(20), data(split_seed=7, validation_fraction=0.1, test_fraction=0.1))
    assert (split.validation, split.test) == (("c0003", "c0005"), ("c0010", "c0018"))


def test_seed_changes_the_draw_and_validation_fraction_leaves_test_alone():
    splits = [make_split(plain(100), data(split_seed=seed)) for seed in range(5)]
    assert len({split.test for split in splits}) == 5
    assert make_split(plain(100), data(validation_fraction=0.3)).test == splits[0].test


def test_published_parts_are_kept_and_the_origin_is_told():
    names = [f"c{i:04}" for i in range(40)]
    both = {name: "test" if i < 10 else "trainval" for i, name in enumerate(names)}
    split = make_split(Listing(plain(40).cases, both), data(validation_fraction=0.2))
    assert split.test == tuple(names[:10])
    assert len(split.validation) == 6  # a fifth of the 30 that may be drawn
    assert split.origin == "published test, seeded validation"
    isic = {name: "validation" if i < 10 else "train" for i, name in enumerate(names)}
    split = make_split(Listing(plain(40).cases, isic), data(test_fraction=0.1))
    assert split.validation == tuple(names[:10])
    assert len(split.test) == 3
    assert split.origin == "published validation, seeded test"
    assert make_split(Listing(plain(40).cases, isic), data(test_fraction=0.0)).origin == "published validation, no test"
    whole = {name: ("train", "validation", "test")[i % 3] for i, name in enumerate(names)}
    assert make_split(Listing(plain(40).cases, whole), data()).origin == "published"


def test_published_leak_is_reported_not_hidden():
    listing = Listing(
        (case("a", "p"), case("b", "p"), case("c"), case("d")), {"a": "trainval", "b": "test", "c": "trainval", "d": "trainval"}
    )
    split = make_split(listing, data(validation_fraction=0.3))
    assert split.test == ("b",)
    assert shared_groups(listing, split) == ("p",)


def test_too_few_cases_are_an_error():
    with pytest.raises(UserError, match="no cases are left for"):
        make_split(plain(2), data())
    with pytest.raises(UserError, match="validation"):
        make_split(plain(20), data(validation_fraction=0.0))
    one_patient = Listing(tuple(case(f"c{i}", "p") for i in range(9)))
    with pytest.raises(UserError, match="9 cases in 1 groups"):
        make_split(one_patient, data())


def test_written_split_is_read_back_and_leaves_nothing_else(tmp_path):
    split = make_split(plain(30), data())
    write_split(split, tmp_path / "study" / "split.json")
    assert read_split(tmp_path / "study" / "split.json") == split
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["split.json"]


def values(**changes) -> str:
    return json.dumps({"train": ["a"], "validation": ["b"], "test": ["c"], "origin": "seeded", "seed": 0} | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (values(test=["b"]), "1 cases are in it twice: b"),
        (values(train=["a", "a"]), "twice: a"),
        (values(train=[]), "train or validation is empty"),
        (values(validation="b"), "no lists of case ids"),
        (values(test=[1]), "no lists of case ids"),
        (values(seed="0"), "seed a whole number"),
        ("{", "no valid JSON"),
        ("[]", "no lists of case ids"),
    ],
)
def test_malformed_split_files_are_errors(tmp_path, text, message):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_split(path)
    assert str(path) in str(caught.value)


def test_missing_split_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot read the split"):
        read_split(tmp_path / "split.json")


def test_split_of_other_data_is_an_error(tmp_path):
    split = Split(("c0000", "x", "y", "z"), ("c0001",), ("w",), "seeded", 0)
    with pytest.raises(UserError, match="4 cases of the stored split are not in the data set: w, x, y and 1 more"):
        check_split(split, plain(3), tmp_path / "split.json")


def test_random_module_has_no_part_in_it():
    random.seed(1)
    first = make_split(plain(50), data())
    random.seed(2)
    assert make_split(plain(50), data()) == first
