"""Scores of one case: Dice, IoU, HD95 and ASD; means over cases; and the constant mask that any trained network must beat.

Definitions, always per case and then averaged, in pixels of the masks given:

- Dice ``2|A n B| / (|A| + |B|)`` and IoU ``|A n B| / |A u B|``.
- The border of a mask is the mask without its erosion by the 4-neighbour cross; outside the image counts as background, so that a
  mask that touches the image's edge has a border there.
- HD95 is MONAI's: the larger of the two directed 95th percentiles of the distances from border to border.
- ASD is MONAI's symmetric one: the mean of the distances in both directions, pooled.

When both masks are empty, the case is perfect: Dice = IoU = 1 and HD95 = ASD = 0. When exactly one is empty, it is the worst possible:
Dice = IoU = 0 and HD95 = ASD = the image's diagonal. MONAI gives NaN there, and its ``aggregate`` drops NaN or turns it into 0, the
best value: a network that predicts nothing would win. Here no case is dropped and no score is NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class CaseScore:
    """Scores of one case.

    Attributes:
        dice: In [0, 1], higher is better.
        iou: In [0, 1], higher is better.
        hd95: In [0, image diagonal] pixels, lower is better.
        asd: In [0, image diagonal] pixels, lower is better.
    """

    dice: float
    iou: float
    hd95: float
    asd: float


def score_case(prediction: np.ndarray, truth: np.ndarray) -> CaseScore:
    """Scores one prediction.

    Args:
        prediction: (H, W), bool or integer; foreground is whatever is not 0.
        truth: The same shape.

    Raises:
        ValueError: The shapes differ, are not two-dimensional, or a mask holds floats (a probability map that was not thresholded).
    """
    p, t = _binary(prediction), _binary(truth)
    if p.shape != t.shape:
        raise ValueError(f"prediction and truth differ in shape: {p.shape} and {t.shape}")
    if not p.any() and not t.any():
        return CaseScore(dice=1.0, iou=1.0, hd95=0.0, asd=0.0)
    if not p.any() or not t.any():
        diagonal = math.hypot(*p.shape)
        return CaseScore(dice=0.0, iou=0.0, hd95=diagonal, asd=diagonal)
    overlap, size = int((p & t).sum()), int(p.sum()) + int(t.sum())
    hd95, asd = _surface_distances(p, t)
    return CaseScore(dice=2 * overlap / size, iou=overlap / (size - overlap), hd95=hd95, asd=asd)


def score_cases(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> list[CaseScore]:
    """``score_case`` of each pair, in order; the pairs may differ in size.

    Raises:
        ValueError: There are not as many predictions as truths, or a pair is not valid.
    """
    return [score_case(prediction, truth) for prediction, truth in zip(predictions, truths, strict=True)]


def summarise(scores: Sequence[CaseScore]) -> dict[str, float]:
    """The mean over all cases of ``dice``, ``iou``, ``hd95`` and ``asd``; every case counts the same.

    Raises:
        ValueError: There is no case.
    """
    if not scores:
        raise ValueError("no cases to summarise")
    rows = [asdict(score) for score in scores]
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def constant_mask(train_masks: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """The one mask that scores the best mean Dice when it is predicted for every training case.

    It is the mean training mask, thresholded; all thresholds that give different masks are tried, the empty mask included.

    Args:
        train_masks: At least one (S, S), bool or integer, all of one size.

    Returns:
        The mask, uint8 (S, S), and the threshold: foreground is where the share of training masks is at least this (above every
        share when predicting nothing is best).

    Raises:
        ValueError: There is no mask, or the masks differ in size.
    """
    if not len(train_masks):
        raise ValueError("no training masks")
    count = len(train_masks)
    votes = np.zeros(train_masks[0].shape, dtype=np.int64)
    for mask in train_masks:
        if mask.shape != votes.shape:
            raise ValueError(f"training masks differ in size: {votes.shape} and {mask.shape}")
        votes += _binary(mask)
    # Entry v of a reversed running sum is what a mask of all pixels with at least v votes contains; entry count + 1 is the empty mask.
    areas = _at_least(np.bincount(votes.ravel(), minlength=count + 2))
    total = np.zeros(count + 2)
    for mask in train_masks:
        overlaps = _at_least(np.bincount(votes[_binary(mask)], minlength=count + 2))
        sizes = areas + overlaps[0]
        total += np.where(sizes > 0, 2 * overlaps / np.maximum(sizes, 1), 1.0)
    best = int(total.argmax())
    return (votes >= best).astype(np.uint8), best / count


def constant_mask_dice(train_masks: Sequence[np.ndarray], validation_masks: Sequence[np.ndarray]) -> float:
    """Mean Dice on the validation masks of ``constant_mask(train_masks)``: the baseline of having looked at no image.

    Raises:
        ValueError: One of the two is empty, or the masks differ in size.
    """
    mask, _ = constant_mask(train_masks)
    if not len(validation_masks):
        raise ValueError("no validation masks")
    return math.fsum(_dice(mask.astype(bool), _binary(truth)) for truth in validation_masks) / len(validation_masks)


def _binary(mask: np.ndarray) -> np.ndarray:
    """The mask as bool."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "bui":
        raise ValueError(f"a mask is two-dimensional, of bool or integers; got shape {mask.shape}, {mask.dtype}")
    foreground: np.ndarray = mask != 0
    return foreground


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth differ in shape: {prediction.shape} and {truth.shape}")
    size = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / size if size else 1.0


def _at_least(histogram: np.ndarray) -> np.ndarray:
    """Entry v: how many are v or more."""
    return histogram[::-1].cumsum()[::-1]


def _surface_distances(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """HD95 and symmetric ASD of two masks that are not empty, from one pass of MONAI's border distances."""
    # Not at the top: MONAI takes seconds to import, and the constant mask needs none of it.
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    with warnings.catch_warnings():
        # MONAI passes itself an argument that it has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        edges = get_edge_surface_distance(torch.from_numpy(prediction), torch.from_numpy(truth), symmetric=True)
    directed = [distances.double().numpy() for distances in edges[1]]
    return float(max(np.percentile(distances, 95) for distances in directed)), float(np.concatenate(directed).mean())
