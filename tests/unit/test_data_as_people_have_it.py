"""Whole data sets as they lie on people's disks: read right, or refused by name; never silently different.

Every set has the same twenty ellipses, so that the right mask of each case is known whatever the files look like.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guidino_tune.config import IGNORED, Data
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.sources import apply_implied, find_cases
from guidino_tune.errors import UserError

SIDE, PAIRS = 48, 20
Array = np.ndarray
Make = Callable[[Path], None]


def pair(i: int) -> tuple[Array, Array]:
    """Grey levels of 0 to 255 as float64, and the mask, both (48, 48)."""
    random = np.random.default_rng(i)
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = random.uniform(16, SIDE - 16, 2)
    a, b = random.uniform(6, 12, 2)
    mask = ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
    return np.clip(random.normal(90, 14, (SIDE, SIDE)) + 15 * np.sin(x / 5 + i) + mask * 80, 0, 255), mask


def png(path: Path, array: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def byte(array: Array) -> Array:
    return np.round(array).astype(np.uint8)


def opened(root: Path, **told: Any) -> tuple[SearchData, Data, Any]:
    data = Data(kind="folder", root=str(root), image_size=SIDE, **told)
    listing = find_cases(data)
    data = apply_implied(data, listing)
    return open_for_search(data, cache=root.parent / "cache"), data, listing


def number_of(case_id: str) -> int:
    """Every name here holds the number of its case last but for what a set adds."""
    digits = [int(part) for part in "".join(c if c.isdigit() else " " for c in case_id).split()]
    return digits[-1] if len(digits) == 1 or "P" not in case_id else digits[-2] * 4 + digits[-1]


def right(found: SearchData, *, void: int = 0) -> None:
    for table in (found.train, found.validation):
        for i, name in enumerate(table.ids):
            mask, truth = np.array(table.mask(i)), pair(number_of(name))[1]
            assert (mask[:void] == IGNORED).all()
            assert np.array_equal(mask[void:], truth[void:]), name


def folder(root: Path, image: Callable[[Array], Array], mask: Callable[[Array, int], Array], ending: str = "png") -> None:
    for i in range(PAIRS):
        grey, truth = pair(i)
        if ending == "png":
            png(root / "images" / f"case{i:03d}.png", image(grey))
        else:
            (root / "images").mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / "images" / f"case{i:03d}.tif", image(grey))
        png(root / "masks" / f"case{i:03d}.png", mask(truth, i))


def plain(truth: Array, i: int) -> Array:
    return (truth * 255).astype(np.uint8)


def coloured(truth: Array, i: int) -> Array:
    return (truth[..., None] * np.array([(255, 0, 0), (0, 200, 0)][i % 3 == 0])).astype(np.uint8)


def void(truth: Array, i: int) -> Array:
    labels = truth.astype(np.uint8)
    labels[:4] = 255
    return labels


def test_lesions_in_one_of_two_colours(tmp_path: Path) -> None:
    folder(tmp_path / "data", byte, coloured)
    found, _, _ = opened(tmp_path / "data")
    right(found)
    assert "(0, 200, 0) and (255, 0, 0)" in found.rules.labels.text


def test_a_margin_that_is_no_class(tmp_path: Path) -> None:
    folder(tmp_path / "data", byte, void)
    with pytest.raises(UserError, match="0, 1 and 255") as caught:
        opened(tmp_path / "data")
    assert "data.ignore_label=255" in caught.value.todo
    right(opened(tmp_path / "data", ignore_label=255)[0], void=4)


@pytest.mark.parametrize(("value", "word"), [(0, "empty"), (255, "full")])
def test_masks_from_which_nothing_can_be_learned(value: int, word: str, tmp_path: Path) -> None:
    folder(tmp_path / "data", byte, lambda truth, i: np.full(truth.shape, value, np.uint8))
    with pytest.raises(UserError, match=f"masks are {word}"):
        opened(tmp_path / "data")


def test_empty_training_masks_beside_a_full_validation(tmp_path: Path) -> None:
    folder(tmp_path / "data", byte, lambda truth, i: plain(truth * (i > 15), i))
    for part, ids in (("train", range(16)), ("validation", range(16, 18)), ("test", range(18, 20))):
        (tmp_path / "data" / f"{part}.txt").write_text("".join(f"case{i:03d}\n" for i in ids))
    with pytest.raises(UserError, match="all 16 training masks are empty"):
        opened(tmp_path / "data")


@pytest.mark.parametrize(
    "stored",
    [
        lambda grey: (grey * 64).astype(np.uint16),
        lambda grey: (grey * 16).astype(np.uint16),
        lambda grey: (grey * 8 - 1000).astype(np.int16),
        lambda grey: grey.astype(np.float32),
        lambda grey: (grey / 255).astype(np.float32),
    ],
    ids=["14 bits", "12 bits in 16", "Hounsfield", "float to 255", "float to 1"],
)
def test_deep_images_keep_contrast_and_grey_levels(stored: Callable[[Array], Array], tmp_path: Path) -> None:
    folder(tmp_path / "data", stored, plain, "tif")
    found, _, _ = opened(tmp_path / "data")
    right(found)
    for table in (found.train, found.validation):
        for i, name in enumerate(table.ids):
            image, grey = table.image(i)[..., 0].astype(float), pair(number_of(name))[0]
            assert len(np.unique(image)) > 250
            inside = (image > 0) & (image < 65535)
            assert np.corrcoef(image[inside], grey[inside])[0, 1] > 0.9999
    scales = [np.polyfit(pair(number_of(n))[0].ravel(), found.train.image(i)[..., 0].ravel(), 1)[0] for i, n in enumerate(found.train.ids)]
    assert np.ptp(scales) < 0.05 * np.mean(scales), "one rule for all"


def test_breast_ultrasound_as_published(tmp_path: Path) -> None:
    for i in range(PAIRS):
        grey, truth = pair(i)
        kind = ("benign", "malignant")[i % 2]
        middle = int(np.argwhere(truth)[:, 1].mean())
        left = truth & (np.arange(SIDE) < middle)[None]
        png(tmp_path / "data" / kind / f"{kind} ({i}).png", byte(grey))
        png(tmp_path / "data" / kind / f"{kind} ({i})_mask.png", plain(left if i % 4 == 0 else truth, i))
        if i % 4 == 0:
            png(tmp_path / "data" / kind / f"{kind} ({i})_mask_1.png", plain(truth & ~left, i))
    found, _, listing = opened(tmp_path / "data")
    right(found)
    assert len(listing.cases) == PAIRS
    assert {case.stratum for case in listing.cases} == {"benign", "malignant"}


def test_patients_in_folders_and_in_names(tmp_path: Path) -> None:
    for i in range(PAIRS):
        grey, truth = pair(i)
        for layout, name in (("folders", f"P{i // 4:02d}/s{i % 4}"), ("names", f"P{i // 4:02d}_s{i % 4}")):
            png(tmp_path / layout / "images" / f"{name}.png", byte(grey))
            png(tmp_path / layout / "masks" / f"{name}.png", plain(truth, i))
    by_folder, _, listing = opened(tmp_path / "folders")
    right(by_folder)
    assert len({case.group for case in listing.cases}) == 5
    by_name, _, listing = opened(tmp_path / "names")
    right(by_name)
    advice = next(note for note in listing.notes if "data.group" in note)
    grouped, _, listing = opened(tmp_path / "names", group=advice.split("data.group=")[1].split("'")[0])
    for case_set in (by_folder, grouped):
        parts = [{name[:3] for name in getattr(case_set.split, part)} for part in ("train", "validation", "test")]
        assert sum(map(len, parts)) == 5, "no patient in two parts"


def test_two_channels_and_a_class_of_a_challenge(tmp_path: Path) -> None:
    root = tmp_path / "Dataset001_Lesion"
    for i in range(PAIRS):
        grey, truth = pair(i)
        png(root / "imagesTr" / f"case_{i:03d}_0000.png", byte(grey))
        png(root / "imagesTr" / f"case_{i:03d}_0001.png", byte(255 - grey))
        png(root / "labelsTr" / f"case_{i:03d}.png", truth.astype(np.uint8))
    about = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "lesion": 1}, "numTraining": 20, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(about))
    found, data, _ = opened(root)
    right(found)
    assert (data.channels, data.class_names) == (2, ("lesion",))
    image, grey = found.train.image(0), pair(number_of(found.train.ids[0]))[0]
    assert np.array_equal(image, np.stack([byte(grey), byte(255 - grey)], -1))


DEPTHS: dict[str, Callable[[Array], Array]] = {
    "8 bits": byte,
    "12 bits": lambda grey: (grey * 16).astype(np.uint16),
    "16 bits": lambda grey: (grey * 257).astype(np.uint16),
    "signed": lambda grey: (grey * 8 - 1000).astype(np.int16),
    "float": lambda grey: (grey / 255).astype(np.float32),
}
CODINGS: dict[str, Callable[[Array, int], Array]] = {
    "white": plain,
    "ones": lambda truth, i: truth.astype(np.uint8),
    "deep": lambda truth, i: truth.astype(np.uint16) * 1000,
    "dark red": lambda truth, i: (truth[..., None] * np.array((128, 0, 0))).astype(np.uint8),
    "two colours": coloured,
    "alpha": lambda truth, i: np.dstack([np.zeros((*truth.shape, 3), np.uint8), plain(truth, i)]),
    "void": void,
    "objects": lambda truth, i: (truth * (1 + (np.arange(SIDE) * (i + 2) // SIDE))[None]).astype(np.uint8),
    "inverted numbers": lambda truth, i: np.where(truth, 1, 2).astype(np.uint8),
}
REFUSED = {"void", "objects", "inverted numbers"}


@given(
    depth=st.sampled_from(sorted(DEPTHS)),
    colours=st.booleans(),
    coding=st.sampled_from(sorted(CODINGS)),
    container=st.sampled_from(["png", "tif", "npy"]),
    channels=st.sampled_from([1, 3]),
)
@examples(15)
def test_any_data_set_is_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, depth: str, colours: bool, coding: str, container: str, channels: int
) -> None:
    root = tmp_path_factory.mktemp("set") / "data"
    for i in range(8):
        grey, truth = pair(i)
        image = DEPTHS[depth](grey)
        if colours:
            image = np.stack([image, image // 2 if image.dtype.kind in "ui" else image / 2, image], -1).astype(image.dtype)
        (root / "images").mkdir(parents=True, exist_ok=True)
        path = root / "images" / f"case{i}.{container}"
        if container == "npy":
            np.save(path, image)
        elif container == "tif":
            tifffile.imwrite(path, image)
        elif image.dtype == np.uint8 or (image.dtype == np.uint16 and not colours):
            png(path, image)
        else:
            tifffile.imwrite(path.with_suffix(".tif"), image)  # PNG has no such numbers, or Pillow cannot write them
        png(root / "masks" / f"case{i}.png", CODINGS[coding](truth, i))
    told = {"channels": channels, "validation_fraction": 0.25, "test_fraction": 0}
    if coding in REFUSED:
        with pytest.raises(UserError, match="the masks hold") as caught:
            opened(root, **told)
        assert "--set" in caught.value.todo
        return
    found, _, _ = opened(root, **told)
    right(found)
    for i, name in enumerate(found.train.ids):
        image, grey = found.train.image(i), pair(number_of(name))[0]
        assert image.shape == (SIDE, SIDE, channels)
        first = image[..., 0].astype(float)
        inside = (first > 0) & (first < (255 if image.dtype == np.uint8 else 65535))
        assert np.corrcoef(first[inside], grey[inside])[0, 1] > 0.999
