"""Copies and near-copies: found among pictures that differ, not found among those that only look alike, and never divided."""

import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from guidino_tune.config import Data
from guidino_tune.data import copies
from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.copies import copies_among, copies_in_files, near_copies
from guidino_tune.data.splits import make_split, representatives, split_apart
from guidino_tune.errors import UserError


def scene(seed: int, size: int = 96) -> np.ndarray:
    """Smooth coloured spots in a round black frame, as an endoscope shows."""
    rng = np.random.default_rng(seed)
    fine = gaussian_filter(rng.normal(size=(size, size, 3)), (size / 30, size / 30, 0))
    broad = gaussian_filter(rng.normal(size=(size, size, 3)), (size / 8, size / 8, 0))
    picture = 120 + 40 * fine / fine.std() + 25 * broad / broad.std()
    y, x = np.mgrid[:size, :size] - size / 2
    return (np.clip(picture, 30, 255) * (np.hypot(x, y) < 0.49 * size)[..., None]).astype(np.uint8)


def changed(image: np.ndarray, how: str, tmp_path: Path) -> np.ndarray:
    picture, size = Image.fromarray(image), image.shape[0]
    if how == "jpeg":
        picture.save(tmp_path / "x.jpg", quality=40)
        return np.asarray(Image.open(tmp_path / "x.jpg"))
    if how == "smaller":
        return np.asarray(picture.resize((size * 2 // 3, size * 3 // 4), Image.Resampling.BILINEAR))
    if how == "moved":
        return np.roll(image, (size // 24, -size // 32), (0, 1))
    if how == "brighter":
        return np.clip(image * 1.1 + 5, 0, 255).astype(np.uint8)
    return np.clip(image + np.random.default_rng(0).normal(0, 6, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("how", ["jpeg", "smaller", "moved", "brighter", "noise"])
def test_a_changed_copy_is_near_and_nothing_else_is(how: str, tmp_path: Path) -> None:
    pictures = [(f"s{seed:02}", scene(seed)) for seed in range(40)]
    found = copies_among([*pictures, ("t", changed(scene(7), how, tmp_path))])
    assert (found.exact, found.near) == ((), (("s07", "t"),))


def test_the_same_pixels_are_exact_whatever_the_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.bmp", "c.tif"):
        Image.fromarray(scene(1)).save(tmp_path / name)
    Image.fromarray(scene(2)).save(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes(b"no image")
    cases = [Case(path.stem, path, tmp_path / "mask that nobody opens", path.stem) for path in sorted(tmp_path.iterdir())]
    told: list[tuple[int, int]] = []
    found = copies_in_files(cases, lambda done, total: told.append((done, total)))
    assert found.exact == (("a", "b"), ("a", "c"))
    assert (found.near, found.unreadable) == ((), ("e",))
    assert told == [(done, 5) for done in range(1, 6)]


def test_plain_pictures_and_few_of_them_are_no_trouble() -> None:
    plain = [(str(level), np.full((40, 30, 3), level, np.uint8)) for level in (0, 20, 100, 255)]
    assert copies_among(plain).pairs == ()
    assert copies_among([*plain, ("copy", plain[2][1])]).exact == (("100", "copy"),)
    assert copies_among([]).pairs == copies_among(plain[:1]).pairs == ()


def test_spots_on_plain_skin_only_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all images of a set are like that, a correlation that is rare elsewhere is no sign of a copy."""
    y, x = np.mgrid[:64, :64]
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(80):
        a, b = rng.uniform(5, 18, 2)
        cy, cx = rng.uniform(26, 38, 2)
        spot = np.exp(-(((y - cy) / a) ** 2 + ((x - cx) / b) ** 2))[..., None]
        rough = gaussian_filter(rng.normal(size=(64, 64)), 4)[..., None]
        spot *= np.clip(1 + 0.35 * rough / rough.std(), 0, 1.5)
        pictures.append((f"{index:02}", (220 - spot * rng.uniform(40, 130, 3) + rng.normal(0, 3, (64, 64, 1))).astype(np.uint8)))
    copy = np.clip(pictures[5][1] + rng.normal(0, 2, (64, 64, 3)), 0, 255).astype(np.uint8)
    found = copies_among([*pictures, ("copy", copy)])
    monkeypatch.setattr(copies, "DEVIATIONS", -9.0)
    alike = copies_among([*pictures, ("copy", copy)])
    assert len(alike.near) > 50, "they should look alike, or this shows nothing"
    assert ("05", "copy") in found.near
    assert len(found.near) < len(alike.near) / 5


def test_thousands_of_one_layout_are_compared_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As X-rays are: from afar all of them look alike, so that nearly all of a million pairs are candidates."""
    monkeypatch.setattr(copies, "MOST", 2_500)
    rng = np.random.default_rng(0)
    layout = gaussian_filter(rng.normal(size=(32, 32, 1)), (8, 8, 0))
    details = gaussian_filter(rng.normal(size=(1500, 32, 32, 1)).astype(np.float32), (0, 1, 1, 0))
    pictures = np.clip(130 + 50 * layout / layout.std() + 20 * details / details.std(), 30, 255).astype(np.uint8).repeat(3, axis=3)
    pictures[1499] = np.clip(pictures[17] + rng.normal(0, 2, (32, 32, 3)), 0, 255)
    start = time.perf_counter()
    found, passed_over = near_copies(pictures)
    assert time.perf_counter() - start < 10
    assert found == [(17, 1499)]
    assert passed_over > 750_000
    assert "were not looked at closely" in copies.Copies((), (), passed_over=passed_over).note[0]


def test_identical_images_are_linked_to_the_first_and_told_across_all_parts() -> None:
    frame = scene(3)
    found = copies_among(
        [*((f"blank{index:04}", frame) for index in range(2000)), ("other", scene(4)), ("zfar", changed(frame, "noise", Path()))]
    )
    assert len(found.exact) == 1999
    assert found.near == (("blank0000", "zfar"),)
    assert (found.passed_over, found.note) == (0, ())
    # The first is in no part; those after it still tell.
    parts = {"blank0007": "train", "blank0008": "train", "blank0009": "test", "zfar": "test"}
    across = found.across(parts)
    assert across.exact == (("blank0007", "blank0009"),)
    assert across.near == (("blank0007", "zfar"),)
    assert found.across({"blank0001": "test", "zfar": "test"}).pairs == ()


@given(st.data())
@examples(25)
def test_together_is_the_closure_of_pairs_in_any_order(draw: st.DataObject) -> None:
    names = [f"n{index}" for index in range(draw.draw(st.integers(1, 12)))]
    pairs = draw.draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), max_size=12))
    expected = {name: {name} for name in names}
    for _ in names:  # the plain way: unite until nothing changes
        for a, b in pairs:
            union = expected[a] | expected[b]
            for name in union:
                expected[name] = union
    found = representatives(names, pairs)
    assert found == {name: min(expected[name]) for name in names}
    assert representatives(reversed(names), [(b, a) for a, b in reversed(pairs)]) == found


@given(st.data())
@examples(40)
def test_no_copies_are_ever_in_two_parts(draw: st.DataObject) -> None:
    count = draw.draw(st.integers(4, 30))
    names = [f"c{index:02}" for index in range(count)]
    patients = draw.draw(st.lists(st.integers(0, count), min_size=count, max_size=count))
    cases = tuple(Case(name, Path(name), Path(name), f"p{patient}") for name, patient in zip(names, patients, strict=True))
    parts = draw.draw(st.lists(st.sampled_from(["", "train", "validation", "test", "trainval"]), min_size=count, max_size=count))
    published = {name: part for name, part in zip(names, parts, strict=True) if part} if draw.draw(st.booleans()) else {}
    pairs = draw.draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), max_size=15))
    data = Data(kind="folder", validation_fraction=0.2, test_fraction=0.2, split_seed=draw.draw(st.integers(0, 3)))
    try:
        split, left_out = split_apart(Listing(cases, published), data, pairs)
    except UserError:
        return  # a part would be empty: test_a_part_of_copies_only_is_refused
    part_of = {name: part for part in ("train", "validation", "test") for name in getattr(split, part)}
    assert all(part_of.get(a, part_of.get(b)) == part_of.get(b, part_of.get(a)) for a, b in pairs)
    assert part_of.keys() | set(left_out) == set(names)
    assert not part_of.keys() & set(left_out)
    assert {name for name, part in published.items() if part == "test"} <= set(split.test)  # the published test is never touched
    if not any(a != b for a, b in pairs):
        plain = make_split(Listing(cases, published), data)
        assert (split.train, split.validation, split.test) == (plain.train, plain.validation, plain.test)
    if not published:
        assert left_out == ()  # what is drawn by us need not lose anything
    shuffled = Listing(tuple(draw.draw(st.permutations(cases))), published)
    assert split_apart(shuffled, data, [(b, a) for a, b in reversed(pairs)]) == (split, left_out)


def test_a_part_of_copies_only_is_refused() -> None:
    cases = tuple(Case(name, Path(name), Path(name), name) for name in "abcd")
    published = {"a": "train", "b": "validation", "c": "validation", "d": "test"}
    with pytest.raises(UserError, match="no case is left in train") as caught:
        split_apart(Listing(cases, published), Data(kind="folder"), [("a", "b")])
    assert caught.value.where == "data.group_duplicates"


def test_deep_images_are_compared_by_what_they_show(tmp_path: Path) -> None:
    """Those of one set may be dark or bright as a whole; a per-file stretch is for the comparison alone."""
    cases = []
    for number in range(6):
        picture = scene(number // 2)[..., 0].astype(np.float32)  # pairs of one picture each
        if number % 2:
            picture = picture + np.random.default_rng(number).normal(0, 0.5, picture.shape)
        values = (picture * 8 - 1000).astype(np.int16)
        tifffile.imwrite(tmp_path / f"{number}.tif", values)
        cases.append(Case(id=str(number), image=tmp_path / f"{number}.tif", mask=tmp_path, group=""))
    tifffile.imwrite(tmp_path / "6.tif", tifffile.imread(tmp_path / "0.tif"))
    cases.append(Case(id="6", image=tmp_path / "6.tif", mask=tmp_path, group=""))
    found = copies_in_files(cases)
    assert found.exact == (("0", "6"),)
    assert found.near == (("0", "1"), ("2", "3"), ("4", "5"))


def test_decoded_images_of_any_depth_and_number_of_channels_are_compared() -> None:
    for channels in (1, 2, 5):
        deep = np.repeat(scene(0)[..., :1], channels, 2).astype(np.uint16) * 257
        assert copies_among([("a", deep), ("b", deep.copy())]).exact == (("a", "b"),)
