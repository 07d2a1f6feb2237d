"""Decoding: every mode becomes RGB, a binary mask or a label map, and broken files are named."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guidino_tune.data import decoding
from guidino_tune.data.cases import Case
from guidino_tune.data.decoding import read_case, read_case_and_digest, read_image, read_mask
from guidino_tune.errors import UserError

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def save(path: Path, array, mode=None, **options) -> Path:
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def disk(size=64, radius=20) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return ((x**2 + y**2) < radius**2).astype(np.uint8)


def test_grey_is_repeated_and_rgb_kept_in_order(tmp_path):
    grey = read_image(save(tmp_path / "g.png", RAMP))
    assert grey.dtype == np.uint8
    assert np.array_equal(grey, np.repeat(RAMP[..., None], 3, 2))
    colour = np.dstack([RAMP, RAMP // 2, 255 - RAMP])
    assert np.array_equal(read_image(save(tmp_path / "c.png", colour)), colour)


def test_palette_image_gets_its_colours(tmp_path):
    picture = Image.fromarray((RAMP > 100).astype(np.uint8), "L").convert("P")
    picture.putpalette([10, 20, 30, 200, 100, 50])
    assert np.array_equal(np.unique(read_image(save(tmp_path / "p.png", picture)).reshape(-1, 3), axis=0), [[10, 20, 30], [200, 100, 50]])


@pytest.mark.parametrize("top", [4095, 65535])
def test_deep_images_are_scaled_from_their_bit_depth(tmp_path, top):
    values = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
    image = read_image(save(tmp_path / "d.png", values))
    assert np.abs(image[..., 0] - values / top * 255).max() <= 0.5 + 1e-9


def test_transparent_pixels_become_black(tmp_path):
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[..., 3] = np.eye(4, dtype=np.uint8) * 255
    assert np.array_equal(read_image(save(tmp_path / "a.png", rgba))[..., 0], np.eye(4) * 200)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[0, 0] = 255
    image = read_image(save(tmp_path / "e.png", wide, exif=exif))
    assert image.shape == (8, 4, 3)
    assert image[0, 3, 0] == 255
    assert image.sum() == 255 * 3


def test_jpeg_ringing_stays_background(tmp_path):
    truth = disk()
    path = save(tmp_path / "m.jpg", truth * 255, quality=60)
    stored = np.asarray(Image.open(path))
    assert ((stored > 0) & (truth == 0)).sum() > 20, "the file should ring, or this shows nothing"
    mask = read_mask(path)
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
    assert np.array_equal(read_mask(save(tmp_path / "m.png", stored(disk()))), disk())


def test_threshold_is_at_half(tmp_path):
    assert np.array_equal(read_mask(save(tmp_path / "m.png", np.array([[0, 127, 128, 255]], np.uint8))), [[0, 0, 1, 1]])


def test_dark_colours_of_a_label_palette_are_foreground(tmp_path):
    picture = Image.fromarray(disk(), "L").convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0])  # luminance 38
    assert np.array_equal(read_mask(save(tmp_path / "m.png", picture)), disk())


def test_empty_mask_is_empty_and_class_numbers_are_refused(tmp_path):
    assert read_mask(save(tmp_path / "m.png", np.zeros((8, 8), np.uint8))).sum() == 0
    with pytest.raises(UserError, match="class numbers up to 3") as caught:
        read_mask(save(tmp_path / "n.png", disk() * 3))
    assert "data.num_classes=3" in caught.value.todo


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
    mask = read_mask(path, 3)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, labels())
    assert np.array_equal(read_mask(path, 200), labels())  # not every class need be there


def test_a_bit_mask_is_a_label_map_of_one_class(tmp_path):
    assert np.array_equal(read_mask(save(tmp_path / "m.png", disk().astype(bool)), 2), disk())


def test_labels_turn_with_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(read_mask(save(tmp_path / "m.png", labels(), exif=exif), 3), np.rot90(labels(), -1))


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("high.png", labels(5), r"the value 5, but with data\.num_classes=3 labels are 0 to 3"),
        ("binary.png", disk() * 255, r"the value 255, but"),
        ("deep.png", labels().astype(np.uint16) * 300, "the value 900"),
        ("below.tif", labels().astype(np.int32) - 1, "the value -1"),
        ("colours.png", np.repeat(labels()[..., None], 3, 2), "in colours"),
        ("clear.png", np.repeat(labels()[..., None], 4, 2), "in colours"),
        ("fractions.tif", labels().astype(np.float32), "of fractions"),
        ("lossy.jpg", labels(), "JPEG cannot hold labels"),
    ],
)
def test_what_is_no_label_map_is_refused_with_a_reason(tmp_path, name, array, words):
    path = save(tmp_path / name, array)
    with pytest.raises(UserError, match=words) as caught:
        read_mask(path, 3)
    assert caught.value.where == str(path)
    for hint in ("data.num_classes", "JPEG", "data.bad_cases=skip"):
        assert hint in caught.value.todo
    with pytest.raises(UserError, match=words):
        read_case(Case("a", path, path, "a"), 3)


def test_a_case_with_classes_has_its_labels_and_the_same_digest(tmp_path):
    image, mask = save(tmp_path / "a.png", np.zeros((9, 7), np.uint8)), save(tmp_path / "b.png", labels())
    assert np.array_equal(read_case(Case("a", image, mask, "a"), 3)[1], labels())
    digests = {read_case_and_digest(Case("a", image, mask, "a"), number)[2] for number in (3, 4)}
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
            read_image(path)
        assert "bad_cases=skip" in caught.value.todo


def test_huge_images_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 9_999)
    with pytest.raises(UserError, match="100x100"):
        read_image(path)


def test_case_of_two_sizes_names_both(tmp_path):
    image = save(tmp_path / "a.png", np.zeros((8, 9), np.uint8))
    mask = save(tmp_path / "b.png", np.zeros((7, 9), np.uint8))
    with pytest.raises(UserError, match=r"a\.png is 9x8, .*b\.png is 9x7"):
        read_case(Case("a", image, mask, "a"))


def test_digest_is_of_both_files(tmp_path):
    image, mask = save(tmp_path / "a.png", RAMP), save(tmp_path / "b.png", (RAMP > 99) * np.uint8(255))
    _, _, digest = read_case_and_digest(Case("a", image, mask, "a"))
    parts = [hashlib.sha256(path.read_bytes()).digest() for path in (image, mask)]
    assert digest == hashlib.sha256(b"".join(parts)).digest()
