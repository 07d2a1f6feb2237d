"""Scores with ignored pixels: those of masks in which they are background, and a constant mask found by trying all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from guidino_tune.config.data import IGNORED
from guidino_tune.metrics import (
    NAMES,
    case_dice,
    constant_mask,
    constant_mask_dice,
    mean_values,
    overlap_scores,
    score_case,
    score_cases,
    summarise,
)


def pair(seed: int, num_classes: int, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, num_classes + 1, (2, size // 4, size // 4)).astype(np.uint8)
    prediction, truth = blocks.repeat(4, 1).repeat(4, 2)
    truth = np.roll(truth, 2, 1)
    truth[: rng.integers(0, 8)] = IGNORED
    truth[rng.random(truth.shape) < 0.1] = IGNORED
    return prediction, truth


@examples(15)
@given(seed=st.integers(0, 10_000), num_classes=st.sampled_from([1, 3]), hd95=st.sampled_from(["monai", "pooled", "reference"]))
def test_scores_are_those_of_background_there_whatever_was_predicted(seed: int, num_classes: int, hd95: str) -> None:
    prediction, truth = pair(seed, num_classes)
    unknown = truth == IGNORED
    known_truth, known_prediction = (np.where(unknown, 0, labels).astype(np.uint8) for labels in (truth, prediction))
    expected = score_case(known_prediction, known_truth, num_classes=num_classes, hd95=hd95)  # type: ignore[arg-type]
    other = np.where(unknown, np.random.default_rng(seed).integers(0, num_classes + 1, truth.shape), prediction).astype(np.uint8)
    for labels in (prediction, other):
        assert score_case(labels, truth, num_classes=num_classes, hd95=hd95, ignore=True) == expected  # type: ignore[arg-type]
        assert case_dice(labels, truth, num_classes=num_classes, ignore=True) == pytest.approx(expected.dice)
        overlaps = overlap_scores(labels, truth, num_classes=num_classes, ignore=True)
        assert overlaps == overlap_scores(known_prediction, known_truth, num_classes=num_classes)
        assert mean_values([overlaps])["iou"] == pytest.approx(expected.iou)
    assert score_cases([prediction], [truth], num_classes=num_classes, ignore=True)[0].dice == expected.dice


def test_dice_and_iou_are_counted_on_known_pixels_only() -> None:
    truth = np.array([[1, 1, 0, IGNORED], [0, 1, IGNORED, IGNORED]], np.uint8)
    prediction = np.array([[1, 0, 1, 1], [0, 1, 0, 1]], np.uint8)
    known = [(p, t) for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True) if t != IGNORED]
    both, either, sizes = sum(p & t for p, t in known), sum(p | t for p, t in known), sum(p + t for p, t in known)
    assert overlap_scores(prediction, truth, ignore=True) == {"dice": 2 * both / sizes, "iou": both / either}


def test_a_case_of_which_nothing_is_known_is_perfect() -> None:
    truth = np.full((8, 8), IGNORED, np.uint8)
    score = score_case(np.ones((8, 8), np.uint8), truth, ignore=True)
    assert [getattr(score, name) for name in NAMES] == [1, 1, 0, 0]


def test_255_is_a_value_like_any_other_where_nothing_is_ignored() -> None:
    truth = np.zeros((8, 8), np.uint8)
    truth[2:5, 2:5] = 255
    assert score_case(truth, truth // 255) == score_case(truth // 255, truth // 255)
    with pytest.raises(ValueError, match="labels are 0 to 2"):
        score_case(truth // 255, truth, num_classes=2)
    with pytest.raises(ValueError, match="differ in shape"):
        score_case(truth, truth[:4], ignore=True)


@examples(15)
@given(seed=st.integers(0, 10_000))
def test_the_constant_mask_is_the_best_threshold_of_the_known_share(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.choice(np.array([0, 1, IGNORED], np.uint8), (3, 3), p=(0.5, 0.3, 0.2)) for _ in range(4)]
    known = [mask != IGNORED for mask in masks]
    plain = [np.where(there, mask, 0) for mask, there in zip(masks, known, strict=True)]
    found, threshold = constant_mask(plain, known)
    share = sum(plain) / np.maximum(sum(there.astype(int) for there in known), 1)

    def mean_dice(constant: np.ndarray) -> float:
        return float(np.mean([case_dice(constant, mask, ignore=True) for mask in masks]))

    tried = [(share >= level).astype(np.uint8) for level in (*np.unique(share), 2.0)]
    assert mean_dice(found) == pytest.approx(max(mean_dice(mask) for mask in tried))
    assert np.array_equal(found, share >= threshold)
    assert constant_mask_dice(masks, masks, ignore=True) == pytest.approx(mean_dice(found))


def test_all_masks_of_two_pixels_are_beaten() -> None:
    masks = [np.array(rows, np.uint8) for rows in ([[1, IGNORED]], [[IGNORED, 1]], [[0, 1]])]
    best = max(np.mean([case_dice(np.array([m], np.uint8), mask, ignore=True) for mask in masks]) for m in product((0, 1), repeat=2))
    assert constant_mask_dice(masks, masks, ignore=True) == pytest.approx(best)


def test_where_all_pixels_are_known_the_constant_mask_is_the_same() -> None:
    rng = np.random.default_rng(1)
    masks = [(rng.random((8, 8)) < np.linspace(0, 1, 8)).astype(np.uint8) for _ in range(7)]
    mask, threshold = constant_mask(masks)
    known_mask, known_threshold = constant_mask(masks, [np.ones((8, 8), bool)] * 7)
    assert np.array_equal(mask, known_mask)
    assert threshold == known_threshold
    assert constant_mask_dice(masks, masks) == constant_mask_dice(masks, masks, ignore=True)
    labels = [mask * rng.integers(1, 3, mask.shape).astype(np.uint8) for mask in masks]
    assert constant_mask_dice(labels, labels, num_classes=2) == constant_mask_dice(labels, labels, num_classes=2, ignore=True)


def test_summaries_of_classes_have_no_255() -> None:
    prediction, truth = pair(3, 2)
    assert set(summarise([score_case(prediction, truth, num_classes=2, ignore=True)])) == {
        name + end for name in NAMES for end in ("", "_class_1", "_class_2")
    }
