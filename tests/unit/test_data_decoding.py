"""Files of a case into image and mask, by the rules of a data set (what values mean: test_data_labels, test_data_intensity)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from guidino_tune.config import Data
from guidino_tune.data import raw
from guidino_tune.data.cases import Case
from guidino_tune.data.decoding import read_case, read_case_and_digest, read_image, read_mask
from guidino_tune.data.intensity import IntensityRule
from guidino_tune.data.labels import LabelRule
from guidino_tune.data.rules import Rules, label_rule, survey_masks
from guidino_tune.errors import UserError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
BINARY = Rules(LabelRule("values", {0: 0, 255: 1}), IntensityRule("8-bit"))
FOUR = Rules(LabelRule("values", {value: value for value in range(4)}), IntensityRule("8-bit"))


def save(path: Path, array, mode=None, **options) -> Path:
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def disk(size=64, radius=20) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return ((x**2 + y**2) < radius**2).astype(np.uint8)


def decoded(path: Path, num_classes: int = 1) -> np.ndarray:
    """The mask by the rule that this file alone gives."""
    data = Data(kind="folder", num_classes=num_classes)
    return read_mask(path, label_rule(survey_masks([Case("a", path, path, "a")], data), data))


def test_jpeg_ringing_stays_background(tmp_path):
    truth = disk()
    path = save(tmp_path / "m.jpg", truth * 255, quality=60)
    stored = np.asarray(Image.open(path))
    assert ((stored > 0) & (truth == 0)).sum() > 20, "the file should ring, or this shows nothing"
    mask = decoded(path)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, truth)


@pytest.mark.parametrize(
    "stored",
    [
        lambda m: m * 255,
        lambda m: m,
        lambda m: m.astype(np.uint16) * 65535,
        lambda m: m.astype(np.uint16) * 255,
        lambda m: m.astype(bool),
        lambda m: np.repeat(m[..., None] * 255, 3, 2),
        lambda m: np.dstack([m * 255] * 3 + [np.full_like(m, 255)]),
    ],
    ids=["255", "0-1", "16 bit", "255 in 16 bit", "1 bit", "rgb", "rgba"],
)
def test_masks_of_every_kind_are_the_same(tmp_path, stored):
    assert np.array_equal(decoded(save(tmp_path / "m.png", stored(disk()))), disk())


def test_threshold_is_at_half(tmp_path):
    assert np.array_equal(decoded(save(tmp_path / "m.png", np.array([[0, 127, 128, 255]], np.uint8))), [[0, 0, 1, 1]])


def test_dark_colours_of_a_label_palette_are_foreground(tmp_path):
    picture = Image.fromarray(disk(), "L").convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0])  # luminance 38
    assert np.array_equal(decoded(save(tmp_path / "m.png", picture)), disk())


def labels(num_classes: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, num_classes + 1, (9, 7)).astype(np.uint8)


def palette(array: np.ndarray, colours: list[int], **options) -> Image.Image:
    picture = Image.fromarray(array, "L").convert("P")
    picture.putpalette(colours)
    picture.info.update(options)
    return picture


@pytest.mark.parametrize(
    ("ending", "stored"),
    [
        ("png", lambda m: m),
        ("png", lambda m: m.astype(np.uint16)),
        ("tif", lambda m: m.astype(np.uint16)),
        ("tif", lambda m: m.astype(np.int32)),
        ("bmp", lambda m: m),
        ("png", lambda m: palette(m, [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])),
        ("png", lambda m: palette(m, [9, 9, 9, 0, 0, 0, 5, 5, 5, 200, 200, 200])),
        ("png", lambda m: palette(m, [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0], transparency=0)),
        ("gif", lambda m: palette(m, [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])),
    ],
    ids=["grey", "16 bit", "16 bit TIFF", "32 bit TIFF", "bmp", "colour palette", "grey palette", "transparent palette", "gif"],
)
def test_labels_of_every_kind_are_taken_as_they_are(tmp_path, ending, stored):
    path = save(tmp_path / f"m.{ending}", stored(labels()))
    mask = decoded(path, 3)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, labels())
    assert np.array_equal(decoded(path, 200), labels())  # not every class need be there


def test_a_bit_mask_is_a_label_map_of_one_class(tmp_path):
    assert np.array_equal(decoded(save(tmp_path / "m.png", disk().astype(bool)), 2), disk())


def test_labels_turn_with_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decoded(save(tmp_path / "m.png", labels(), exif=exif), 3), np.rot90(labels(), -1))


@pytest.mark.parametrize(
    ("name", "array", "words", "todo"),
    [
        ("high.png", labels(5), "0, 1, 2, 3, 4 and 5, but with data.num_classes=3 they are 0 to 3", "data.num_classes=5"),
        ("binary.png", disk() * 255, "0 and 255, but", "data.num_classes=1"),
        ("deep.png", labels().astype(np.uint16) * 300, "0, 300, 600 and 900", "class_3: 900"),
        ("below.tif", labels().astype(np.int32) - 1, "-1, 0, 1 and 2", "class_1: -1"),
        ("lossy.jpg", labels(), "JPEG cannot hold labels", "PNG or TIFF"),
        ("five.tif", np.zeros((9, 7, 5), np.uint8), "has 5 channels", "one value for each pixel"),
    ],
)
def test_what_is_no_label_map_is_refused_with_a_reason(tmp_path, name, array, words, todo):
    path = tmp_path / name
    tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig") if name.startswith("five") else save(path, array)
    with pytest.raises(UserError, match=words) as caught:
        decoded(path, 3)
    assert todo in caught.value.todo


def test_a_case_with_classes_has_its_labels_and_the_same_digest(tmp_path):
    image, mask = save(tmp_path / "a.png", np.zeros((9, 7), np.uint8)), save(tmp_path / "b.png", labels())
    assert np.array_equal(read_case(Case("a", image, mask, "a"), FOUR)[1], labels())
    digests = {read_case_and_digest(Case("a", image, mask, "a"), rules)[2] for rules in (FOUR, replace(FOUR, channels=1))}
    assert len(digests) == 1


def test_broken_files_are_named(tmp_path):
    whole = save(tmp_path / "whole.jpg", np.dstack([disk(256, 90) * 200] * 3))
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:-800])
    text = tmp_path / "text.png"
    text.write_text("<html>not found</html>")
    png = save(tmp_path / "whole.png", RAMP.repeat(8, 0))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(png.read_bytes()[:60])
    for path in (cut, text, damaged, tmp_path / "absent.png"):
        with pytest.raises(UserError, match=path.name) as caught:
            read_image(path, BINARY)
        assert "bad_cases=skip" in caught.value.todo


def test_huge_images_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(raw, "MAX_PIXELS", 9_999)
    with pytest.raises(UserError, match="100x100"):
        read_image(path, BINARY)


def test_case_of_two_sizes_names_both(tmp_path):
    image = save(tmp_path / "a.png", np.zeros((8, 9), np.uint8))
    mask = save(tmp_path / "b.png", np.zeros((7, 9), np.uint8))
    with pytest.raises(UserError, match=r"a\.png is 9x8, .*b\.png is 9x7"):
        read_case(Case("a", image, mask, "a"), BINARY)


def test_digest_is_of_both_files(tmp_path):
    image, mask = save(tmp_path / "a.png", RAMP), save(tmp_path / "b.png", (RAMP > 99) * np.uint8(255))
    _, _, digest = read_case_and_digest(Case("a", image, mask, "a"), BINARY)
    parts = [hashlib.sha256(path.read_bytes()).digest() for path in (image, mask)]
    assert digest == hashlib.sha256(b"".join(parts)).digest()
