"""Patches: within the image, on the foreground as often as asked for, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidino_tune.data.patches import centre, cut_patch


def case(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pixel of the image is its own number, from 1."""
    image = torch.arange(1, height * width + 1, dtype=torch.float32).reshape(1, height, width)
    mask = torch.zeros(1, height, width)
    mask[0, height // 3, width // 3] = 1
    return image, mask


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 50), st.floats(0, 1), st.sampled_from([1.0, 1.5]))
@settings(max_examples=150, deadline=None)
def test_a_patch_is_a_window_of_the_image(height: int, width: int, seed: int, foreground: float, margin: float) -> None:
    image, mask = case(height, width)
    large, labels = cut_patch(image, mask, 32, foreground, np.random.default_rng(seed), margin=margin)
    assert large.shape[1:] == labels.shape[1:] == (int(32 * margin),) * 2
    patch, truth = centre(large, 32), centre(labels, 32)
    assert patch.shape == (1, 32, 32)
    assert (patch > 0).sum() == min(height, 32) * min(width, 32), "as much of the image as fits"
    rows, columns = torch.nonzero(patch[0], as_tuple=True)
    numbers = patch[0, rows, columns].long() - 1
    shift = (numbers // width - rows, numbers % width - columns)
    assert all(len(part.unique()) == 1 for part in shift), "one piece, in its own order"
    assert torch.equal(truth[0, rows, columns], mask[0, numbers // width, numbers % width])
    again, _ = cut_patch(image, mask, 32, foreground, np.random.default_rng(seed), margin=margin)
    assert torch.equal(large, again)


def test_the_foreground_is_met_as_often_as_asked_for() -> None:
    image, mask = case(400, 400)
    hits = {
        chance: np.mean([bool(cut_patch(image, mask, 32, chance, np.random.default_rng(seed))[1].any()) for seed in range(400)])
        for chance in (0.0, 0.33, 0.99)
    }
    by_luck = (32 / 369) ** 2  # of all places of the window, those that hold the one pixel
    for chance, share in hits.items():
        expected = chance + (1 - chance) * by_luck
        assert share == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / 400) + 0.003)


def test_rare_classes_are_drawn_as_often_as_others() -> None:
    mask = torch.ones(1, 300, 300)
    mask[0, 250, 40] = 2
    image = torch.zeros(3, 300, 300)
    seen = [bool((cut_patch(image, mask, 32, 1.0, np.random.default_rng(seed))[1] == 2).any()) for seed in range(200)]
    assert np.mean(seen) == pytest.approx(0.5, abs=0.12)
