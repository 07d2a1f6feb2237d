"""Objects of a mask in large images: what is done for each depends on its own size."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from guidino_tune.workflows.prediction_objects import Box, components, run_lengths


def over_the_whole_image(box: Box, part: np.ndarray, shape: tuple[int, int]) -> list[int]:
    """By the definition: the image's columns one below the other, and the lengths of what is equal in them."""
    whole = np.zeros(shape, bool)
    whole[box] = part
    counts, inside = [0], False
    for pixel in whole.ravel(order="F").tolist():
        if pixel != inside:
            counts.append(0)
            inside = pixel
        counts[-1] += 1
    return counts


@st.composite
def objects(draw: st.DrawFn) -> tuple[Box, np.ndarray, tuple[int, int]]:
    """A part of any kind, also one that touches the image's edges, or holds nothing."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    top, left = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    below, right = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    pixels = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    box = (slice(top, top + height), slice(left, left + width))
    return box, np.array(pixels).reshape(height, width), (top + height + below, left + width + right)


@given(objects())
@examples(300)
def test_run_lengths_are_those_of_the_whole_image(drawn: tuple[Box, np.ndarray, tuple[int, int]]) -> None:
    counts = run_lengths(*drawn)
    assert counts == over_the_whole_image(*drawn)
    assert all(type(count) is int for count in counts)  # JSON knows no numbers of NumPy


def test_an_object_takes_no_array_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of a terapixel: who would allocate it for each object, could not."""
    box, part, shape = (slice(999_990, 1_000_000), slice(5, 7)), np.ones((10, 2), bool), (1_000_000, 1_000_000)
    assert run_lengths(box, part, shape) == [5_999_990, 10, 999_990, 10, 10**12 - 7_000_000]


def test_parts_are_found_in_reading_order() -> None:
    mask = np.zeros((5, 7), bool)
    mask[0, 6] = mask[1, 0] = mask[4, 2:5] = True
    assert [(box[0].start, box[1].start, int(part.sum())) for box, part in components(mask)] == [(0, 6, 1), (1, 0, 1), (4, 2, 3)]
