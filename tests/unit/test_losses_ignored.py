"""The loss with ignored pixels: the formulas once more in NumPy, on lists of the pixels that are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from guidino_tune.config.data import IGNORED
from guidino_tune.config.parsing import parse
from guidino_tune.config.sections import Loss
from guidino_tune.losses import SegmentationLoss, boundary_band

EVERYTHING = {"dice_weight": 0.7, "bce_weight": 1.3, "lambda_guide": 0.4, "hinge_weight": 0.2}


def batch_of(num_classes: int, seed: int = 0, size: int = 32, cases: int = 2) -> tuple[list[Tensor], Tensor, Tensor]:
    """Three heads, a guide of cells of 8 pixels, and labels in blocks of 5 pixels with ignored parts: a margin, a block and some dust."""
    generator = torch.Generator().manual_seed(seed)
    outputs = 1 if num_classes == 1 else num_classes + 1
    heads = [torch.randn(cases, outputs, size >> i, size >> i, generator=generator) * 2 for i in range(3)]
    guide = torch.rand(cases, 1, size // 8, size // 8, generator=generator)
    blocks = torch.randint(0, num_classes + 1, (cases, 1, size // 5 + 1, size // 5 + 1), generator=generator)
    masks = blocks.repeat_interleave(5, 2).repeat_interleave(5, 3)[..., :size, :size].float()
    masks[0, :, :9] = IGNORED  # a whole row of cells, and a part of the next
    masks[-1, :, 13:20, 5:18] = IGNORED
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = IGNORED
    return heads, guide, masks


def on_head(masks: Tensor, i: int, head_target: str = "nearest-exact") -> Tensor:
    """The pixels that the i-th head learns: in the middle of its cells, or in their corners."""
    start = 2**i // 2 if head_target == "nearest-exact" else 0
    return masks[:, :, start :: 2**i, start :: 2**i]


def by_hand(heads: list[Tensor], guide: Tensor, masks: Tensor, loss: Loss, num_classes: int) -> dict[str, float]:
    """Every term, pixel by pixel in float64, of the pixels kept."""
    y = masks.numpy()[:, 0].astype(int)
    weights = [0.5**i / 1.75 for i in range(3)]
    dice, entropy = 0.0, 0.0
    for i, head in enumerate(heads):
        x, target = head.numpy().astype(float), on_head(masks, i, loss.head_target).numpy()[:, 0].astype(int)
        p = 1 / (1 + np.exp(-x)) if num_classes == 1 else np.exp(x) / np.exp(x).sum(1, keepdims=True)
        ratios, costs = [], []
        for cases in [range(len(x))] if loss.batch_dice else [[b] for b in range(len(x))]:
            for number in range(1, num_classes + 1):
                channel = 0 if num_classes == 1 else number
                kept = [(p[b, channel, r, c], target[b, r, c] == number) for b, r, c in np.ndindex(target.shape)
                        if b in cases and target[b, r, c] != IGNORED]  # fmt: skip
                overlap, size = sum(a for a, t in kept if t), sum(a for a, _ in kept) + sum(t for _, t in kept)
                ratios.append(1 - (2 * overlap + 1e-5) / (size + 1e-5))
        for b, r, c in np.ndindex(target.shape):
            if (label := target[b, r, c]) != IGNORED:
                costs.append(-np.log((p[b, 0, r, c] if label else 1 - p[b, 0, r, c]) if num_classes == 1 else p[b, label, r, c]))
        dice += weights[i] * float(np.mean(ratios))
        entropy += weights[i] * float(np.mean(costs))
    cells = []
    for b, r, c in np.ndindex(len(y), *guide.shape[-2:]):
        cell = y[b, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
        cell = (cell if loss.guide_target == "area" else cell[:1, :1]).ravel()
        if len(known := cell[cell != IGNORED]):
            g, share = float(guide[b, 0, r, c]), float((known > 0).mean())
            cells.append((g - share) ** 2 if loss.guide_loss == "mse" else -share * math.log(g) - (1 - share) * math.log(1 - g))
    x, hinges, reach = heads[0].numpy().astype(float), [], loss.hinge_band // 2
    logit = x[:, 0] if num_classes == 1 else np.log(np.exp(x[:, 1:]).sum(1)) - x[:, 0]
    for b, r, c in np.ndindex(y.shape):
        near = y[b, max(0, r - reach) : r + reach + 1, max(0, c - reach) : c + reach + 1]
        if y[b, r, c] != IGNORED and (near == 0).any() and ((near > 0) & (near != IGNORED)).any():
            hinges.append(max(0.0, loss.hinge_margin - (1 if y[b, r, c] else -1) * logit[b, r, c]))
    return {
        "dice": dice, "bce" if num_classes == 1 else "cross_entropy": entropy,
        "guide": float(np.mean(cells)), "hinge": float(np.mean(hinges)),
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "target", "band"), [("bce", "area", 3), ("mse", "nearest", 7)])
@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_every_term_is_that_of_the_pixels_kept(num_classes: int, batch_dice: bool, kind: str, target: str, band: int) -> None:
    choices = {"batch_dice": batch_dice, "guide_loss": kind, "guide_target": target, "hinge_band": band, "hinge_margin": 0.8}
    choices["head_target"] = "nearest-exact" if batch_dice else "nearest"
    loss = parse(Loss, {**EVERYTHING, **choices}, "loss")
    heads, guide, masks = batch_of(num_classes)
    values = SegmentationLoss(loss, num_classes, ignore=True)(heads, guide, masks)
    expected = by_hand(heads, guide, masks, loss, num_classes)
    assert set(values) == {"total", *expected}
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(value, rel=1e-5), name
    parts = zip((0.7, 1.3, 0.4, 0.2), expected.values(), strict=True)
    assert float(values["total"]) == pytest.approx(sum(weight * value for weight, value in parts), rel=1e-5)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_no_gradient_reaches_an_ignored_pixel(num_classes: int) -> None:
    heads, guide, masks = batch_of(num_classes)
    heads = [head.requires_grad_() for head in heads]
    guide.requires_grad_()
    loss = parse(Loss, {**EVERYTHING, "hinge_margin": 50.0, "hinge_band": 9}, "loss")
    SegmentationLoss(loss, num_classes, ignore=True)(heads, guide, masks)["total"].backward()
    for i, head in enumerate(heads):
        ignored = (on_head(masks, i) == IGNORED).expand_as(head)
        assert head.grad is not None
        assert (head.grad[ignored] == 0).all()
        assert (head.grad[~ignored] != 0).any()
    assert guide.grad is not None
    assert (guide.grad[0, :, 0] == 0).all()  # cells of which no pixel is known
    assert (guide.grad[0, :, 2:] != 0).all()


@examples(15)
@given(
    seed=st.integers(0, 10_000),
    num_classes=st.sampled_from([1, 2, 4]),
    noise=st.sampled_from([1.0, 1e6, math.inf, math.nan]),
    batch_dice=st.booleans(),
)
def test_what_is_said_at_ignored_pixels_changes_no_term(seed: int, num_classes: int, noise: float, batch_dice: bool) -> None:
    heads, guide, masks = batch_of(num_classes, seed)
    criterion = SegmentationLoss(parse(Loss, {**EVERYTHING, "batch_dice": batch_dice}, "loss"), num_classes, ignore=True)
    expected = criterion(heads, guide, masks)
    changed = [head.where(on_head(masks, i) != IGNORED, torch.randn_like(head) * noise) for i, head in enumerate(heads)]
    for name, value in criterion(changed, guide, masks).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("kind", ["bce", "mse"])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_a_batch_of_which_nothing_is_known_costs_nothing(num_classes: int, kind: str, batch_dice: bool) -> None:
    heads, guide, masks = batch_of(num_classes)
    leaves = [head.requires_grad_() for head in (*heads, guide)]
    loss = parse(Loss, {**EVERYTHING, "guide_loss": kind, "batch_dice": batch_dice}, "loss")
    values = SegmentationLoss(loss, num_classes, ignore=True)(leaves[:-1], leaves[-1], torch.full_like(masks, IGNORED))
    assert {name: float(value.detach()) for name, value in values.items()} == dict.fromkeys(values, 0.0)
    values["total"].backward()
    assert all(leaf.grad is not None and (leaf.grad == 0).all() for leaf in leaves)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_where_all_pixels_are_known_ignoring_changes_nothing(num_classes: int) -> None:
    heads, guide, masks = batch_of(num_classes)
    masks = masks.where(masks != IGNORED, 0)
    loss = parse(Loss, EVERYTHING, "loss")
    plain, ignoring = (SegmentationLoss(loss, num_classes, ignore)(heads, guide, masks) for ignore in (False, True))
    for name, value in plain.items():
        assert float(ignoring[name]) == pytest.approx(float(value), rel=1e-6), name


def test_a_diverged_guide_is_told_whatever_is_ignored() -> None:
    heads, guide, masks = batch_of(1)
    values = SegmentationLoss(Loss(), ignore=True)(heads, torch.full_like(guide, math.nan), masks)
    assert math.isnan(float(values["total"]))


def test_the_edge_of_an_ignored_area_is_no_border_and_does_not_hide_one() -> None:
    drawn = ["1111?0000", "1111?0000", "1111??000", "1111???00", "11110??00", "1111000??"]
    band = ["000000000", "000000000", "000000000", "000100000", "000110000", "000110000"]
    mask = torch.tensor([[IGNORED if c == "?" else float(c) for c in row] for row in drawn])[None, None]
    known = (mask != IGNORED).float()
    found = boundary_band((mask > 0).float(), 3, known)
    assert ["".join(str(int(v)) for v in row) for row in found[0, 0].tolist()] == band


def test_no_waiting_for_the_device() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for num_classes in (1, 3):
        heads, guide, masks = batch_of(num_classes)
        with FakeTensorMode() as mode:
            fake = [mode.from_tensor(tensor) for tensor in (*heads, guide, masks)]
            criterion = SegmentationLoss(parse(Loss, EVERYTHING, "loss"), num_classes, ignore=True)
            assert criterion(tuple(fake[:-2]), fake[-2], fake[-1])["total"].shape == ()
