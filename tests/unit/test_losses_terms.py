"""Focal, Tversky, top-k and boundary terms and class weights, against formulas written again pixel by pixel in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from scipy.ndimage import distance_transform_edt
from test_losses_ignored import batch_of, on_head
from torch import Tensor

from guidino_tune.config import Experiment
from guidino_tune.config.data import IGNORED
from guidino_tune.config.parsing import parse
from guidino_tune.config.sections import Loss
from guidino_tune.errors import UserError
from guidino_tune.losses import (
    SegmentationLoss,
    boundary_loss,
    cross_entropy_loss,
    focal_loss,
    soft_dice_loss,
    squared_distances,
    top_k_loss,
    tversky_loss,
)

ALL = {
    "dice_weight": 0.7, "bce_weight": 1.3, "focal_weight": 0.6, "focal_gamma": 1.5, "tversky_weight": 0.8, "tversky_alpha": 0.2,
    "tversky_beta": 0.9, "top_k_weight": 0.4, "top_k_fraction": 0.15, "boundary_weight": 0.05,
}  # fmt: skip


def of_head(head: Tensor, masks: Tensor, loss: Loss, weights: list[float]) -> dict[str, float]:
    """The terms of one head, of lists of the pixels kept."""
    x, y = head.numpy().astype(float), masks.numpy()[:, 0].astype(int)
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True) if x.shape[1] > 1 else np.concatenate([1 / (1 + np.exp(x)), 1 / (1 + np.exp(-x))], 1)
    at = [index for index in np.ndindex(y.shape) if y[index] != IGNORED]
    right = np.array([p[b, y[b, r, c], r, c] for b, r, c in at])
    weight = np.array([weights[y[index]] for index in at])
    entropy, total = -np.log(right) * weight, weight.sum()
    hardest = sorted(entropy / weight.mean())[-max(1, int(loss.top_k_fraction * len(at))) :]
    far = [[distance(labels, number) for number in range(p.shape[1])] for labels in y]
    dice, tversky = [], []
    for cases in [range(len(y))] if loss.batch_dice else [[b] for b in range(len(y))]:
        for number in range(1, p.shape[1]):
            kept = [(p[b, number, r, c], y[b, r, c] == number) for b, r, c in at if b in cases]
            tp, fp, fn = sum(a for a, t in kept if t), sum(a for a, t in kept if not t), sum(1 - a for a, t in kept if t)
            dice.append(weights[number] * (1 - (2 * tp + 1e-5) / (2 * tp + fp + fn + 1e-5)))
            tversky.append(weights[number] * (1 - (tp + 5e-6) / (tp + loss.tversky_alpha * fp + loss.tversky_beta * fn + 5e-6)))
    return {
        "dice": np.mean(dice) / np.mean(weights[1:]), "tversky": np.mean(tversky) / np.mean(weights[1:]),
        "bce": entropy.sum() / total, "focal": ((1 - right) ** loss.focal_gamma * entropy).sum() / total, "top_k": np.mean(hardest),
        "boundary": np.mean([p[b, k, r, c] * far[b][k][r, c] for b, r, c in at for k in range(1, p.shape[1])]),
    }  # fmt: skip


def distance(labels: np.ndarray, number: int) -> np.ndarray:
    """Of every pixel to the class, outside it; inside, minus that to what is not of it, but for one pixel (the authors' code)."""
    inside, outside = labels == number, (labels != number) & (labels != IGNORED)
    if not inside.any() or not outside.any():
        return np.zeros(labels.shape)
    return np.where(inside, 1 - distance_transform_edt(~outside), distance_transform_edt(~inside))


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize(("num_classes", "weights"), [(1, None), (1, 3.0), (3, None), (3, [0.5, 1, 2, 4])])
def test_every_term_matches_numpy(num_classes: int, weights: Any, ignore: bool) -> None:
    loss = parse(Loss, {**ALL, "lambda_guide": 0, "class_weights": weights, "batch_dice": not ignore}, "loss")
    heads, _, masks = batch_of(num_classes, size=24)
    masks = masks if ignore else masks.where(masks != IGNORED, 0)
    values = SegmentationLoss(loss, num_classes, ignore)(heads, None, masks)
    given = weights if isinstance(weights, list) else [1.0, *[weights or 1.0] * num_classes]
    every = [of_head(head, on_head(masks, i), loss, given) for i, head in enumerate(heads)]
    expected = {name: sum(0.5**i / 1.75 * one[name] for i, one in enumerate(every)) for name in every[0]}
    expected["boundary"] = every[0]["boundary"]  # pixels mean something on the finest head only
    total = sum(ALL[f"{name}_weight"] * value for name, value in expected.items())
    if num_classes > 1:
        expected["cross_entropy"] = expected.pop("bce")
    assert {name: float(value) for name, value in values.items()} == pytest.approx({"total": total, **expected}, rel=2e-5)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_focal_and_tversky_are_monai_s_and_special_cases_are_dice_and_cross_entropy(num_classes: int) -> None:
    (head, *_), _, masks = batch_of(num_classes)
    masks = masks.where(masks != IGNORED, 0)
    several = num_classes > 1
    focal = FocalLoss(gamma=2.0, use_softmax=several, to_onehot_y=several)(head, masks)
    assert float(focal_loss(head, masks, 2.0)) == pytest.approx(float(focal) * head.shape[1], rel=1e-5)  # its mean is over classes too
    tversky = TverskyLoss(
        include_background=not several, to_onehot_y=several, sigmoid=not several, softmax=several, alpha=0.3, beta=0.7, batch=True,
        smooth_nr=5e-6, smooth_dr=5e-6,
    )  # fmt: skip
    assert float(tversky_loss(head, masks, 0.3, 0.7)) == pytest.approx(float(tversky(head, masks)), rel=1e-5)
    assert torch.allclose(tversky_loss(head, masks, 0.5, 0.5), soft_dice_loss(head, masks), atol=1e-6)
    for same in (focal_loss(head, masks, 0.0), top_k_loss(head, masks, 1.0)):
        assert torch.allclose(same, cross_entropy_loss(head, masks), atol=1e-6)


def test_class_weights_are_those_of_torch() -> None:
    (head, *_), _, masks = batch_of(3)
    weights = (0.2, 1.0, 0.0, 0.6)
    expected = torch.nn.CrossEntropyLoss(torch.tensor(weights), ignore_index=int(IGNORED))(head, masks[:, 0].long())
    assert torch.allclose(cross_entropy_loss(head, masks, (masks != IGNORED).float(), weights), expected, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 0.003, 0.1, 0.9, 1.0]))
def test_distances_are_scipy_s(seed: int, share: float) -> None:
    there = np.random.default_rng(seed).random((2, 3, 13, 18)) < share
    found = squared_distances(torch.from_numpy(there)).numpy()
    for index in np.ndindex(2, 3):
        expected = distance_transform_edt(~there[index]) ** 2 if there[index].any() else np.full((13, 18), math.inf)
        assert found[index] == pytest.approx(expected, rel=1e-6)


def test_the_boundary_loss_falls_with_every_pixel_nearer_to_the_border() -> None:
    masks = torch.zeros(1, 1, 24, 24)
    masks[..., 6:18, 6:18] = 1
    of = [
        float(boundary_loss((torch.nn.functional.pad(torch.ones(1, 1, s, s), ((24 - s) // 2,) * 4) - 0.5) * 40, masks)) for s in (4, 12, 20)
    ]
    assert of[1] < of[0] < 0
    assert of[1] < of[2]


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradients_are_finite_and_none_reaches_what_is_ignored(num_classes: int, gamma: float) -> None:
    loss = parse(Loss, {**ALL, "focal_gamma": gamma, "class_weights": 2.0}, "loss")
    criterion = SegmentationLoss(loss, num_classes, ignore=True)
    for scale in (0.0, 1.0, 1e4):
        heads, _, masks = batch_of(num_classes)
        leaves = [(head * scale).requires_grad_() for head in heads]
        criterion(leaves, None, masks)["total"].backward()
        for i, leaf in enumerate(leaves):
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
            assert (leaf.grad[(on_head(masks, i) == IGNORED).expand_as(leaf)] == 0).all()
    values = criterion(heads, None, torch.full_like(masks, IGNORED))
    assert {float(value) for value in values.values()} == {0.0}


def test_in_float32_under_autocast_and_without_waiting_for_the_device() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    criterion = SegmentationLoss(parse(Loss, {**ALL, "class_weights": [1, 2, 1, 3]}, "loss"), 3, ignore=True)
    heads, guide, masks = batch_of(3)
    low = [head.bfloat16() for head in heads]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = criterion(low, guide, masks)
    expected = criterion([head.float() for head in low], guide, masks)
    assert all(value.dtype == torch.float32 and torch.equal(value, expected[name]) for name, value in values.items())
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in (*heads, guide, masks)]
        criterion.shares = mode.from_tensor(criterion.shares)
        assert criterion(fake[:-2], fake[-2], fake[-1])["total"].shape == ()


def made(**loss: Any) -> Experiment:
    return Experiment.from_dict({"data": {"kind": "demo", "num_classes": 2}, "loss": loss})


def test_class_weights_that_change_nothing_are_no_other_experiment() -> None:
    assert made(class_weights=[3, 3, 3]).hash == made(class_weights=1.0).hash == made().hash
    assert made(class_weights=[1, 2, 4]).hash == made(class_weights=[2, 4, 8]).hash != made().hash
    assert made(class_weights=2.0, bce_weight=0).hash == made(bce_weight=0).hash  # a mean over classes of equal weight
    assert made(class_weights=[9, 2, 1], bce_weight=0).hash == made(class_weights=[0, 2, 1], bce_weight=0).hash != made(bce_weight=0).hash
    for weights in ([1, 2], [1, 0, 0]):
        with pytest.raises(UserError, match=r"loss\.class_weights: \d weights .* give 3"):
            made(class_weights=weights)
    assert made(dice_weight=0, bce_weight=0, focal_weight=1)
    with pytest.raises(UserError, match="coarse outputs would learn nothing"):
        made(dice_weight=0, bce_weight=0, boundary_weight=1)
