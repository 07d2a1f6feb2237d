"""Groups: as ``data.group`` says, and as names let one guess; the advice gives exactly the groups it names."""

import random
from collections import Counter

import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from layout_helpers import advised, found, touch

from guidino_tune.config import Data
from guidino_tune.data.sources import find_cases
from guidino_tune.data.sources.groups import guess_groups
from guidino_tune.data.splits import make_split, shared_groups
from guidino_tune.errors import UserError

HEX = [f"{random.Random(n).getrandbits(80):020x}" for n in range(40)]
BASE36 = [f"cj{''.join(random.Random(n).choices('0123456789abcdefghijklmnopqrstuvwxyz', k=23))}" for n in range(60)]


@pytest.mark.parametrize(
    ("names", "groups", "pattern"),
    [
        ([f"P{p:02}_s{s}" for p in range(5) for s in range(4)], [f"P{p:02}" for p in range(5)], "^(P[0-9]+)_"),
        ([f"{p}_{s}" for p in range(90, 120) for s in range(3)], [str(p) for p in range(90, 120)], "^([0-9]+)_"),
        ([f"patient{p}frame{s}" for p in range(9, 12) for s in range(3)], ["patient9", "patient10", "patient11"], "^(patient[0-9]+)frame"),
        ([f"{s:02}-sub-{p}" for p in ("a1", "b2", "c3") for s in range(4)], None, None),
        ([f"TCGA_CS_{p}_19960909_{s}" for p in range(4941, 4946) for s in range(7)], [f"TCGA_CS_{p}" for p in range(4941, 4946)], None),
        ([f"IMG {p}.{s}" for p in range(10, 20) for s in range(2)], [f"IMG {p}" for p in range(10, 20)], None),
        ([f"{p}_{eye}" for p in range(10, 30) for eye in ("left", "right")], [str(p) for p in range(10, 30)], "^([0-9]+)_"),
        ([f"slice{s}_pat{p}" for p in range(10, 15) for s in range(6)], [f"pat{p}" for p in range(10, 15)], "_(pat[0-9]+)$"),
        ([f"{p}_{s}" for p in ("anna", "ben", "cara", "dan") for s in range(6)], ["ben", "dan", "anna", "cara"], "^([A-Za-z]+)_"),
        ([f"vid{v}_frame{s:03}" for v in range(4) for s in range(6)], [f"vid{v}" for v in range(4)], "^(vid[0-9]+)_"),
        ([f"{s}_P{p:02}" for p in range(5) for s in range(4)], [f"P{p:02}" for p in range(5)], "_(P[0-9]+)$"),
        ([f"{p}_{s}" for p in ("A7", "B8", "9C") for s in range(6)], ["9C", "A7", "B8"], None),
    ],
)  # fmt: skip
def test_names_that_share_an_identifier(tmp_path, names, groups, pattern):
    guess = guess_groups(names)
    assert guess is not None
    assert guess.kind == "patients"
    if groups:
        assert list(guess.names) == groups
    if pattern:
        assert guess.pattern == pattern
    touch(tmp_path, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
    listing = found(tmp_path)
    assert {case.group for case in listing.cases} == set(names)  # never used silently
    assert f"names look like {len(guess.names)} patients: " in listing.notes[-1]
    [offer] = advised(listing.notes[-1])
    followed = found(tmp_path, **offer)
    assert {case.group for case in followed.cases} == set(guess.names)
    assert not any("names look like" in note for note in followed.notes)
    assert shared_groups(followed, make_split(followed, Data(kind="folder", test_fraction=0.2, validation_fraction=0.2))) == ()


@pytest.mark.parametrize(
    "names",
    [
        BASE36,
        HEX,
        [f"ISIC_{n:07}" for n in sorted(random.Random(1).sample(range(16000), 200))],
        [f"case_{n:03}" for n in range(50)],
        [f"case{n:03}" for n in range(50)],
        [f"benign ({n})" for n in range(30)] + [f"malignant ({n})" for n in range(30)],
        [f"{kind}_{n}" for kind in ("benign", "malignant", "normal", "cyst") for n in range(30)],
        [f"{n:02}_test" for n in range(1, 21)],
        [f"{n}_training" for n in range(21, 41)],
        [f"{h}_1" for h in HEX],
        ["a", "b", "c"],
        [f"{n:03}" for n in sorted(random.Random(2).sample(range(1000), 100))],
        [f"image_{n}_of_500" for n in range(50)],
    ],
)
def test_no_false_alarm(names):
    assert guess_groups(names) is None


@pytest.mark.parametrize(
    "names", [[f"frame_{n:04}" for n in range(30)], [str(n) for n in range(1, 613)], [f"{n:04}" for n in range(200, 240)]]
)
def test_consecutive_numbers_are_told_as_frames(tmp_path, names):
    guess = guess_groups(names)
    assert guess is not None
    assert guess.kind == "frames"
    touch(tmp_path, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
    note = found(tmp_path).notes[-1]
    assert "frames of a video?" in note
    [offer] = advised(note)
    assert offer == {"group_duplicates": True}
    (tmp_path / "train.txt").write_text("\n".join(names[:20]))
    (tmp_path / "validation.txt").write_text(names[20])
    (tmp_path / "test.txt").write_text("\n".join(names[21:]))
    assert not any("frames of a video?" in note for note in found(tmp_path).notes)  # nothing is drawn


@examples(25)
@given(
    groups=st.dictionaries(st.integers(0, 999), st.integers(2, 5), min_size=3, max_size=12),
    word=st.sampled_from(["P", "pat-", "sub_", "", "Case ", "id."]),
    between=st.sampled_from(["_", "-", " ", "_s", "-img-", "."]),
    width=st.sampled_from([1, 3]),
)
def test_the_advised_pattern_gives_exactly_the_groups(groups, word, between, width):
    names = {f"{word}{p:0{width}}{between}{s}": f"{word}{p:0{width}}" for p, count in groups.items() for s in range(count)}
    guess = guess_groups(names)
    if guess is None:  # a guess need not be made, but what is advised is right
        return
    import re

    assert guess.kind == "patients"
    assert set(guess.names) == set(names.values())
    matched = {name: re.search(guess.pattern, name) for name in names}
    assert {name: match and match[1] for name, match in matched.items()} == names


def test_a_pattern_is_applied_to_paths_then_ids_then_names(tmp_path):
    touch(
        tmp_path,
        *(f"{part}/{kind}/P{p}_{s}.png" for part in ("train", "test") for kind in ("images", "masks") for p in range(4) for s in range(2)),
    )
    for pattern in (r"^(P\d)_", r"images/(P\d)", r"P\d", r"(P.)_.\.png$"):
        listing = found(tmp_path, group=pattern)
        assert Counter(case.group for case in listing.cases) == {f"P{p}": 4 for p in range(4)}
    assert {case.group for case in found(tmp_path, group="^([a-z]+)/").cases} == {"train", "test"}


def test_groups_work_for_published_layouts(tmp_path):
    touch(tmp_path, *(f"{kind}/P{p}_{s}.jpg" for kind in ("images", "masks") for p in range(4) for s in range(3)))
    listing = find_cases(Data(kind="kvasir", root=str(tmp_path)))
    assert "names look like 4 patients: P0, P1, P2 and 1 more" in listing.notes[0]
    [offer] = advised(listing.notes[0])
    listing = find_cases(Data(kind="kvasir", root=str(tmp_path), **offer))
    assert {case.group for case in listing.cases} == {"P0", "P1", "P2", "P3"}


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("^(Q[0-9])", "does not match 8 of 8 cases: images/P0_0.png"),
        ("P0", "does not match 6 of 8 cases: images/P1_0.png"),
        ("(", "is no regular expression"),
        ("images", "puts all 8 cases into one group, 'images'"),
    ],
)
def test_a_pattern_that_does_not_fit_is_named(tmp_path, pattern, says):
    touch(tmp_path, *(f"{kind}/P{p}_{s}.png" for kind in ("images", "masks") for p in range(4) for s in range(2)))
    with pytest.raises(UserError) as caught:
        found(tmp_path, group=pattern)
    assert says in caught.value.what
    assert caught.value.where == f"data.group={pattern}"


def test_two_groups_come_with_the_setting_that_lets_them_be_divided(tmp_path):
    names = [f"vid{v}_frame{s:03}" for v in range(2) for s in range(10)]
    touch(tmp_path, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
    settings = {name: value for offer in advised(found(tmp_path).notes[-1]) for name, value in offer.items()}
    assert settings == {"group": "^(vid[0-9]+)_", "test_fraction": 0}
    split = make_split(found(tmp_path, **settings), Data(kind="folder", **settings))
    assert (len(split.train), len(split.validation)) == (10, 10)
