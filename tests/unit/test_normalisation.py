"""Normalisation against the formulas written again in NumPy."""

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidino_tune.config import Data
from guidino_tune.normalisation import IMAGENET_MEAN, IMAGENET_STD, NORMALISATIONS, normalise


def photo(seed: int = 0, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, (5, 7, 3), dtype=np.uint8)


def test_every_kind_of_the_configuration_is_there() -> None:
    assert set(NORMALISATIONS) == set(get_args(get_type_hints(Data)["normalisation"]))


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_form(kind: str) -> None:
    image = photo()
    before = image.copy()
    result = normalise(image, kind)
    assert (result.shape, result.dtype) == ((3, 5, 7), torch.float32)
    assert (image == before).all()
    assert torch.equal(result, normalise(image[:, ::-1], kind).flip(2))  # also of a view with strides of its own


def test_imagenet_is_the_default() -> None:
    image = photo()
    expected = ((image / 255 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(normalise(image).numpy(), expected, atol=1e-5)


def test_zscore_is_of_each_channel_of_this_image() -> None:
    image = photo()
    image[..., 1] = image[..., 1] // 4 + 100
    values = image.astype(float)
    expected = ((values - values.mean((0, 1))) / values.std((0, 1))).transpose(2, 0, 1)
    np.testing.assert_allclose(normalise(image, "zscore").numpy(), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), gain=st.integers(1, 4), offset=st.integers(0, 50))
def test_zscore_does_not_see_gain_and_offset(seed: int, gain: int, offset: int) -> None:
    image = photo(seed, top=50)
    changed = (image * gain + offset).astype(np.uint8)
    assert torch.allclose(normalise(changed, "zscore"), normalise(image, "zscore"), atol=1e-4)


def test_zscore_of_a_flat_channel_is_zero_and_of_a_nearly_flat_one_small() -> None:
    image = np.full((8, 8, 3), 77, np.uint8)
    image[0, 0, 2] = 78
    result = normalise(image, "zscore")
    assert (result[:2] == 0).all()
    assert 0 < result[2].abs().max() <= 1
