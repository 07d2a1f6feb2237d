"""Where images and masks lie in the network's square, against Pillow itself and a count in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from guidino_tune.config.data import IGNORED
from guidino_tune.framing import Frame, cut, frame, place, place_mask, resize_array, round_trip_dice, shrink_mask

RNG = np.random.default_rng(0)
SIDES = st.integers(1, 40)


def image_of(height: int, width: int, channels: int, kind: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(kind).max + 1, (height, width, channels)).astype(kind)


def area_by_hand(mask: np.ndarray, height: int, width: int, num_classes: int) -> np.ndarray:
    """Every new pixel's overlap with every old one, in fractions."""

    def overlaps(old: int, new: int) -> list[list[Fraction]]:
        step = Fraction(old, new)
        return [
            [max(Fraction(0), min((i + 1) * step, Fraction(j + 1)) - max(i * step, Fraction(j))) for j in range(old)] for i in range(new)
        ]

    rows, columns = overlaps(mask.shape[0], height), overlaps(mask.shape[1], width)
    found = np.zeros((height, width), np.uint8)
    for i in range(height):
        for j in range(width):
            areas = {value: Fraction(0) for value in (*range(1, num_classes + 1), 0, IGNORED)}
            for y, x in np.ndindex(mask.shape):
                areas[int(mask[y, x])] += rows[i][y] * columns[j][x]
            found[i, j] = max(areas, key=lambda value: areas[value])  # the first of equal ones
    return found


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 100, Frame(0, 0, 64, 64)),
        (100, 50, Frame(0, 16, 64, 32)),
        (50, 100, Frame(16, 0, 32, 64)),
        (64, 61, Frame(0, 1, 64, 61)),  # of three pixels of margin, two are at the end
        (3, 1000, Frame(31, 0, 1, 64)),  # 0.19 pixels become one
        (128, 3, Frame(0, 31, 64, 2)),  # one pixel and a half
        (16, 8, Frame(0, 16, 64, 32)),  # enlarged
    ],
)
def test_pad_keeps_the_aspect_ratio_in_the_middle(height: int, width: int, expected: Frame) -> None:
    assert frame(height, width, 64, "pad") == expected
    assert frame(height, width, 64, "squash") == Frame(0, 0, 64, 64)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from((32, 64, 256)))
def test_a_padded_image_fills_its_longer_side_and_nothing_is_off_by_more_than_half_a_pixel(height: int, width: int, size: int) -> None:
    box = frame(height, width, size, "pad")
    longer = max(height, width)
    assert max(box.height, box.width) == size
    for side, got, start in ((height, box.height, box.top), (width, box.width, box.left)):
        assert abs(Fraction(side * size, longer) - got) <= Fraction(1, 2) or got == 1
        assert 0 <= size - got - 2 * start <= 1


@pytest.mark.parametrize("shape", [(40, 30), (90, 20), (16, 16), (64, 64)])
def test_three_channels_of_eight_bits_are_resized_as_pillow_does(shape: tuple[int, int]) -> None:
    image = image_of(*shape, 3)
    expected = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(resize_array(image, (32, 48)), expected)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_every_channel_is_resized_by_itself(channels: int) -> None:
    image = image_of(40, 30, channels)
    resized = resize_array(image, (17, 25))
    assert resized.shape == (17, 25, channels)
    assert resized.dtype == np.uint8
    for index in range(channels):
        grey = np.repeat(image[..., index : index + 1], 3, axis=2)
        assert np.array_equal(resized[..., index], resize_array(grey, (17, 25))[..., 1])


@pytest.mark.parametrize("shape", [(17, 25), (80, 60)])
def test_sixteen_bits_are_resized_as_precisely_as_they_are_stored(shape: tuple[int, int]) -> None:
    image = image_of(40, 30, 2, np.uint16)
    resized = resize_array(image, shape)
    assert resized.dtype == np.uint16
    tensor = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, shape, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(resized.astype(np.float64) - expected).max() <= 0.6  # half of it is rounding
    constant = np.full((40, 30, 1), 65535, np.uint16)
    assert (resize_array(constant, shape) == 65535).all()


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    for kind in (np.uint8, np.uint16):
        image = image_of(32, 32, 3, kind)
        assert np.array_equal(place(image, 32, "squash"), image)
        assert np.array_equal(place(image, 32, "pad"), image)
    with pytest.raises(ValueError, match="uint8 or uint16"):
        resize_array(np.zeros((4, 4, 3)), (2, 2))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_the_margin_has_the_mean_colour_and_the_image_is_what_cut_gives_back(kind: type) -> None:
    image = image_of(20, 50, 4, kind)
    box = frame(20, 50, 64, "pad")
    square = place(image, 64, "pad")
    inner = square[box.rows, box.columns]
    assert np.array_equal(inner, resize_array(image, (26, 64)))
    assert square.dtype == kind
    margin = np.ones((64, 64), bool)
    margin[box.rows, box.columns] = False
    assert np.abs(square[margin] - inner.reshape(-1, 4).astype(float).mean(0)).max() <= 0.5
    planes = np.moveaxis(square, 2, 0)
    assert np.array_equal(cut(planes, box), np.moveaxis(inner, 2, 0))
    assert np.array_equal(cut(torch.from_numpy(planes.astype(np.int32)), box).numpy(), np.moveaxis(inner, 2, 0))


def test_the_margin_of_a_mask_is_ignored() -> None:
    mask = RNG.integers(0, 2, (20, 50)).astype(np.uint8)
    box, square = frame(20, 50, 32, "pad"), place_mask(mask, 32, "pad")
    assert np.array_equal(cut(square, box), shrink_mask(mask, (box.height, box.width)))
    assert (square == IGNORED).sum() == 32 * 32 - box.height * box.width
    assert IGNORED not in place_mask(mask, 32, "squash")


@examples(25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_area_is_what_the_fractions_say(height: int, width: int, rows: int, columns: int, num_classes: int, seed: int) -> None:
    assume(rows < height or columns < width)
    values = np.array([*range(num_classes + 1), IGNORED], np.uint8)
    mask = np.random.default_rng(seed).choice(values, (height, width))
    assert np.array_equal(shrink_mask(mask, (rows, columns), "area", num_classes), area_by_hand(mask, rows, columns, num_classes))


@given(SIDES, SIDES, st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_an_enlarged_mask_is_the_nearest_one_and_shrinks_back_to_itself(h: int, w: int, more_h: int, more_w: int, seed: int) -> None:
    mask = np.random.default_rng(seed).choice(np.array([0, 1, 2, IGNORED], np.uint8), (h, w))
    shape = (h + more_h, w + more_w)
    area, nearest = shrink_mask(mask, shape, "area", 2), shrink_mask(mask, shape, "nearest", 2)
    assert np.array_equal(area, nearest)
    expected = np.asarray(Image.fromarray(mask).resize((shape[1], shape[0]), Image.Resampling.NEAREST))
    assert np.array_equal(nearest, expected)
    doubled = shrink_mask(mask, (2 * h, 2 * w), "area", 2)
    assert np.array_equal(shrink_mask(doubled, (h, w), "area", 2), mask)


def test_one_half_is_foreground_and_less_is_not() -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, 0] = 1  # half of the first new pixel
    mask[0, 2] = 1  # a quarter of the second
    assert shrink_mask(mask, (2, 2)).tolist() == [[1, 0], [0, 0]]
    labels = np.array([[1, 2], [2, 1]], np.uint8)
    assert shrink_mask(labels, (1, 1), num_classes=2).tolist() == [[1]]  # the lowest of equal classes
    assert shrink_mask(np.array([[IGNORED, 0], [0, IGNORED]], np.uint8), (1, 1)).tolist() == [[0]]
    assert shrink_mask(np.array([[IGNORED, 0], [IGNORED, IGNORED]], np.uint8), (1, 1)).tolist() == [[IGNORED]]


def test_a_large_mask_does_not_overflow() -> None:
    mask = np.ones((5000, 3), np.uint8)
    mask[2500:] = 0
    assert shrink_mask(mask, (4, 1)).ravel().tolist() == [1, 1, 0, 0]


def test_thin_lines_survive_better_by_area() -> None:
    y, x = np.mgrid[0:300, 0:300]
    mask = (np.abs((x + 0.3 * y) % 37 - 18) < 1.6).astype(np.uint8)
    nearest, area = (round_trip_dice(mask, shrink_mask(mask, (130, 130), how)) for how in ("nearest", "area"))
    assert 0.7 < nearest < area < 1


@pytest.mark.parametrize("num_classes", [1, 3])
def test_the_round_trip_of_an_unchanged_mask_is_perfect(num_classes: int) -> None:
    mask = RNG.integers(0, num_classes + 1, (33, 21)).astype(np.uint8)
    assert round_trip_dice(mask, mask, num_classes) == 1
    assert round_trip_dice(np.zeros_like(mask), np.zeros_like(mask), num_classes) == 1
    ignored = mask.copy()
    ignored[:10] = IGNORED
    assert round_trip_dice(ignored, mask, num_classes) == 1  # what is not known is no fault
    assert round_trip_dice(mask, np.zeros_like(mask), num_classes) == pytest.approx(0)


def test_the_round_trip_is_the_dice_of_the_enlarged_mask() -> None:
    mask = (np.hypot(*np.mgrid[-20:20, -20:20]) < 15).astype(np.uint8)
    shrunk = shrink_mask(mask, (16, 16))
    soft = torch.nn.functional.interpolate(torch.from_numpy(shrunk)[None, None].double(), (40, 40), mode="bilinear")[0, 0].numpy()
    found = soft > 0.5
    assert round_trip_dice(mask, shrunk) == pytest.approx(2 * (found & (mask > 0)).sum() / (found.sum() + mask.sum()))
