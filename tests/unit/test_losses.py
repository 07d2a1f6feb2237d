"""The loss against formulas written again in NumPy, and by hand."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from monai.losses.dice import DiceLoss
from torch import Tensor

from guidino_tune import losses
from guidino_tune.config.parsing import parse
from guidino_tune.config.sections import Loss
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.losses import SegmentationLoss, boundary_band, deep_supervision_weights, guide_loss, hinge_loss, soft_dice_loss


def _batch(seed: int = 0, heads: int = 3, size: int = 64, batch: int = 2) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = tuple(torch.randn(batch, 1, size >> i, size >> i, generator=generator) * 2 for i in range(heads))
    guide = torch.rand(batch, 1, size // 16, size // 16, generator=generator)
    masks = torch.zeros(batch, 1, size, size)
    for b in range(batch):
        masks[b, 0, 10 : 30 + 7 * b, 20 + b : 50] = 1
    return logits, guide, masks


def _np_dice(logits: np.ndarray, masks: np.ndarray, axes: tuple[int, ...]) -> float:
    p = 1 / (1 + np.exp(-logits))
    return float(np.mean(1 - (2 * (p * masks).sum(axes) + 1e-5) / (p.sum(axes) + masks.sum(axes) + 1e-5)))


def _np_bce(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def _np_terms(logits: tuple[Tensor, ...], guide: Tensor, masks: Tensor, loss: Loss) -> dict[str, float]:
    """Every term again, in float64, without torch."""
    y = masks.numpy().astype(float)
    weights = [0.5**i for i in range(len(logits))]
    terms = {"dice": 0.0, "bce": 0.0}
    for i, head in enumerate(logits):
        middle = 2**i // 2 if loss.head_target == "nearest-exact" else 0
        x, target = head.numpy().astype(float), y[:, :, middle :: 2**i, middle :: 2**i]
        terms["dice"] += weights[i] / sum(weights) * _np_dice(x, target, (0, 1, 2, 3) if loss.batch_dice else (1, 2, 3))
        terms["bce"] += weights[i] / sum(weights) * _np_bce(1 / (1 + np.exp(-x)), target)
    cells = y.reshape(len(y), 1, 4, 16, 4, 16).mean((3, 5)) if loss.guide_target == "area" else y[:, :, ::16, ::16]
    g = guide.numpy().astype(float)
    terms["guide"] = _np_bce(g, cells) if loss.guide_loss == "bce" else float(np.mean((g - cells) ** 2))
    return terms


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("kind", ["bce", "mse"])
@pytest.mark.parametrize("target", ["area", "nearest"])
@pytest.mark.parametrize("head_target", ["nearest-exact", "nearest"])
def test_every_term_and_the_total_match_numpy(batch_dice: bool, kind: str, target: str, head_target: str) -> None:
    weights = {"dice_weight": 0.7, "bce_weight": 1.3, "lambda_guide": 0.4}
    choices = {"batch_dice": batch_dice, "guide_loss": kind, "guide_target": target, "head_target": head_target}
    loss = parse(Loss, {**weights, **choices}, "loss")
    logits, guide, masks = _batch()
    values = SegmentationLoss(loss)(logits, guide, masks)
    expected = _np_terms(logits, guide, masks, loss)
    assert set(values) == {"total", "dice", "bce", "guide"}
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(value, rel=1e-5), name
    total = 0.7 * expected["dice"] + 1.3 * expected["bce"] + 0.4 * expected["guide"]
    assert float(values["total"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("batch", [True, False])
def test_dice_is_monai_s(batch: bool) -> None:
    (logits, *_), _, masks = _batch(seed=3)
    expected = DiceLoss(sigmoid=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5)(logits, masks)
    assert torch.allclose(soft_dice_loss(logits, masks, batch=batch), expected, atol=1e-6)


def test_batch_dice_and_case_dice_differ_on_cases_of_different_size() -> None:
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, :32], masks[1, :, :2, :2] = 1, 1
    logits = torch.full_like(masks, -20.0)
    logits[0, :, :32] = 20  # the large case is perfect, the small one missed
    assert float(soft_dice_loss(logits, masks, batch=True)) == pytest.approx(1 - 4096 / (4096 + 4), abs=1e-4)
    assert float(soft_dice_loss(logits, masks, batch=False)) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("batch", [True, False])
def test_finding_nothing_where_nothing_is_is_perfect(batch: bool) -> None:
    masks = torch.zeros(2, 1, 16, 16)
    assert float(soft_dice_loss(masks - 40, masks, batch=batch)) == pytest.approx(0, abs=1e-6)


def test_weights_of_five_heads_are_the_reference_s() -> None:
    assert deep_supervision_weights(5) == pytest.approx([16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31])
    assert deep_supervision_weights(1) == [1.0]


def test_each_head_counts_once_with_its_own_weight() -> None:
    """The reference counts its main head fully and the others weighted on top."""
    logits, _, masks = _batch(heads=3)
    criterion = SegmentationLoss(Loss(dice_weight=0.0, bce_weight=1.0))
    alone = [float(criterion((head,), None, masks)["total"]) for head in logits]
    assert float(criterion(logits, None, masks)["total"]) == pytest.approx((4 * alone[0] + 2 * alone[1] + alone[2]) / 7, rel=1e-5)


def test_perfect_prediction_is_near_zero_and_opposite_is_not() -> None:
    _, _, masks = _batch(heads=1)
    logits = tuple((masks[:, :, 2**i // 2 :: 2**i, 2**i // 2 :: 2**i] * 2 - 1) * 30 for i in range(3))
    criterion = SegmentationLoss(Loss(hinge_weight=1.0, guide_target="nearest"))
    perfect = criterion(logits, masks[:, :, ::16, ::16], masks)
    assert float(perfect["total"]) == pytest.approx(0, abs=1e-4)
    assert all(float(value) == pytest.approx(0, abs=1e-4) for value in perfect.values())
    wrong = criterion(tuple(-head for head in logits), 1 - masks[:, :, ::16, ::16], masks)
    assert float(wrong["dice"]) == pytest.approx(1, abs=1e-3)
    assert float(wrong["hinge"]) == pytest.approx(31, abs=1e-3)
    assert float(wrong["bce"]) == pytest.approx(30, abs=1e-3)
    assert float(wrong["guide"]) > 10


@functools.cache
def _polyps() -> list[torch.Tensor]:
    return [torch.as_tensor(generate(number, 256)[1] > 0).float()[None, None] for number in range(20)]


def _majority_dice(mode: str, cell: int) -> float:
    """Mean Dice of the target of a head at ``1 / cell`` of the size to the cells of which the mask covers half or more, over polyps."""
    found = []
    for y in _polyps():
        majority = y[0, 0].numpy().reshape(256 // cell, cell, 256 // cell, cell).mean((1, 3)) >= 0.5
        target = losses._resized(y, torch.empty(1, 1, 256 // cell, 256 // cell), mode)[0, 0].numpy() > 0
        found.append(2 * (majority & target).sum() / (majority.sum() + target.sum()))
    return float(np.mean(found))


@pytest.mark.parametrize(("cell", "corner"), [(4, 0.96), (8, 0.91), (16, 0.80)])
def test_the_target_of_a_coarse_head_lies_where_the_mask_lies(cell: int, corner: float) -> None:
    """The pixel in a cell's corner moves the whole target by half a cell, down and to the right."""
    assert _majority_dice("nearest-exact", cell) == pytest.approx(0.985, abs=0.005)
    assert _majority_dice("nearest", cell) == pytest.approx(corner, abs=0.01)


def test_area_target_is_the_share_of_foreground_in_a_cell() -> None:
    masks = torch.zeros(1, 1, 32, 32)
    masks[:, :, :16, 8:16] = 1  # half of the first cell; its top-left pixel is background
    guide = torch.full((1, 1, 2, 2), 1e-6)
    guide[0, 0, 0, 0] = 0.5
    assert float(guide_loss(guide, masks, kind="mse", target="area")) == pytest.approx(0, abs=1e-6)
    assert float(guide_loss(guide, masks, kind="mse", target="nearest")) == pytest.approx(0.25 / 4, abs=1e-5)
    assert float(guide_loss(guide, masks, kind="bce", target="area")) == pytest.approx(np.log(2) / 4, rel=1e-3)


def test_band_of_a_drawn_mask() -> None:
    drawn = ["0000000", "0000000", "0011100", "0011100", "0011100", "0000000", "0000000"]
    wanted = ["0000000", "0111110", "0111110", "0110110", "0111110", "0111110", "0000000"]
    mask = torch.tensor([[float(c) for c in row] for row in drawn])[None, None]
    band = torch.tensor([[float(c) for c in row] for row in wanted])[None, None]
    assert torch.equal(boundary_band(mask, 3), band)


def test_hinge_of_a_drawn_mask_by_hand() -> None:
    mask = torch.tensor([[0.0, 0, 0, 1, 1, 1]]).repeat(4, 1)[None, None]
    logits = torch.tensor([[9.0, 9, 0.25, -2, 9, -9]]).repeat(4, 1)[None, None]
    # On the border lie columns 2 (background, 0.25: loss 1.25) and 3 (foreground, -2: loss 3); a band of 5 adds columns 1 (10) and 4 (0).
    assert float(hinge_loss(logits, mask, band=3)) == pytest.approx((1.25 + 3) / 2)
    assert float(hinge_loss(logits, mask, band=5)) == pytest.approx((10 + 1.25 + 3 + 0) / 4)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_no_border_no_hinge(fill: float) -> None:
    """Also when the foreground covers the image: its edge is no border."""
    masks = torch.full((1, 1, 16, 16), fill)
    assert not boundary_band(masks, 5).any()
    assert float(hinge_loss(torch.randn(1, 1, 16, 16) * 5, masks, band=5)) == 0


@examples(15)
@given(seed=st.integers(0, 10_000), width=st.sampled_from([3, 5, 9]))
def test_band_is_where_a_window_sees_both(seed: int, width: int) -> None:
    mask = (np.random.default_rng(seed).random((12, 15)) > 0.9).astype(np.float32)
    band = boundary_band(torch.from_numpy(mask)[None, None], width)[0, 0].numpy()
    r = width // 2
    for y, x in np.ndindex(mask.shape):
        window = mask[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
        assert band[y, x] == float(window.min() != window.max())


def test_hinge_is_the_mean_over_the_band_and_has_no_gradient_outside() -> None:
    (logits, *_), _, masks = _batch(seed=5)
    logits.requires_grad_()
    value = hinge_loss(logits, masks, margin=0.7, band=5)
    torch.autograd.backward(value)
    band = boundary_band(masks, 5).bool()
    value = value.detach()
    x, y = logits.detach()[band].numpy(), masks[band].numpy()
    assert float(value) == pytest.approx(np.maximum(0, 0.7 - (2 * y - 1) * x).mean(), rel=1e-5)
    assert logits.grad is not None
    assert (logits.grad[~band] == 0).all()
    assert (logits.grad[band] != 0).any()


def test_hinge_is_on_the_finest_head_only() -> None:
    logits, _, masks = _batch(heads=2)
    criterion = SegmentationLoss(Loss(dice_weight=0.0, bce_weight=0.0, hinge_weight=2.0, hinge_margin=0.4, hinge_band=7))
    values = criterion(logits, None, masks)
    assert set(values) == {"total", "hinge"}
    assert float(values["total"]) == pytest.approx(2 * float(hinge_loss(logits[0], masks, margin=0.4, band=7)))


@examples(15)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.0, 1.0, 100.0, 1e4]), fill=st.sampled_from([0.0, 0.5, 1.0]))
def test_gradients_are_finite(seed: int, scale: float, fill: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = [(torch.randn(2, 1, 32 >> i, 32 >> i, generator=generator) * scale).requires_grad_() for i in range(2)]
    guide = torch.rand(2, 1, 2, 2, generator=generator).round().requires_grad_()  # exactly 0 or 1, where the logarithm has no value
    masks = (torch.rand(2, 1, 32, 32, generator=generator) < fill).float()
    SegmentationLoss(Loss(hinge_weight=0.5))(tuple(logits), guide, masks)["total"].backward()
    for tensor in (*logits, guide):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert guide.grad is not None
    assert guide.grad.abs().max() <= 1e6


def test_only_the_total_holds_the_graph() -> None:
    logits, guide, masks = _batch()
    values = SegmentationLoss(Loss(hinge_weight=1.0))(tuple(head.requires_grad_() for head in logits), guide, masks)
    assert [name for name, value in values.items() if value.requires_grad] == ["total"]


def test_terms_without_weight_or_guide_are_absent() -> None:
    logits, guide, masks = _batch()
    assert set(SegmentationLoss(Loss())(logits, None, masks)) == {"total", "dice", "bce"}
    assert set(SegmentationLoss(Loss(lambda_guide=0.0, bce_weight=0.0))(logits, guide, masks)) == {"total", "dice"}
    with pytest.raises(UserError, match="nothing would train"):
        SegmentationLoss(Loss(dice_weight=0.0, bce_weight=0.0))


def test_computed_in_float32_under_autocast() -> None:
    logits, guide, masks = _batch()
    low = tuple(head.bfloat16() for head in logits)
    criterion = SegmentationLoss(Loss(hinge_weight=0.3))
    expected = criterion(tuple(head.float() for head in low), guide, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = criterion(low, guide, masks)
    for name, value in values.items():
        assert value.dtype == torch.float32
        assert torch.equal(value.detach(), expected[name].detach()), name


def test_autocast_is_off_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary cross-entropy of probabilities refuses to run under CUDA's autocast."""
    logits, guide, masks = _batch()
    seen: list[bool] = []

    def recorded(*_: object, **__: object) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return torch.zeros(())

    monkeypatch.setattr(losses, "guide_loss", recorded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        SegmentationLoss(Loss())(logits, guide, masks)
    assert seen == [False]


def test_never_waits_for_the_device() -> None:
    """Fake tensors have no values: whoever asks for one (``item``, a boolean index, an ``if``) fails."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    logits, guide, masks = _batch()
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in (*logits, guide, masks)]
        values = SegmentationLoss(Loss(hinge_weight=1.0))(tuple(fake[:-2]), fake[-2], fake[-1])
    assert values["total"].shape == ()
