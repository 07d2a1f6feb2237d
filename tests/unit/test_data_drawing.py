"""Folds and stratified draws: whole groups, every case once, the same test, and parts that are more alike than chance makes them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guidino_tune.config import Data
from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.dividing import draw_split, leak_notes, take_or_draw
from guidino_tune.data.drawing import ENOUGH, cells
from guidino_tune.data.splits import SIZED, TOGETHER, Split, draw_test, fold_of, fold_splits, make_split, read_split, split_apart
from guidino_tune.errors import UserError


def case(name: str, group: str | None = None, stratum: str = "") -> Case:
    return Case(name, Path(f"images/{name}"), Path(f"masks/{name}"), group or name, stratum=stratum)


def data(**changes) -> Data:
    return Data(kind="folder", **changes)


def plain(count: int) -> Listing:
    return Listing(tuple(case(f"c{i:04}") for i in range(count)))


def make_listing(seed: int) -> tuple[Listing, dict[str, float]]:
    """Patients of one to six cases, of up to three kinds; what a patient has published it has as a whole, in part, or not at all."""
    rng = random.Random(seed)
    cases, published, sizes = [], {}, {}
    for group in range(rng.randint(4, 40)):
        part = rng.choice([None, None, None, "trainval", "validation", "test"])
        for index in range(rng.randint(1, 6)):
            name = f"{group}_{index}"
            cases.append(case(name, str(group), rng.choice(["", "", "a", "b"])))
            sizes[name] = rng.choice([0.0, 0.01, 0.1, 0.2, 0.5])
            if part and rng.random() < 0.75:
                published[name] = part
    return Listing(tuple(cases), published), sizes


def listings() -> st.SearchStrategy[tuple[Listing, dict[str, float]]]:
    """One number each, which is drawn at once; a whole listing takes seconds on a busy machine."""
    return st.integers(0, 10**6).map(make_listing)


@given(listings(), st.integers(2, 6), st.integers(0, 3), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_each_case_that_is_not_tested_is_in_one_fold_and_groups_are_whole(given_listing, folds, seed, stratify, sized, rng):
    listing, sizes = given_listing
    settings = data(split_seed=seed, stratify=stratify, folds=folds, test_fraction=0.2)
    asked = sizes if sized else None
    test = draw_test(listing, replace(settings, folds=None, validation_fraction=0.3))
    if len({c.group for c in listing.cases if c.id not in test}) < folds:
        with pytest.raises(UserError, match="cannot be divided into"):
            make_split(listing, settings, asked)
        return
    splits = [make_split(listing, replace(settings, fold=fold), asked) for fold in range(folds)]
    assert {split.test for split in splits} == {test}
    assert sorted(name for split in splits for name in split.validation) == sorted({c.id for c in listing.cases} - set(test))
    fold = {name: number for number, split in enumerate(splits) for name in split.validation}
    group = {c.id: c.group for c in listing.cases}
    assert len({(group[name], number) for name, number in fold.items()}) == len({group[name] for name in fold})
    for number, split in enumerate(splits):
        assert fold_of(split) == (number, folds)
        assert set(split.train) == set(fold) - set(split.validation)
    largest = max(Counter(group[name] for name in fold).values())
    counts = Counter(fold.values()).values()
    assert max(counts) - min(counts) <= 2 * largest
    if largest == 1 or not stratify:
        assert max(counts) - min(counts) <= largest
    mixed = list(listing.cases)
    rng.shuffle(mixed)
    assert make_split(Listing(tuple(mixed), dict(reversed(listing.published.items()))), settings, asked) == splits[0]
    again = fold_splits(listing, splits[0], folds, seed, stratify=stratify, sizes=asked or {})
    assert [(s.train, s.validation, s.test) for s in again] == [(s.train, s.validation, s.test) for s in splits]


def test_seeds_give_other_folds_and_published_validation_is_divided_too():
    listing = Listing(plain(40).cases, {f"c{i:04}": "validation" if i < 10 else "train" for i in range(40)})
    folds = {make_split(listing, data(folds=4, split_seed=seed, test_fraction=0.0)).validation for seed in range(5)}
    assert len(folds) == 5
    split, notes = draw_split(listing, data(folds=4))
    assert len(split.validation) == 9  # 3 of the 30 are the test
    assert not set(split.test) & {f"c{i:04}" for i in range(10)}
    assert notes == ("10 cases are published as validation: with data.folds they are divided with those for training",)
    assert split.origin == "seeded, fold 0 (of 0 to 3)"
    patients = Listing(tuple(case(f"{i}_{j}", str(i)) for i in range(12) for j in range(1 + i)))
    assert len({make_split(patients, data(folds=3, split_seed=seed, test_fraction=0.0)).validation for seed in range(9)}) > 4


def test_too_few_patients_are_refused_with_a_number_that_works():
    listing = Listing(tuple(case(f"{i}_{j}", str(i)) for i in range(4) for j in range(5)))
    with pytest.raises(UserError, match=r"3 groups \(patients\) cannot be divided into 5 folds: 15 cases") as refused:
        make_split(listing, data(folds=5))
    most = int(re.search(r"at most (\d+) folds", refused.value.todo).group(1))
    assert make_split(listing, data(folds=most)).validation


def test_a_stored_split_of_another_fold_is_refused_and_the_advice_works(tmp_path):
    listing, file = plain(30), tmp_path / "split.json"
    split, _ = take_or_draw(listing, data(folds=5, fold=2), file)
    assert read_split(file) == split
    assert take_or_draw(listing, data(folds=5, fold=2), file) == (split, ())
    for changes in ({"folds": 5, "fold": 1}, {"folds": 4, "fold": 2}, {}):
        with pytest.raises(UserError, match="the stored split is of fold 2 of 5") as refused:
            take_or_draw(listing, data(**changes), file)
        values = dict(re.findall(r"data\.(\w+)=(\d+)", refused.value.todo))
        assert take_or_draw(listing, data(**{key: int(value) for key, value in values.items()}), file)[0] == split
    other = tmp_path / "other.json"
    take_or_draw(listing, data(), other)
    with pytest.raises(UserError, match="the stored split is of no fold") as refused:
        take_or_draw(listing, data(folds=5), other)
    assert "data.folds=null data.fold=0" in refused.value.todo


def test_copies_are_in_one_fold():
    pairs = [(f"c{i:04}", f"c{i + 20:04}") for i in range(20)]
    for fold in range(4):
        split, left_out = split_apart(plain(60), data(folds=4, fold=fold), pairs)
        assert left_out == ()
        assert fold_of(split) == (fold, 4)
        assert split.origin.endswith(TOGETHER)
        for part in (split.train, split.validation, split.test):
            assert all((a in part) == (b in part) for a, b in pairs)


def of_many_sizes(count: int, seed: int, cases_per_group: int = 1) -> tuple[Listing, dict[str, float]]:
    """As in skin lesions or polyps: most are small, a few fill the image; cases of one patient are alike."""
    rng = np.random.default_rng(seed)
    patients = rng.beta(0.8, 4, count // cases_per_group)
    cases = [case(f"p{i}_{j}", f"p{i}") for i in range(len(patients)) for j in range(cases_per_group)]
    return Listing(tuple(cases)), {c.id: float(np.clip(patients[int(c.group[1:])] * rng.uniform(0.7, 1.3), 0, 1)) for c in cases}


def gaps(splits: Sequence[Split], sizes: dict[str, float]) -> float:
    """Mean over splits of the difference between the mean foreground of validation and of training."""
    return float(np.mean([abs(np.mean([sizes[n] for n in s.validation]) - np.mean([sizes[n] for n in s.train])) for s in splits]))


@pytest.mark.parametrize(("count", "per_group", "folds", "least"), [(200, 1, None, 4), (600, 3, 5, 3)])
def test_validation_has_the_sizes_of_training(count, per_group, folds, least):
    """Over 100 seeds, against the plain draw of the same seed: the difference of mean foreground is several times smaller."""
    listing, sizes = of_many_sizes(count, 0, per_group)
    settings = data(folds=folds, validation_fraction=0.1, test_fraction=0.0)
    drawn = [make_split(listing, replace(settings, split_seed=seed), sizes) for seed in range(100)]
    plain_ones = [make_split(listing, replace(settings, split_seed=seed, stratify=False), sizes) for seed in range(100)]
    ratio = gaps(plain_ones, sizes) / gaps(drawn, sizes)
    print(f"{count} cases, {per_group} per group, folds {folds}: plain {gaps(plain_ones, sizes):.4f}, ratio {ratio:.1f}")
    assert ratio > least
    assert all(SIZED in split.origin for split in drawn)
    wanted = count // (folds or 10)
    assert all(abs(len(split.validation) - wanted) <= per_group for split in drawn)
    # Every case is drawn for validation now and then: none is bound to a part by its size.
    counts = Counter(name for split in drawn for name in split.validation)
    assert len(counts) == count
    assert max(counts.values()) < 100 * 5 / (folds or 10)


def test_each_part_has_its_share_of_each_kind():
    """Exactly, as far as whole numbers allow; the test too, of which no size is known."""
    kinds = {"polyp": 100, "ulcer": 40, "none": 60}
    cases = tuple(case(f"{kind}{i:03}", stratum=kind) for kind, number in kinds.items() for i in range(number))
    split = make_split(Listing(cases), data(validation_fraction=0.1, test_fraction=0.2))
    for part, share in ((split.test, 0.2), (split.validation, 0.1)):
        assert Counter(name[:-3] for name in part) == {kind: share * number for kind, number in kinds.items()}
    for fold in range(4):
        split = make_split(Listing(cases), data(folds=4, fold=fold, test_fraction=0.2))
        assert Counter(name[:-3] for name in split.validation) == {"polyp": 20, "ulcer": 8, "none": 12}
    unstratified = make_split(Listing(cases), data(stratify=False))
    assert unstratified == make_split(Listing(tuple(replace(c, stratum="") for c in cases)), data())


def test_images_without_foreground_are_shared_out():
    sizes = {f"c{i:04}": 0.0 if i < 40 else 0.1 + i / 1000 for i in range(200)}
    for seed in range(20):
        split = make_split(plain(200), data(validation_fraction=0.2, test_fraction=0.0, split_seed=seed), sizes)
        assert abs(sum(sizes[name] == 0 for name in split.validation) - 8) <= 1


@given(listings(), st.integers(0, 5))
def test_the_test_depends_on_no_size_and_on_no_fraction_of_validation(given_listing, seed):
    listing, sizes = given_listing
    settings = data(split_seed=seed, test_fraction=0.2)
    test = draw_test(listing, settings)
    try:
        assert make_split(listing, settings, sizes).test == test
        assert make_split(listing, replace(settings, validation_fraction=0.4)).test == test
    except UserError:
        assume(False)


@given(st.integers(3, 2 * ENOUGH - 1), st.integers(0, 9))
def test_few_cases_are_drawn_as_they_always_were(count, seed):
    sizes = {f"c{i:04}": i / count for i in range(count)}
    settings = data(split_seed=seed, test_fraction=0.0, validation_fraction=0.2)
    assert make_split(plain(count), settings, sizes) == make_split(plain(count), replace(settings, stratify=False))
    assert cells(plain(count).cases, sizes) == {}


def test_rare_kinds_share_a_cell_and_no_cell_is_small():
    cases = [case(f"{kind}{i}", stratum=kind) for kind, number in {"a": 57, "b": 3, "c": 4, "d": 9}.items() for i in range(number)]
    rng = random.Random(0)
    found = cells(cases, {c.id: rng.random() for c in cases})
    counts = Counter(found.values())
    assert min(counts.values()) >= ENOUGH
    assert len({found[c.id] for c in cases if c.stratum in "bcd"}) == 1
    assert len(counts) == 6


def test_cases_whose_size_is_unknown_are_divided_like_the_others():
    sizes = {f"c{i:04}": i / 100 for i in range(50)}
    split = make_split(plain(100), data(test_fraction=0.0, validation_fraction=0.2), sizes)
    assert sum(name in sizes for name in split.validation) == 10


def test_sizes_are_asked_for_where_they_matter_and_never_of_the_test():
    asked: list[set[str]] = []

    def survey(pool):
        asked.append({c.id for c in pool})
        return {c.id: 0.1 for c in pool}

    split, _ = draw_split(plain(50), data(), survey=survey)
    assert asked == [{*split.train, *split.validation}]
    draw_split(plain(50), data(stratify=False), survey=survey)
    draw_split(plain(10), data(), survey=survey)
    draw_split(Listing(plain(50).cases, {"c0000": "validation"}), data(), survey=survey)
    assert len(asked) == 1


def test_divided_patients_are_told_with_numbers_and_what_to_do():
    cases = (case("a1", "a"), case("a2", "a"), case("b1", "b"), case("b2", "b"), case("c1", "c"))
    listing = Listing(cases)
    (note,) = leak_notes(listing, Split(("a1", "b1"), ("b2", "c1"), ("a2",), "published", 0))
    assert "2 groups (patients) have cases in more than one part of the split (published): a, b" in note
    assert "2 in train, 1 in validation, 1 in test" in note
    assert "Test scores are then too good, for 1 of them are tested" in note
    assert "data.group" in note
    assert leak_notes(listing, Split(("a1", "a2"), ("b1", "b2"), ("c1",), "seeded", 0)) == ()
    (note,) = leak_notes(listing, Split(("a1",), ("a2",), ("c1",), "published", 0))
    assert "Validation scores are then too good" in note
