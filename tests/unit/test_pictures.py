"""Pictures: what is drawn where, and files that are whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from guidino_tune.analysis.pictures import CLASSES, PREDICTION, TRUTH, TRUTH_BELOW, UNKNOWN, contact_sheet, heat_colours, overlay, save_png
from guidino_tune.config.data import IGNORED


def _mask(y0: int, y1: int, x0: int, x1: int, size: int = 96) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def _photo(size: int = 96) -> np.ndarray:
    return np.full((size, size, 3), 90, np.uint8)


def _panels(row: Image.Image, count: int, height: int) -> list[np.ndarray]:
    """The pictures of a row without a title; square panels with a gap of 8."""
    pixels = np.asarray(row)
    return [pixels[8 : 8 + height, 8 + i * (height + 8) : 8 + i * (height + 8) + height] for i in range(count)]


def _like(panel: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((np.abs(panel.astype(int) - colour) < 40).all(-1))


def test_panels_hold_what_they_should() -> None:
    truth, prediction = _mask(20, 60, 20, 60), _mask(30, 70, 30, 70)
    row = overlay(_photo(), truth, np.eye(6), prediction, height=96)
    image, green, guide, both = _panels(row, 4, 96)
    assert (image == 90).all()
    assert _like(green, TRUTH).any()
    assert not _like(green, PREDICTION).any()
    assert not _like(guide, TRUTH).any()
    assert _like(both, TRUTH).any()
    assert _like(both, PREDICTION).any()
    # Lines run along the borders, nowhere else.
    rows, columns = np.nonzero(_like(both, PREDICTION))
    distance = np.minimum.reduce([np.abs(rows - 30), np.abs(rows - 70), np.abs(columns - 30), np.abs(columns - 70)])
    assert distance.max() <= 2
    assert rows.min() >= 28
    assert columns.max() <= 71


def test_both_lines_show_where_truth_and_prediction_agree() -> None:
    mask = _mask(20, 60, 20, 60)
    both = _panels(overlay(_photo(), mask, None, mask, height=192), 3, 192)[2]
    assert _like(both, PREDICTION).sum() > 100
    assert _like(both, TRUTH).sum() > 100


def test_no_line_along_the_image_s_edge() -> None:
    everything = np.ones((96, 96), bool)
    assert (_panels(overlay(_photo(), None, None, everything, height=96), 2, 96)[1] == 90).all()


def test_a_single_pixel_can_be_seen() -> None:
    panel = _panels(overlay(_photo(), None, None, _mask(50, 51, 50, 51), height=192), 2, 192)[1]
    rows, columns = np.nonzero(_like(panel, PREDICTION))
    assert len(rows) >= 4
    assert abs(rows.mean() - 101) < 2
    assert abs(columns.mean() - 101) < 2


def test_hot_guide_cells_are_bright_and_in_place() -> None:
    guide = np.full((6, 6), 0.2)
    guide[1, 4] = 0.9
    panel = _panels(overlay(_photo(), None, guide, _mask(0, 1, 0, 1), height=96), 3, 96)[1].mean(-1)
    y, x = np.unravel_index(panel.argmax(), panel.shape)
    assert 16 <= y < 32
    assert 64 <= x < 80


def test_flat_and_broken_guides_are_drawn_flat() -> None:
    noise = 0.5 + 1e-5 * np.random.default_rng(0).normal(size=(6, 6))
    for guide in (noise, np.full((6, 6), np.nan)):
        panel = _panels(overlay(_photo(), None, guide, _mask(0, 1, 0, 1), height=96), 3, 96)[1]
        assert panel.astype(int).std(axis=(0, 1)).max() < 1


def test_missing_parts_leave_no_gap() -> None:
    mask = _mask(20, 60, 20, 60)
    widths = [overlay(_photo(), t, g, mask, height=96).width for t in (None, mask) for g in (None, np.eye(6))]
    assert widths == [8 + n * 104 for n in (2, 3, 3, 4)]


def test_a_title_adds_a_line_and_the_dice_changes_the_caption() -> None:
    mask = _mask(20, 60, 20, 60)
    plain, titled = overlay(_photo(), mask, None, mask), overlay(_photo(), mask, None, mask, title="case 17 " * 200)
    assert titled.width == plain.width
    assert titled.height > plain.height
    worse = overlay(_photo(), mask, None, _mask(20, 60, 20, 70))
    caption = np.s_[plain.height - 25 :, plain.width - 280 :]
    assert (np.asarray(plain)[caption] != np.asarray(worse)[caption]).any()


def _labels(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Class 1 in the first box, class 2 in the second, ..."""
    return np.max([_mask(*box) * np.uint8(number) for number, box in enumerate(boxes, 1)], axis=0)


def _names(number: int) -> tuple[str, ...]:
    return tuple(f"class {n}" for n in range(1, number + 1))


def _legend(row: Image.Image, height: int) -> np.ndarray:
    """The pixels below the captions."""
    plain = overlay(_photo(), None, None, _mask(0, 1, 0, 1), height=height)
    return np.asarray(row)[plain.height :]


def test_each_class_is_outlined_in_its_own_colour_on_its_own_side() -> None:
    truth, prediction = _labels((20, 60, 20, 40), (20, 60, 40, 70)), _labels((25, 65, 20, 40), (25, 65, 40, 70))
    row = overlay(_photo(), truth, None, prediction, height=192, names=_names(2))
    _, drawn, both = _panels(row, 3, 192)
    for panel, top in ((drawn, 40), (both, 50)):
        for colour, left, right in ((CLASSES[0], 40, 80), (CLASSES[1], 80, 140)):
            rows, columns = np.nonzero(_like(panel, colour))
            assert (rows.min(), rows.max()) == (pytest.approx(top, abs=2), pytest.approx(top + 79, abs=2))
            inner = columns[(rows > top + 6) & (rows < top + 74)]
            # One line along each side, also along the one that the two classes share; none of them beyond it.
            assert np.isin(inner, [*range(left, left + 4), *range(right - 4, right)]).all()
            assert min((inner < left + 4).sum(), (inner >= right - 4).sum()) >= 67
    for colour in (TRUTH, PREDICTION):
        assert not _like(drawn, colour).any()
    assert _like(both, TRUTH_BELOW).sum() > 100
    assert not _like(drawn, TRUTH_BELOW).any()


def test_the_legend_tells_the_classes_that_are_there() -> None:
    truth = _labels((10, 30, 10, 30), (10, 30, 40, 60), (50, 70, 10, 30))
    prediction = np.where(truth == 2, 0, truth).astype(np.uint8)
    prediction[80:90, 80:90] = 5
    legend = _legend(overlay(_photo(), truth, None, prediction, height=192, names=_names(6)), 192)
    assert [bool(_like(legend, colour).any()) for colour in CLASSES[:7]] == [True, True, True, False, True, False, False]
    binary = overlay(_photo(), truth, None, prediction, height=192)
    assert len(_legend(binary, 192)) == 0


@pytest.mark.parametrize("guide", [None, np.eye(6)])
@pytest.mark.parametrize("present", [0, 1, 10, 100, 254])
def test_any_number_of_classes_fits(present: int, guide: np.ndarray | None) -> None:
    labels = np.zeros((96, 96), np.uint8)
    labels.ravel()[: 96 * 64 : 24][:present] = np.arange(1, 1 + present)
    for truth in (None, labels):
        row = overlay(_photo(), truth, guide, labels, height=96, names=_names(254))
        assert row.width == 8 + 104 * (2 + (truth is not None) + (guide is not None))
        assert (np.asarray(row)[:, -4:] == 255).all()  # nothing is cut off at the edge


def test_the_mean_dice_in_the_caption_counts_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, **kw: (texts.append(text), draw(self, at, text, **kw)))
    truth, prediction = _labels((0, 10, 0, 10), (20, 30, 0, 10)), _labels((0, 10, 0, 5), (40, 50, 0, 10))
    overlay(_photo(), truth, None, prediction, names=_names(3))
    dice = [2 * 50 / 150, 0.0, 1.0]  # class 3 is in neither, which is right
    assert f"prediction    mean Dice {sum(dice) / 3:.3f}" in texts
    assert [text for text in texts if "class" in text] == [f"class 1  Dice {dice[0]:.3f}", "class 2  Dice 0.000"]
    texts.clear()
    overlay(_photo(), None, None, prediction, names=_names(3))
    assert [text for text in texts if "class" in text] == ["class 1", "class 2"]


@pytest.mark.parametrize(("height", "width"), [(617, 528), (20, 900), (900, 20)])
def test_any_aspect_fits(height: int, width: int) -> None:
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    row = overlay(image, mask, np.eye(4), mask, height=96)
    assert row.width <= 8 + 4 * (2 * 96 + 8)
    assert row.height <= 96 + 50


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction has size"):
        overlay(_photo(), None, None, np.zeros((5, 5)))
    with pytest.raises(ValueError, match="uint8"):
        overlay(_photo().astype(float), None, None, _mask(0, 1, 0, 1))


def test_contact_sheet_places_every_picture() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [Image.new("RGB", (20 + i, 10), colour) for i, colour in enumerate(colours)]
    sheet = contact_sheet(pictures, columns=2)
    assert sheet.size == (22 + 21, 20)
    assert [sheet.getpixel(at) for at in ((0, 0), (22, 0), (0, 10), (30, 15))] == [*colours, (255, 255, 255)]
    assert contact_sheet(pictures, columns=9).size == (63, 10)
    assert contact_sheet(pictures, columns=2, max_width=21).width == 21
    with pytest.raises(ValueError, match="sheet"):
        contact_sheet([])


def test_png_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (7, 5), (1, 2, 3))
    path = save_png(picture, tmp_path / "new" / "picture.png")
    with Image.open(path) as opened:
        assert (opened.format, opened.size) == ("PNG", (7, 5))
    assert os.listdir(path.parent) == ["picture.png"]

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        save_png(Image.new("RGB", (9, 9)), path)
    assert os.listdir(path.parent) == ["picture.png"]
    with Image.open(path) as opened:
        assert opened.size == (7, 5)


def test_heat_colours_grow_brighter() -> None:
    colours = heat_colours(np.linspace(0, 1, 50))
    assert colours.dtype == np.uint8
    assert (np.diff(colours.astype(int) @ [299, 587, 114]) >= 0).all()
    assert (heat_colours(np.array([-1.0, 2.0])) == colours[[0, -1]]).all()
    assert (heat_colours(np.array([np.nan])) == 128).all()


def test_drawing_needs_neither_torch_nor_mlflow() -> None:
    code = "import guidino_tune.analysis.pictures, sys; assert not {'torch', 'mlflow', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_what_is_not_known_is_hatched_and_never_drawn_as_a_class(num_classes: int) -> None:
    truth = _labels((20, 60, 20, 60)) if num_classes == 1 else _labels((20, 60, 20, 40), (20, 60, 40, 60))
    plain = overlay(_photo(), truth, None, truth, height=96, names=_names(num_classes))
    margin = truth.copy()
    margin[:, 70:] = IGNORED
    predicted = truth.copy()
    predicted[:, 80:] = 1  # nobody knows whether that is right
    row = overlay(_photo(), margin, None, predicted, height=96, names=_names(num_classes), ignore=True)
    for panel, expected in zip(_panels(row, 3, 96)[1:], _panels(plain, 3, 96)[1:], strict=True):
        assert np.array_equal(panel[:, :70], expected[:, :70])
        grey = _like(panel[:, 70:], UNKNOWN)
        assert 0.2 < grey.mean() < 0.6
        assert (panel[:, 70:][~grey] == 90).all()
    assert np.array_equal(np.asarray(row)[104:], np.asarray(plain)[104:])  # the captions with their Dice, and the legend


def test_a_picture_without_ignored_pixels_is_the_same() -> None:
    truth = _mask(20, 60, 20, 60)
    rows = [np.asarray(overlay(_photo(), truth, None, truth, ignore=ignore)) for ignore in (False, True)]
    assert np.array_equal(*rows)
