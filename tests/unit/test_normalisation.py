"""Normalisation against the formulas written again in NumPy."""

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
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


@examples(15)
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


def test_three_channels_of_eight_bits_are_bit_for_bit_as_they_were() -> None:
    image = photo()
    plain = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    mean, std = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    assert torch.equal(normalise(image), (plain / 255 - mean) / std)
    deviation, middle = torch.std_mean(plain, dim=(1, 2), correction=0, keepdim=True)
    assert torch.equal(normalise(image, "zscore"), (plain - middle) / deviation.clamp(min=1))


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_sixteen_bits_span_the_same_range(kind: str) -> None:
    image = photo()
    assert torch.equal(normalise(image.astype(np.uint16) * 257, kind), normalise(image, kind))
    finer = normalise(np.array([[[1, 2, 3]]], np.uint16), "imagenet")
    assert torch.allclose(finer[:, 0, 0], (torch.tensor([1, 2, 3]) / 65535 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    expected = ((image / 255 - np.mean(IMAGENET_MEAN)) / np.mean(IMAGENET_STD)).transpose(2, 0, 1)
    np.testing.assert_allclose(normalise(image).numpy(), expected, atol=1e-5)
    assert torch.allclose(normalise(image, "zscore").mean((1, 2)), torch.zeros(channels), atol=1e-5)


def test_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        normalise(np.zeros((5, 7, 3)))
