"""Scores against distance transforms, drawn masks and counting."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from guidino_tune.metrics import CaseScore, constant_mask, constant_mask_dice, score_case, score_cases, summarise


def _blob(seed: int, share: float, shape: tuple[int, int] = (48, 61), sigma: float = 3.0) -> np.ndarray:
    """Smooth random regions: several pieces, holes, and pieces that the image's edge cuts."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return np.asarray(field > np.quantile(field, 1 - share), dtype=np.uint8)


def _box(y0: int, y1: int, x0: int, x1: int, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def _independent(prediction: np.ndarray, truth: np.ndarray) -> CaseScore:
    """From dense distance transforms; for masks that are not empty."""
    p, t = prediction.astype(bool), truth.astype(bool)
    border_p, border_t = p & ~binary_erosion(p), t & ~binary_erosion(t)
    forward, backward = distance_transform_edt(~border_t)[border_p], distance_transform_edt(~border_p)[border_t]
    return CaseScore(
        dice=2 * np.sum(p & t) / (p.sum() + t.sum()),
        iou=np.sum(p & t) / np.sum(p | t),
        hd95=max(np.percentile(forward, 95), np.percentile(backward, 95)),
        asd=(forward.sum() + backward.sum()) / (len(forward) + len(backward)),
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0.01, 0.99), t=st.floats(0.01, 0.99), sigma=st.sampled_from([0.5, 3.0, 8.0]))
def test_scores_match_distance_transforms(seed: int, p: float, t: float, sigma: float) -> None:
    prediction, truth = _blob(seed, p, sigma=sigma), _blob(seed + 1, t, sigma=sigma)
    score, expected = score_case(prediction, truth), _independent(prediction, truth)
    for name in ("dice", "iou", "hd95", "asd"):
        assert getattr(score, name) == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-5), name


def test_masks_at_the_image_s_edge() -> None:
    """All of the image against its upper half: the borders are the frames of both."""
    whole, half = _box(0, 64, 0, 64), _box(0, 32, 0, 64)
    assert score_case(whole, half).hd95 == pytest.approx(_independent(whole, half).hd95)
    assert score_case(whole, whole) == CaseScore(dice=1.0, iou=1.0, hd95=0.0, asd=0.0)


def test_shifted_box_by_hand() -> None:
    score = score_case(_box(10, 30, 10, 30), _box(10, 30, 14, 34))
    assert score.dice == pytest.approx(2 * 16 * 20 / 800)
    assert score.iou == pytest.approx(320 / 480)
    assert score.hd95 == pytest.approx(4)


def test_a_missed_hole_costs_distance() -> None:
    """Measured to the mask instead of its border it would be 0: the ring lies within the disc."""
    y, x = np.mgrid[:64, :64] - 31.5
    disc = ((y**2 + x**2) < 20**2).astype(np.uint8)
    ring = disc & ((y**2 + x**2) >= 10**2)
    score = score_case(ring, disc)
    assert score.hd95 > 8
    assert score.hd95 == pytest.approx(_independent(ring, disc).hd95, rel=1e-5)


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_mask_is_the_worst_score(swap: bool) -> None:
    empty, full = np.zeros((30, 40), np.uint8), _box(5, 9, 5, 9, (30, 40))
    score = score_case(full, empty) if swap else score_case(empty, full)
    assert score == CaseScore(dice=0.0, iou=0.0, hd95=50.0, asd=50.0)


def test_two_empty_masks_are_perfect() -> None:
    empty = np.zeros((30, 40), bool)
    assert score_case(empty, empty) == CaseScore(dice=1.0, iou=1.0, hd95=0.0, asd=0.0)


def test_a_network_that_predicts_nothing_has_the_worst_mean() -> None:
    truths = [_blob(i, 0.2) for i in range(3)]
    summary = summarise(score_cases([np.zeros_like(t) for t in truths], truths))
    assert summary == {"dice": 0.0, "iou": 0.0, "hd95": pytest.approx(math.hypot(48, 61)), "asd": pytest.approx(math.hypot(48, 61))}


def test_summary_is_the_mean_over_cases_of_any_size() -> None:
    predictions = [_box(0, 8, 0, 8), _box(0, 8, 0, 8, (20, 30))]
    truths = [_box(0, 8, 0, 8), _box(0, 8, 8, 16, (20, 30))]
    scores = score_cases(predictions, truths)
    assert summarise(scores)["dice"] == 0.5
    assert summarise(scores)["asd"] == pytest.approx(scores[1].asd / 2)
    with pytest.raises(ValueError, match="no cases"):
        summarise([])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0.0, 1.0), t=st.floats(0.0, 1.0))
def test_bounds_symmetry_and_values_of_foreground(seed: int, p: float, t: float) -> None:
    prediction, truth = _blob(seed, p), _blob(seed + 7, t)
    score, swapped = score_case(prediction, truth), score_case(truth, prediction)
    assert 0 <= score.iou <= score.dice <= 1
    assert 0 <= score.asd <= math.hypot(48, 61)
    assert 0 <= score.hd95 <= math.hypot(48, 61)
    assert (score.dice, score.iou) == (swapped.dice, swapped.iou)
    assert (score.hd95, score.asd) == pytest.approx((swapped.hd95, swapped.asd))
    assert score_case(prediction.astype(bool), truth * 255) == score


def test_what_is_no_pair_of_masks_is_refused() -> None:
    mask = _box(0, 8, 0, 8)
    with pytest.raises(ValueError, match="float"):
        score_case(mask.astype(np.float32) * 0.3, mask)
    with pytest.raises(ValueError, match="shape"):
        score_case(mask[None], mask)
    with pytest.raises(ValueError, match="shape"):
        score_case(mask[:-1], mask)
    with pytest.raises(ValueError, match="zip"):
        score_cases([mask, mask], [mask])


def test_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_case(_blob(1, 0.3), _blob(2, 0.3))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
def test_constant_mask_beats_every_threshold(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    masks = [_blob(seed + i, float(generator.choice([0.0, 0.1, 0.5])), (12, 12), 2.0) for i in range(count)]
    mask, threshold = constant_mask(masks)
    mean = np.mean(masks, axis=0)

    def mean_dice(candidate: np.ndarray) -> float:
        return float(np.mean([score_case(candidate, m).dice for m in masks]))

    candidates = [mean >= t for t in [*np.unique(mean), 2.0]]
    assert mean_dice(mask) == pytest.approx(max(mean_dice(candidate) for candidate in candidates))
    assert np.array_equal(mask, mean >= threshold)
    assert constant_mask_dice(masks, masks) == pytest.approx(mean_dice(mask))


def test_constant_mask_by_hand() -> None:
    masks = [_box(0, 8, 0, 8), _box(0, 8, 0, 8), _box(0, 8, 0, 10)]
    mask, threshold = constant_mask(masks)
    assert np.array_equal(mask, masks[0])  # two perfect, one 128/144, against 128/144 twice and one perfect
    assert 1 / 3 < threshold <= 1
    assert constant_mask_dice(masks, [_box(0, 8, 0, 10), _box(20, 30, 20, 30)]) == pytest.approx(128 / 144 / 2)


def test_constant_mask_is_empty_when_most_masks_are() -> None:
    mask, threshold = constant_mask([np.zeros((8, 8), np.uint8)] * 3 + [_box(0, 2, 0, 2, (8, 8))])
    assert not mask.any()
    assert threshold > 0.25
    with pytest.raises(ValueError, match="no training masks"):
        constant_mask([])
    with pytest.raises(ValueError, match="size"):
        constant_mask([np.zeros((8, 8), bool), np.zeros((9, 8), bool)])


def test_importing_needs_no_torch() -> None:
    code = "import guidino_tune.metrics, sys; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
