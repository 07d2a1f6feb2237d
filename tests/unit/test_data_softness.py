"""Masks between two levels: smoothed, compressed, fading colours, fractions; and what looks like them and is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from test_data_labels import SIDE, Array, Writer, followed, made, rule_of, save, truth, with_margin

from guidino_tune.config.data import IGNORED
from guidino_tune.data.decoding import read_mask
from guidino_tune.errors import UserError


def inner(mask: Array) -> Array:
    """The half of a mask that is nearest to its middle."""
    y, x = np.indices(mask.shape)
    far = np.hypot(y - y[mask].mean(), x - x[mask].mean())
    return mask & (far < np.quantile(far[mask], 0.5))


def soft(mask: Array) -> Array:
    """Fractions of 0 to 1 with a border of a few pixels."""
    blurred = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    return np.asarray(blurred, np.float64) / 255


def levels(mask: Array, between: int) -> Image.Image:
    return Image.fromarray(np.where(inner(mask), 255, mask * between).astype(np.uint8))


@pytest.mark.parametrize("between", [64, 127, 128, 200])
@pytest.mark.parametrize("quality", [50, 75, 95, None])
def test_a_third_level_is_no_soft_border(between: int, quality: int | None, tmp_path: Path) -> None:
    def write(path: Path, mask: Array, i: int) -> Path:
        picture = levels(mask, between)
        if quality is None:
            picture.resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC).save(path.with_suffix(".png"))
            return path.with_suffix(".png")
        picture.save(path.with_suffix(".jpg"), quality=quality)
        return path.with_suffix(".jpg")

    with pytest.raises(UserError, match="areas of about") as caught:
        rule_of(made(tmp_path, write))
    assert "--set" not in caught.value.todo  # no setting could tell them apart


@pytest.mark.parametrize("quality", [10, 30, 60])
def test_two_levels_are_still_two_when_they_are_compressed_hard(quality: int, tmp_path: Path) -> None:
    def write(path: Path, mask: Array, i: int) -> Path:
        return save(path.with_suffix(".jpg"), (mask * 255).astype(np.uint8), quality=quality)

    files = made(tmp_path, write)
    rule = rule_of(files)
    assert all((read_mask(path, rule) == truth(i)).mean() > 0.99 for i, path in enumerate(files))


def photograph(path: Path, mask: Array, i: int) -> Path:
    x = np.indices(mask.shape)[1]
    grey = np.random.default_rng(i).normal(90, 14, mask.shape) + 15 * np.sin(x / 5 + i) + mask * 80
    return save(path, np.clip(grey, 0, 255).astype(np.uint8))


def distances(path: Path, mask: Array, i: int) -> Path:
    y, x = np.indices(mask.shape)
    far = np.hypot(y - y[mask].mean(), x - x[mask].mean())
    return save(path, np.where(mask, 255 * (1 - far / far[mask].max()), 0).astype(np.uint8))


@pytest.mark.parametrize("ending", [".png", ".jpg"])
@pytest.mark.parametrize("draw", [photograph, distances])
def test_photographs_and_maps_of_distances_are_no_masks(draw: Writer, ending: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which values are foreground cannot be told"):
        rule_of(made(tmp_path, lambda path, mask, i: draw(path.with_suffix(ending), mask, i)))


@pytest.mark.parametrize("form", ["RGB", "RGBA"])
def test_a_colour_that_fades_is_cut_at_its_half(form: str, tmp_path: Path) -> None:
    def write(path: Path, mask: Array, i: int) -> Path:
        share = np.round(soft(mask) * 255).astype(np.uint8)
        shades = (share[..., None] * np.array((1, 0, 0.2))).astype(np.uint8)
        sheet = np.full((SIDE, SIDE, 3), (255, 0, 51), np.uint8)
        return save(path.with_suffix(".png"), shades if form == "RGB" else np.dstack([sheet, share]))

    files = made(tmp_path, write)
    rule = rule_of(files)
    for i, path in enumerate(files):
        assert np.array_equal(read_mask(path, rule), np.round(soft(truth(i)) * 255) > 127.5)


def test_a_colour_that_fades_is_taken_the_other_way_round_as_its_note_says(tmp_path: Path) -> None:
    def write(path: Path, mask: Array, i: int) -> Path:
        share = np.round((1 - soft(mask)) * 255).astype(np.uint8)
        return save(path.with_suffix(".png"), (share[..., None] * np.array((1, 0, 0.2))).astype(np.uint8))

    files = made(tmp_path, write)
    rule = followed(files, rule_of(files).turned)
    for i, path in enumerate(files):
        assert np.array_equal(read_mask(path, rule), np.round((1 - soft(truth(i))) * 255) < 127.5)


def test_several_colours_in_a_compressed_file_are_refused(tmp_path: Path) -> None:
    def write(path: Path, mask: Array, i: int) -> Path:
        colours = np.zeros((SIDE, SIDE, 3), np.uint8)
        colours[mask], colours[inner(mask)] = (0, 255, 0), (255, 0, 0)
        return save(path.with_suffix(".jpg"), colours, quality=90)

    with pytest.raises(UserError, match="holds several colours"):
        rule_of(made(tmp_path, write))


@pytest.mark.parametrize("colour", [(255, 128, 0), (128, 0, 64), (200, 100, 100)])
def test_one_colour_in_a_compressed_file_is_foreground_whatever_its_hue(colour: tuple[int, int, int], tmp_path: Path) -> None:
    """Compression moves a channel that is half as strong as the strongest one to both sides of that."""

    def write(path: Path, mask: Array, i: int) -> Path:
        return save(path.with_suffix(".jpg"), (mask[..., None] * np.array(colour)).astype(np.uint8), quality=90, subsampling=0)

    files = made(tmp_path, write)
    rule = rule_of(files)
    for i, path in enumerate(files):
        assert (read_mask(path, rule) != truth(i)).mean() < 0.01


def test_numbers_of_objects_in_a_compressed_file_are_refused(tmp_path: Path) -> None:
    files = made(tmp_path, lambda path, mask, i: save(path.with_suffix(".jpg"), (mask * 255).astype(np.uint8)))
    with pytest.raises(UserError, match="cannot hold the numbers of objects"):
        rule_of(files, masks="instances")  # noise along borders would be foreground


def array(values: Callable[[Array, int], Array]) -> Writer:
    def write(path: Path, mask: Array, i: int) -> Path:
        np.save(path.with_suffix(".npy"), values(mask, i))
        return path.with_suffix(".npy")

    return write


def test_fractions_in_some_files_count_in_all(tmp_path: Path) -> None:
    files = made(tmp_path, array(lambda mask, i: (soft(mask) if i % 2 else mask).astype(np.float32)))
    rule = rule_of(files)
    for i, path in enumerate(files):
        assert np.array_equal(read_mask(path, rule), soft(truth(i)) > 0.5 if i % 2 else truth(i))


def test_a_level_at_one_half_is_one_class_in_every_file(tmp_path: Path) -> None:
    files = made(tmp_path, array(lambda mask, i: (np.where(inner(mask), 1, mask / 2) if i % 3 else mask).astype(np.float32)))
    with pytest.raises(UserError, match="0, 32768 and 65535") as caught:
        rule_of(files)
    rule = followed(files, next(way for way in caught.value.todo.split("; ") if "data.labels" in way))
    assert np.array_equal(read_mask(files[0], rule), truth(0) * 2)
    assert np.array_equal(read_mask(files[1], rule), truth(1) * 1 + inner(truth(1)))


@pytest.mark.parametrize("borders", ["hard", "soft"])
def test_black_lesions_on_white_are_read_so_with_the_setting_that_the_rule_offers(borders: str, tmp_path: Path) -> None:
    def write(path: Path, mask: Array, i: int) -> Path:
        return save(path.with_suffix(".png"), np.round(255 * (1 - (soft(mask) if borders == "soft" else mask))).astype(np.uint8))

    files = made(tmp_path, write)
    rule = followed(files, rule_of(files).turned)
    for i, path in enumerate(files):
        assert (read_mask(path, rule) == truth(i)).mean() > (0.99 if borders == "soft" else 0.9999)


def test_an_empty_mask_on_a_transparent_sheet_is_empty(tmp_path: Path) -> None:
    def write(path: Path, mask: Array, i: int) -> Path:
        return save(
            path.with_suffix(".png"), np.dstack([np.full((SIDE, SIDE, 3), 255, np.uint8), (mask * (i != 3) * 255).astype(np.uint8)])
        )

    files = made(tmp_path, write)
    rule = rule_of(files)
    assert not read_mask(files[3], rule).any()
    assert np.array_equal(read_mask(files[4], rule), truth(4))


def test_a_margin_in_the_last_colour_of_a_palette_may_be_left_out(tmp_path: Path) -> None:
    files = made(tmp_path, with_margin)
    with pytest.raises(UserError, match="which of them is the foreground") as caught:
        rule_of(files)
    mask = read_mask(files[0], followed(files, caught.value.todo.split("; ")[0]))
    assert (mask[:4] == IGNORED).all()
    assert np.array_equal(mask[4:], truth(0)[4:])


def test_every_refusal_of_values_offers_a_way_that_works(tmp_path: Path) -> None:
    minus = made(tmp_path / "minus", array(lambda mask, i: -mask.astype(np.int8)))
    with pytest.raises(UserError, match="-1 and 0") as caught:
        rule_of(minus)
    assert np.array_equal(read_mask(minus[0], followed(minus, caught.value.todo)), truth(0))

    margin = made(tmp_path / "margin", array(lambda mask, i: np.where(np.arange(SIDE)[:, None] < 4, -1, mask).astype(np.int16)))
    with pytest.raises(UserError, match="-1, 0 and 1") as caught:
        rule_of(margin)
    mask = read_mask(margin[0], followed(margin, caught.value.todo.split("; ")[0]))
    assert (mask[:4] == IGNORED).all()
    assert np.array_equal(mask[4:], truth(0)[4:])

    channels = made(tmp_path / "channels", array(lambda mask, i: np.stack([~mask, mask & ~inner(mask), inner(mask)]).astype(np.uint8)))
    with pytest.raises(UserError, match="if \\(1, 0, 0\\) is background"):  # the most frequent one
        rule_of(channels)


def test_the_advice_for_numbered_objects_keeps_the_pattern_of_the_masks(tmp_path: Path) -> None:
    def numbered(path: Path, mask: Array, i: int) -> Path:
        return save(path.with_suffix(".png"), (mask * (1 + np.arange(SIDE) * (3 + i) // SIDE)).astype(np.uint8))

    files = made(tmp_path, numbered)
    with pytest.raises(UserError, match="which of them is the foreground") as caught:
        rule_of(files, masks="*_inst.png")
    assert "--set 'data.masks=instances:*_inst.png'" in caught.value.todo

    def twice_in_one_file(path: Path, mask: Array, i: int) -> Path:
        right = np.arange(SIDE)[None] > np.argwhere(mask)[:, 1].mean()
        return save(path.with_suffix(".png"), (mask * (1 + right * (i == 5))).astype(np.uint8))

    several = made(tmp_path / "few", twice_in_one_file, 20)
    with pytest.raises(UserError, match="holds 0, 1 and 2; that does not fit") as caught:
        rule_of(several)
    rule = followed(several, caught.value.todo.split("; ")[-1])
    assert np.array_equal(read_mask(several[5], rule), truth(5))
