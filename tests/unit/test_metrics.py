"""Scores against distance transforms, all pairs of pixels, MONAI, drawn masks and counting."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from scipy.spatial.distance import cdist

from guidino_tune.config import Protocol
from guidino_tune.metrics import HD95, CaseScore, case_dice, constant_mask, constant_mask_dice, score_case, score_cases, summarise


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


@examples(25)
@given(seed=st.integers(0, 10_000), p=st.floats(0.01, 0.99), t=st.floats(0.01, 0.99), sigma=st.sampled_from([0.5, 3.0, 8.0]))
def test_scores_match_distance_transforms(seed: int, p: float, t: float, sigma: float) -> None:
    prediction, truth = _blob(seed, p, sigma=sigma), _blob(seed + 1, t, sigma=sigma)
    score, expected = score_case(prediction, truth), _independent(prediction, truth)
    for name in ("dice", "iou", "hd95", "asd"):
        assert getattr(score, name) == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-5), name


def _border_by_hand(mask: np.ndarray) -> list[tuple[int, int]]:
    """Pixels with a background neighbour above, below, left or right; outside the image is background."""
    height, width = mask.shape

    def inside(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and bool(mask[y, x])

    around = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return [(y, x) for y, x in np.argwhere(mask).tolist() if not all(inside(y + dy, x + dx) for dy, dx in around)]


def _hd95_by_hand(prediction: np.ndarray, truth: np.ndarray, definition: str) -> float:
    """From the distances between all pairs of pixels."""
    if not prediction.any() or not truth.any():
        return 0.0 if prediction.any() == truth.any() else float(np.hypot(*truth.shape))
    borders = [_border_by_hand(prediction), _border_by_hand(truth)]
    targets = [np.argwhere(prediction).tolist(), np.argwhere(truth).tolist()] if definition == "reference" else borders
    there, back = cdist(borders[0], targets[1]).min(1), cdist(borders[1], targets[0]).min(1)
    if definition == "monai":
        return max(np.percentile(there, 95), np.percentile(back, 95))
    return float(np.percentile([*there, *back], 95))


@examples(25)
@given(seed=st.integers(0, 10_000), p=st.floats(0.0, 1.0), t=st.floats(0.0, 1.0), sigma=st.sampled_from([0.5, 2.0, 5.0]))
def test_hd95_of_each_definition_matches_all_pairs_of_pixels(seed: int, p: float, t: float, sigma: float) -> None:
    """Holes, several pieces, pieces at the edge, empty and full masks."""
    prediction, truth = _blob(seed, p, (17, 24), sigma), _blob(seed + 1, t, (17, 24), sigma)
    for definition in get_args(HD95):
        assert score_case(prediction, truth, hd95=definition).hd95 == pytest.approx(_hd95_by_hand(prediction, truth, definition))


@pytest.mark.parametrize("seed", range(12))
def test_monai_s_definitions_are_monai_s(seed: int) -> None:
    prediction, truth = _blob(seed, 0.1 + 0.05 * seed), _blob(seed + 30, 0.4)
    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    score = score_case(prediction, truth, hd95="monai")
    assert score.hd95 == pytest.approx(compute_hausdorff_distance(*pair, include_background=True, percentile=95).item(), rel=1e-5)
    assert score.asd == pytest.approx(compute_average_surface_distance(*pair, include_background=True, symmetric=True).item(), rel=1e-5)


def _disc(radius: int, shift: int = 0) -> np.ndarray:
    y, x = np.mgrid[:128, :128] - 64
    return y**2 + (x - shift) ** 2 <= radius**2


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "asd", "reference", "pooled", "monai"),
    [
        (_disc(10), _disc(30), 0.2020, 19.63, 20.12, 20.12, 20.12),
        (_disc(20, shift=5), _disc(20), 0.8433, 3.00, 5.00, 5.00, 5.00),
        # The missed hole: every border pixel of the ring lies in the disc, and the disc's border is the ring's outer one.
        (_disc(30) & ~_disc(20), _disc(30), 0.7133, 2.26, 0.00, 9.00, 9.22),
    ],
)
def test_discs_and_a_ring_by_published_figures(
    prediction: np.ndarray, truth: np.ndarray, dice: float, asd: float, reference: float, pooled: float, monai: float
) -> None:
    for definition, hd95 in {"reference": reference, "pooled": pooled, "monai": monai}.items():
        score = score_case(prediction, truth, hd95=definition)  # type: ignore[arg-type]
        assert (score.dice, score.asd, score.hd95) == (
            pytest.approx(dice, abs=5e-5), pytest.approx(asd, abs=5e-3), pytest.approx(hd95, abs=5e-3)
        )  # fmt: skip


def test_the_definitions_are_the_protocol_s() -> None:
    assert get_type_hints(Protocol)["hd95"] == HD95


def _labels(seed: int, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    """Blobs of the labels 0 to 3; in every third map class 2 is absent."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    labels = np.digitize(field, np.quantile(field, [0.4, 0.6, 0.8])).astype(np.uint8)
    labels[(labels == 2) & (seed % 3 == 0)] = 0
    return labels


@pytest.mark.parametrize(("seed", "definition"), [(0, "monai"), (1, "pooled"), (2, "reference"), (3, "monai")])
def test_each_class_is_scored_as_a_binary_mask(seed: int, definition: HD95) -> None:
    prediction, truth = _labels(seed), _labels(seed * 2)
    score = score_case(prediction, truth, num_classes=3, hd95=definition)
    expected = [score_case(prediction == k, truth == k, hd95=definition) for k in (1, 2, 3)]
    assert score.classes == tuple(expected)
    for name in ("dice", "iou", "hd95", "asd"):
        assert getattr(score, name) == pytest.approx(np.mean([getattr(e, name) for e in expected]))
    assert case_dice(prediction, truth, num_classes=3) == pytest.approx(score.dice)
    assert case_dice(prediction, truth) == score_case(prediction, truth).dice == score_case(prediction > 0, truth > 0).dice


def test_an_absent_class_is_perfect_and_a_missed_one_the_worst() -> None:
    truth = _box(0, 30, 0, 40, (30, 40))
    score = score_case(truth * 2, truth * 2, num_classes=3)
    assert [c.dice for c in score.classes] == [1, 1, 1]
    score = score_case(truth * 3, truth * 2, num_classes=3)
    assert [(c.dice, c.hd95) for c in score.classes] == [(1, 0), (0, 50), (0, 50)]
    assert (score.dice, score.iou, score.hd95, score.asd) == (1 / 3, 1 / 3, pytest.approx(100 / 3), pytest.approx(100 / 3))


def test_summary_has_every_class_by_name() -> None:
    predictions, truths = [_labels(1), _labels(2), _labels(3)], [_labels(4), _labels(5), _labels(6)]
    summary = summarise(score_cases(predictions, truths, num_classes=3))
    names = [name + suffix for suffix in ("", "_class_1", "_class_2", "_class_3") for name in ("dice", "iou", "hd95", "asd")]
    assert list(summary) == names
    for k in (1, 2, 3):
        alone = summarise([score_case(p == k, t == k) for p, t in zip(predictions, truths, strict=True)])
        assert {name: summary[f"{name}_class_{k}"] for name in alone} == pytest.approx(alone)
    assert summary["dice"] == pytest.approx(np.mean([summary[f"dice_class_{k}"] for k in (1, 2, 3)]))
    with pytest.raises(ValueError, match="number of classes"):
        summarise([score_case(truths[0], truths[0]), score_case(truths[0], truths[0], num_classes=3)])


def test_labels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="labels are 0 to 2; got 0 to 3"):
        score_case(_labels(1), _labels(1), num_classes=2)
    with pytest.raises(ValueError, match="got -3 to 0"):
        constant_mask_dice([-_labels(1).astype(int)], [_labels(1)], num_classes=3)


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


@examples(10)
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


@examples(15)
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


def test_constant_masks_of_several_classes() -> None:
    train, validation = [_labels(i) for i in range(6)], [_labels(i) for i in range(6, 10)]
    alone = [constant_mask_dice([t == k for t in train], [v == k for v in validation]) for k in (1, 2, 3)]
    assert constant_mask_dice(train, validation, num_classes=3) == pytest.approx(np.mean(alone))
    # No one label map does better on what the masks were made from, such as the most frequent label of each pixel.
    shares = np.stack([np.mean([t == k for t in train], axis=0) for k in range(4)])
    constant = np.where(shares[0] > 0.6, 0, 1 + shares[1:].argmax(0)).astype(np.uint8)
    mean = np.mean([score_case(constant, t, num_classes=3).dice for t in train])
    assert 0 < mean <= constant_mask_dice(train, train, num_classes=3)
    with pytest.raises(ValueError, match="no validation"):
        constant_mask_dice(train, [], num_classes=3)


def test_importing_needs_no_torch() -> None:
    code = "import guidino_tune.metrics, sys; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
