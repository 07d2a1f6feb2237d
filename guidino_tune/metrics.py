"""Scores of one case: Dice, IoU, HD95 and ASD; means over cases; and the constant mask that any trained network must beat.

Definitions, always per case and then averaged, in pixels of the masks given:

- Dice ``2|A n B| / (|A| + |B|)`` and IoU ``|A n B| / |A u B|``.
- The border of a mask is the mask without its erosion by the 4-neighbour cross; outside the image counts as background, so that a
  mask that touches the image's edge has a border there.
- HD95 is one of three. ``monai`` (MONAI's): the larger of the two directed 95th percentiles of the distances from border to border.
  ``pooled``: the 95th percentile of the distances in both directions together. ``reference`` (GuiDINO's code): pooled too, but from the
  border of one mask to the nearest pixel of the other mask, inside or border. A border that lies within the other mask has distance 0
  there: a missed hole costs nothing, so that these numbers are comparable with that code's only.
- ASD is MONAI's symmetric one with every HD95: the mean of the distances from border to border in both directions, pooled.

When both masks are empty, the case is perfect: Dice = IoU = 1 and HD95 = ASD = 0. When exactly one is empty, it is the worst possible:
Dice = IoU = 0 and HD95 = ASD = the image's diagonal. MONAI gives NaN there, and its ``aggregate`` drops NaN or turns it into 0, the
best value: a network that predicts nothing would win. Here no case is dropped and no score is NaN, whatever the batches are.

Several classes: masks are label maps, each class is scored as a binary mask of its own by the rules above (one that is absent from both
is perfect), and the scores of the case are the means over the classes 1 to K; background is no class.

Ignored pixels (``ignore``): where the truth is ``IGNORED``, prediction and truth are both background, whatever the prediction is there.
Without ``ignore`` 255 is a value like any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from guidino_tune.config.data import IGNORED

HD95 = Literal["monai", "pooled", "reference"]
NAMES = ("dice", "iou", "hd95", "asd")


@dataclass(frozen=True, slots=True)
class CaseScore:
    """Scores of one case.

    Attributes:
        dice: In [0, 1], higher is better.
        iou: In [0, 1], higher is better.
        hd95: In [0, image diagonal] pixels, lower is better.
        asd: In [0, image diagonal] pixels, lower is better.
        classes: Scores of class 1, 2, ... where there are several, whose means the others are; else empty.
        diagonal: Of the masks that were compared, in their pixels; NaN where it is not known.
    """

    dice: float
    iou: float
    hd95: float
    asd: float
    classes: tuple[CaseScore, ...] = ()
    diagonal: float = field(default=math.nan, compare=False)


def score_case(prediction: np.ndarray, truth: np.ndarray, *, num_classes: int = 1, hd95: HD95 = "monai", ignore: bool = False) -> CaseScore:
    """Scores one prediction.

    Args:
        prediction: (H, W), bool or integer. For one class foreground is whatever is not 0; for several these are labels from 0
            (background) to ``num_classes``.
        truth: The same shape.
        num_classes: Foreground classes.
        hd95: The definition, see the top of this module.
        ignore: The truth may hold ``IGNORED``.

    Raises:
        ValueError: The shapes differ, are not two-dimensional, a mask holds floats (a probability map that was not thresholded), or a
            label above ``num_classes``.
    """
    pairs = _pairs(prediction, truth, num_classes, ignore)
    scores = tuple(_score(p, t, hd95) for p, t in pairs)
    if num_classes == 1:
        return scores[0]
    means = {name: math.fsum(getattr(score, name) for score in scores) / num_classes for name in NAMES}
    return CaseScore(**means, classes=scores, diagonal=scores[0].diagonal)


def case_dice(prediction: np.ndarray, truth: np.ndarray, *, num_classes: int = 1, ignore: bool = False) -> float:
    """The Dice of ``score_case`` alone, without the distances that take most of its time.

    Raises:
        ValueError: As ``score_case``.
    """
    pairs = _pairs(prediction, truth, num_classes, ignore)
    return math.fsum(_dice(p, t) for p, t in pairs) / num_classes


def overlap_scores(prediction: np.ndarray, truth: np.ndarray, *, num_classes: int = 1, ignore: bool = False) -> dict[str, float]:
    """Dice and IoU of ``score_case`` by name, as ``values`` gives them, without the distances that take most of its time.

    Raises:
        ValueError: As ``score_case``.
    """
    pairs = _pairs(prediction, truth, num_classes, ignore)
    dice, iou = [_dice(p, t) for p, t in pairs], [_iou(p, t) for p, t in pairs]
    means = {"dice": math.fsum(dice) / num_classes, "iou": math.fsum(iou) / num_classes}
    if num_classes == 1:
        return means
    return means | {
        f"{name}_class_{i}": x for i, pair in enumerate(zip(dice, iou, strict=True), 1) for name, x in zip(means, pair, strict=True)
    }


def score_cases(
    predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray], *, num_classes: int = 1, hd95: HD95 = "monai", ignore: bool = False
) -> list[CaseScore]:
    """``score_case`` of each pair, in order; the pairs may differ in size.

    Raises:
        ValueError: There are not as many predictions as truths, or a pair is not valid.
    """
    return [score_case(p, t, num_classes=num_classes, hd95=hd95, ignore=ignore) for p, t in zip(predictions, truths, strict=True)]


def summarise(scores: Sequence[CaseScore]) -> dict[str, float]:
    """The mean over all cases of ``dice``, ``iou``, ``hd95`` and ``asd``; every case counts the same.

    For several classes also of ``dice_class_1``, ``iou_class_1`` and so on.

    Raises:
        ValueError: There is no case, or the cases differ in their number of classes.
    """
    if not scores:
        raise ValueError("no cases to summarise")
    return mean_values([values(score) for score in scores])


def hd95_percent(scores: Sequence[CaseScore]) -> float:
    """Mean HD95 in per cent of each case's diagonal: pixels of images of another size are no other unit there.

    An image that is squeezed to a square changes its shape too, so that two frames agree in this only roughly.
    """
    return 100 * math.fsum(score.hd95 / score.diagonal for score in scores) / len(scores)


def mean_values(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each value over all cases.

    Args:
        rows: At least one, each from ``values`` or each from ``overlap_scores``.

    Raises:
        ValueError: The cases differ in their number of classes.
    """
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("the cases differ in their number of classes")
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def values(score: CaseScore) -> dict[str, float]:
    """All scores of a case by name: ``dice``, ..., and for several classes ``dice_class_1``, ..."""
    parts = [("", score), *((f"_class_{number}", part) for number, part in enumerate(score.classes, 1))]
    return {name + suffix: getattr(part, name) for suffix, part in parts for name in NAMES}


def with_classes(scores: Mapping[str, float], keys: Sequence[str]) -> dict[str, float]:
    """The same scores, those of a class by its key: ``dice_class_2`` is ``dice_nucleus`` with keys ``cytoplasm`` and ``nucleus``."""
    named = {f"_class_{number}": f"_{key}" for number, key in enumerate(keys, 1)}
    return {re.sub(r"_class_\d+$", lambda found: named[found[0]], name): value for name, value in scores.items()}


def constant_mask(train_masks: Sequence[np.ndarray], known: Sequence[np.ndarray] | None = None) -> tuple[np.ndarray, float]:
    """The one mask that scores the best mean Dice when it is predicted for every training case.

    It is the mean training mask, thresholded; all thresholds that give different masks are tried, the empty mask included.

    Args:
        train_masks: At least one (S, S), bool or integer, all of one size; foreground is whatever is not 0.
        known: Of each the pixels that count, bool (S, S): the mean of a pixel is over the cases in which it counts. ``None``: all do.

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
        votes += _mask(mask)
    if known is None:
        ranks, shares = votes, np.arange(count + 2) / count
    else:
        seen = np.zeros(votes.shape, dtype=np.int64)
        for part in known:
            seen += part
        shares, ranks = np.unique(votes / np.maximum(seen, 1), return_inverse=True)
        ranks, shares = ranks.reshape(votes.shape), np.append(shares, 1 + 1 / count)
    # Entry v of a reversed running sum is what a mask of all pixels with at least the share v contains; the last is the empty mask.
    areas = _at_least(np.bincount(ranks.ravel(), minlength=len(shares)))
    total = np.zeros(len(shares))
    for index, mask in enumerate(train_masks):
        if known is not None:
            areas = _at_least(np.bincount(ranks[known[index]], minlength=len(shares)))
        overlaps = _at_least(np.bincount(ranks[_mask(mask)], minlength=len(shares)))
        sizes = areas + overlaps[0]
        total += np.where(sizes > 0, 2 * overlaps / np.maximum(sizes, 1), 1.0)
    best = int(total.argmax())
    return (ranks >= best).astype(np.uint8), float(shares[best])


def constant_mask_dice(
    train_masks: Sequence[np.ndarray], validation_masks: Sequence[np.ndarray], *, num_classes: int = 1, ignore: bool = False
) -> float:
    """Mean Dice on the validation masks of ``constant_mask(train_masks)``: the baseline of having looked at no image.

    For several classes it is the mean over the classes of each class's own constant mask. Those masks may overlap, which the classes of
    one label map cannot, so that this is an upper bound of what one constant label map reaches, and not what some label map scores.

    Raises:
        ValueError: One of the two is empty, the masks differ in size, or a label is above ``num_classes``.
    """
    if not len(validation_masks):
        raise ValueError("no validation masks")
    known = [labels != IGNORED for labels in train_masks] if ignore else None
    means = []
    for number in range(1, num_classes + 1):
        constant = constant_mask([_mask(_without(labels, labels, ignore), number, num_classes) for labels in train_masks], known)[0]
        dice = [
            _dice(_mask(_without(constant, labels, ignore)), _mask(_without(labels, labels, ignore), number, num_classes))
            for labels in validation_masks
        ]
        means.append(math.fsum(dice) / len(dice))
    return math.fsum(means) / num_classes


def _pairs(prediction: np.ndarray, truth: np.ndarray, num_classes: int, ignore: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true mask of each class."""
    if ignore and prediction.shape == truth.shape:
        prediction, truth = _without(prediction, truth, ignore), _without(truth, truth, ignore)
    return list(zip(_masks(prediction, num_classes), _masks(truth, num_classes), strict=True))


def _without(labels: np.ndarray, truth: np.ndarray, ignore: bool) -> np.ndarray:
    """Background where the truth is ignored."""
    return np.where(truth == IGNORED, np.zeros((), labels.dtype), labels) if ignore else labels


def _masks(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    return [_mask(labels, number, num_classes) for number in range(1, num_classes + 1)]


def _mask(labels: np.ndarray, number: int = 1, num_classes: int = 1) -> np.ndarray:
    """The mask of one class, as bool."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        raise ValueError(f"a mask is two-dimensional, of bool or integers; got shape {labels.shape}, {labels.dtype}")
    if num_classes > 1 and labels.size and not 0 <= labels.min() <= labels.max() <= num_classes:
        raise ValueError(f"labels are 0 to {num_classes}; got {labels.min()} to {labels.max()}")
    mask: np.ndarray = labels != 0 if num_classes == 1 else labels == number
    return mask


def _score(prediction: np.ndarray, truth: np.ndarray, hd95: HD95) -> CaseScore:
    """Of two masks of bool."""
    dice, diagonal = _dice(prediction, truth), math.hypot(*truth.shape)
    if not prediction.any() and not truth.any():
        return CaseScore(dice=1.0, iou=1.0, hd95=0.0, asd=0.0, diagonal=diagonal)
    if not prediction.any() or not truth.any():
        return CaseScore(dice=0.0, iou=0.0, hd95=diagonal, asd=diagonal, diagonal=diagonal)
    prediction, truth = _cropped(prediction, truth)
    borders = _border(prediction), _border(truth)
    directed = _distances(borders, borders)
    return CaseScore(
        dice=dice,
        iou=_iou(prediction, truth),
        hd95=_hd95(directed if hd95 != "reference" else _distances(borders, (prediction, truth)), pooled=hd95 != "monai"),
        asd=float(np.concatenate(directed).mean()),
        diagonal=diagonal,
    )


def _dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth differ in shape: {prediction.shape} and {truth.shape}")
    size = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / size if size else 1.0


def _iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else 1.0


def _cropped(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the margin where neither has a pixel. It has no part in any distance, and distance transforms take their time."""
    either = prediction | truth
    rows, columns = np.flatnonzero(either.any(1)), np.flatnonzero(either.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return prediction[box], truth[box]


def _border(mask: np.ndarray) -> np.ndarray:
    # Not at the top: training imports this module, and the constant mask needs none of SciPy.
    from scipy.ndimage import binary_erosion

    border: np.ndarray = mask & ~binary_erosion(mask)
    return border


def _distances(borders: tuple[np.ndarray, np.ndarray], targets: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """From each border pixel of one mask to the nearest pixel of the other's target, in both directions."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~targets[1])[borders[0]], distance_transform_edt(~targets[0])[borders[1]]


def _hd95(directed: tuple[np.ndarray, np.ndarray], *, pooled: bool) -> float:
    return float(np.percentile(np.concatenate(directed), 95) if pooled else max(np.percentile(part, 95) for part in directed))


def _at_least(histogram: np.ndarray) -> np.ndarray:
    """Entry v: how many are v or more."""
    return histogram[::-1].cumsum()[::-1]
