"""The loss of label maps against formulas written again in NumPy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from monai.losses.dice import DiceLoss
from scipy import ndimage
from torch import Tensor

from guidino_tune.config.parsing import parse
from guidino_tune.config.sections import Loss
from guidino_tune.losses import SegmentationLoss, cross_entropy_loss, foreground_logits, soft_dice_loss


def _labelled(
    seed: int = 0, num_classes: int = 3, heads: int = 3, size: int = 64, batch: int = 2
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Logits of background and classes, a guide, and labels in blocks of 5 pixels, which no coarse grid fits."""
    generator = torch.Generator().manual_seed(seed)
    logits = tuple(torch.randn(batch, 1 + num_classes, size >> i, size >> i, generator=generator) * 2 for i in range(heads))
    guide = torch.rand(batch, 1, size // 16, size // 16, generator=generator)
    blocks = torch.randint(0, num_classes + 1, (batch, 1, size // 5 + 1, size // 5 + 1), generator=generator)
    return logits, guide, blocks.repeat_interleave(5, 2).repeat_interleave(5, 3)[..., :size, :size].float()


def _np_class_terms(logits: tuple[Tensor, ...], guide: Tensor, labels: Tensor, loss: Loss) -> dict[str, float]:
    """Every term again, class by class, in float64, without torch."""
    y = labels.numpy()[:, 0].astype(int)
    weights = [0.5**i for i in range(len(logits))]
    terms = {"dice": 0.0, "cross_entropy": 0.0}
    for i, head in enumerate(logits):
        x, target = head.numpy().astype(float), y[:, 2**i // 2 :: 2**i, 2**i // 2 :: 2**i]
        p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
        weight = weights[i] / sum(weights)
        ratios = []
        for number in range(1, x.shape[1]):
            for cases in [slice(None)] if loss.batch_dice else [slice(b, b + 1) for b in range(len(x))]:
                a, b = p[cases, number], target[cases] == number
                ratios.append(1 - (2 * a[b].sum() + 1e-5) / (a.sum() + b.sum() + 1e-5))
        terms["dice"] += weight * float(np.mean(ratios))
        likely = [p[b, target[b, r, c], r, c] for b, r, c in np.ndindex(target.shape)]
        terms["cross_entropy"] += weight * float(-np.mean(np.log(likely)))
    union = (y > 0).astype(float)
    terms["guide"] = _np_guide(guide.numpy()[:, 0].astype(float), union, loss)
    x = logits[0].numpy().astype(float)
    logit = np.log(np.exp(x[:, 1:]).sum(1)) - x[:, 0]
    window = (1, loss.hinge_band, loss.hinge_band)
    band = ndimage.maximum_filter(union, window, mode="nearest") > ndimage.minimum_filter(union, window, mode="nearest")
    terms["hinge"] = float(np.maximum(0, loss.hinge_margin - (2 * union - 1) * logit)[band].mean())
    return terms


def _np_guide(guide: np.ndarray, union: np.ndarray, loss: Loss) -> float:
    cells = union.reshape(len(union), 4, 16, 4, 16).mean((2, 4)) if loss.guide_target == "area" else union[:, ::16, ::16]
    if loss.guide_loss == "mse":
        return float(np.mean((guide - cells) ** 2))
    return float(-np.mean(cells * np.log(guide) + (1 - cells) * np.log(1 - guide)))


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize(("kind", "target", "band"), [("bce", "area", 3), ("mse", "nearest", 7)])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_every_term_of_several_classes_matches_numpy(batch_dice: bool, kind: str, target: str, band: int, num_classes: int) -> None:
    weights = {"dice_weight": 0.7, "bce_weight": 1.3, "lambda_guide": 0.4, "hinge_weight": 0.2}
    choices = {"batch_dice": batch_dice, "guide_loss": kind, "guide_target": target, "hinge_band": band, "hinge_margin": 0.8}
    loss = parse(Loss, {**weights, **choices}, "loss")
    logits, guide, labels = _labelled(num_classes=num_classes)
    values = SegmentationLoss(loss, num_classes)(logits, guide, labels)
    expected = _np_class_terms(logits, guide, labels, loss)
    assert set(values) == {"total", *expected}
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(value, rel=1e-5), name
    total = 0.7 * expected["dice"] + 1.3 * expected["cross_entropy"] + 0.4 * expected["guide"] + 0.2 * expected["hinge"]
    assert float(values["total"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("batch", [True, False])
def test_dice_of_several_classes_is_monai_s_without_background(batch: bool) -> None:
    (logits, *_), _, labels = _labelled(seed=3)
    monai = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5)
    assert torch.allclose(soft_dice_loss(logits, labels, batch=batch), monai(logits, labels), atol=1e-6)


@examples(15)
@given(seed=st.integers(0, 10_000), batch=st.booleans())
def test_a_softmax_of_two_is_the_sigmoid_of_their_difference(seed: int, batch: bool) -> None:
    (logits, *_), _, masks = _labelled(seed, num_classes=1, size=32)
    single = logits[:, 1:] - logits[:, :1]
    assert torch.allclose(foreground_logits(logits), single, atol=1e-5)
    assert torch.allclose(soft_dice_loss(logits, masks, batch=batch), soft_dice_loss(single, masks, batch=batch), atol=1e-5)
    assert torch.allclose(cross_entropy_loss(logits, masks), cross_entropy_loss(single, masks), atol=1e-5)


@examples(15)
@given(seed=st.integers(0, 10_000), order=st.permutations([1, 2, 3, 4]), shift=st.floats(-5, 5))
def test_names_of_classes_and_a_common_shift_change_nothing(seed: int, order: list[int], shift: float) -> None:
    logits, guide, labels = _labelled(seed, num_classes=4, heads=2, size=32)
    criterion = SegmentationLoss(Loss(hinge_weight=0.5, batch_dice=bool(seed % 2)), num_classes=4)
    renamed = torch.tensor([0, *order]).argsort()[labels.long()].float()  # class order[i] is called i + 1 now
    moved = tuple(head[:, [0, *order]] + shift for head in logits)
    expected, values = criterion(logits, guide, labels), criterion(moved, guide, renamed)
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name


def test_a_border_between_two_classes_is_no_border_for_the_hinge() -> None:
    drawn = ["000000000", "001122000", "001122000", "000000000", "000000000", "000000000", "000000000", "333333333", "333333333"]
    band = ["011111100", "011111100", "011111100", "011111100", "000000000", "000000000", "111111111", "111111111", "000000000"]
    labels, wanted = (torch.tensor([[float(c) for c in row] for row in rows])[None, None] for rows in (drawn, band))
    logits = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
    criterion = SegmentationLoss(Loss(dice_weight=0.0, bce_weight=0.0, hinge_weight=1.0, hinge_margin=9.0), num_classes=3)
    value = criterion((logits,), None, labels)["total"]
    value.backward()
    assert logits.grad is not None
    # The margin is far away, so that every pixel of the band pulls, and no other one does.
    assert torch.equal(logits.grad.abs().sum(1, keepdim=True) > 0, wanted > 0)
    x = logits.detach().numpy()[0]
    loss = [9 - (1 if c != "0" else -1) * (np.log(np.exp(x[1:, r, k]).sum()) - x[0, r, k])
            for r, row in enumerate(drawn) for k, c in enumerate(row) if band[r][k] == "1"]  # fmt: skip
    assert float(value.detach()) == pytest.approx(np.mean(loss), rel=1e-5)


def test_a_perfect_label_map_costs_nothing_and_a_mixed_up_one_does() -> None:
    _, _, labels = _labelled(heads=1)
    perfect = tuple(
        torch.stack([(labels[:, 0, 2**i // 2 :: 2**i, 2**i // 2 :: 2**i] == number) * 60.0 for number in range(4)], 1) for i in range(3)
    )
    criterion = SegmentationLoss(Loss(hinge_weight=1.0, guide_target="nearest"), num_classes=3)
    guide = (labels[:, :, ::16, ::16] > 0).float()
    assert all(float(value) == pytest.approx(0, abs=1e-4) for value in criterion(perfect, guide, labels).values())
    mixed = criterion(tuple(head[:, [0, 2, 3, 1]] for head in perfect), guide, labels)
    assert float(mixed["dice"]) == pytest.approx(1, abs=1e-3)
    assert float(mixed["cross_entropy"]) > 20
    assert float(mixed["hinge"]) == pytest.approx(0, abs=1e-4)  # foreground is where it should be, whatever its class


def test_logits_of_another_number_of_classes_are_refused() -> None:
    logits, guide, labels = _labelled(num_classes=3)
    for num_classes in (1, 2, 4):
        with pytest.raises(ValueError, match="channels"):
            SegmentationLoss(Loss(), num_classes)(logits, guide, labels)


@pytest.mark.parametrize("scale", [0.0, 100.0, 1e4])
def test_gradients_of_several_classes_are_finite(scale: float) -> None:
    logits, guide, labels = _labelled(seed=7, size=32)
    heads = [(head * scale).requires_grad_() for head in logits]
    SegmentationLoss(Loss(hinge_weight=0.5), num_classes=3)(heads, guide, labels)["total"].backward()
    assert all(head.grad is not None and torch.isfinite(head.grad).all() for head in heads)


def test_several_classes_in_float32_and_without_waiting_for_the_device() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    logits, guide, labels = _labelled()
    criterion = SegmentationLoss(Loss(hinge_weight=1.0), num_classes=3)
    low = tuple(head.bfloat16() for head in logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = criterion(low, guide, labels)
    expected = criterion(tuple(head.float() for head in low), guide, labels)
    assert all(value.dtype == torch.float32 and torch.equal(value, expected[name]) for name, value in values.items())
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in (*logits, guide, labels)]
        criterion.shares = mode.from_tensor(criterion.shares)
        assert criterion(tuple(fake[:-2]), fake[-2], fake[-1])["total"].shape == ()
