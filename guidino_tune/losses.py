"""The training loss: soft Dice, cross-entropy, guide term and boundary hinge, with deep supervision (GuiDINO, section "Loss").

Binary masks have one channel of logits (sigmoid). Label maps have one for the background and one per class (softmax); Dice then leaves
the background out, as nnU-Net does, and the guide term and the hinge see all classes as one foreground.

Where masks may hold ``IGNORED``, those pixels are in none of the terms: means are over the other pixels, and sums leave them out.

Everything is computed in float32, whatever autocast the caller runs under: a bf16 sum over 65,536 pixels keeps two digits.
Nothing here waits for the device; the caller decides when a value is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.config.data import IGNORED
from guidino_tune.config.sections import Loss
from guidino_tune.custom_loss import load_term
from guidino_tune.errors import UserError

_SMOOTH = 1e-5
_PROBABILITY_EPS = 1e-6


def deep_supervision_weights(num_heads: int) -> list[float]:
    """Weight of each head, finest first: ``1 / 2**i``, normalised to sum to one over all heads.

    nnU-Net sets the last weight to zero; GuiDINO keeps it, and so do we.
    """
    total = sum(0.5**i for i in range(num_heads))
    return [0.5**i / total for i in range(num_heads)]


def soft_dice_loss(logits: Tensor, masks: Tensor, *, batch: bool = True, known: Tensor | None = None) -> Tensor:
    """``1 - (2 * sum(p * y) + s) / (sum(p) + sum(y) + s)`` with ``s = 1e-5``: 0 is perfect, 1 is no overlap.

    Args:
        logits: (B, 1, H, W) of binary masks, or (B, 1 + K, H, W) of background and K classes; float32.
        masks: (B, 1, H, W), 0 or 1, or labels 0 to K; float32.
        batch: Sum over the whole batch before the ratio (nnU-Net in 2D, "batch Dice"); else one ratio per case, then their mean.
        known: (B, 1, H, W), 1 for the pixels that count and 0 for those that do not; ``None``: all do.

    Returns:
        A scalar, the mean over the classes without the background. In distributed training the batch is that of one worker.
    """
    axes = (0, 2, 3) if batch else (2, 3)
    probabilities = logits.sigmoid()
    if logits.shape[1] > 1:
        probabilities = logits.softmax(1)[:, 1:]
        masks = (masks == torch.arange(1, logits.shape[1], device=masks.device).view(1, -1, 1, 1)).to(masks.dtype)
    if known is not None:
        probabilities, masks = probabilities * known, masks * known
    overlap = (probabilities * masks).sum(axes)
    size = probabilities.sum(axes) + masks.sum(axes)
    return (1 - (2 * overlap + _SMOOTH) / (size + _SMOOTH)).mean()


def cross_entropy_loss(logits: Tensor, masks: Tensor, known: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of one channel, or softmax cross-entropy of several; the mean over all pixels that count, 0 of none.

    Args:
        logits: As in ``soft_dice_loss``.
        masks: As there.
        known: As there.
    """
    if known is not None:
        if logits.shape[1] == 1:
            losses = F.binary_cross_entropy_with_logits(logits, masks * known, reduction="none")
        else:
            losses = F.cross_entropy(logits, (masks * known)[:, 0].long(), reduction="none")[:, None]
        return _mean(losses, known)
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, masks)
    return F.cross_entropy(logits, masks[:, 0].long())


def foreground_logits(logits: Tensor) -> Tensor:
    """The logit of "not background", (B, 1, H, W), of any number of classes: ``log sum exp`` of the classes minus the background."""
    return logits if logits.shape[1] == 1 else logits[:, 1:].logsumexp(1, keepdim=True) - logits[:, :1]


def guide_loss(guide: Tensor, masks: Tensor, *, kind: str = "bce", target: str = "area", known: Tensor | None = None) -> Tensor:
    """Distance between the guide mask and the ground truth on the guide's own grid.

    Args:
        guide: (B, 1, h, w), probabilities in [0, 1], float32.
        masks: (B, 1, H, W), 0 or 1, float32.
        kind: ``bce`` (the paper) or ``mse`` (the reference code).
        target: ``area``: the share of foreground in each cell; ``nearest``: the cell's top-left pixel, as the reference code has it.
        known: (B, 1, H, W), 1 for the pixels that count and 0 for those that do not: the share is that among them, and a cell without any
            (or whose top-left pixel is none of them) does not count.

    Returns:
        A scalar. With ``bce`` and cells of mixed area its least value is above 0 (the entropy of the shares).
    """
    if known is None:
        cells, weights = _cells(masks, guide, target), None
    else:
        seen = _cells(known, guide, target)
        cells, weights = _cells(masks * known, guide, target) / seen.clamp(min=1e-12), (seen > 0).to(seen.dtype)
    if kind == "mse":
        return F.mse_loss(guide, cells) if weights is None else _mean((guide - cells) ** 2, weights)
    # The logarithm's slope at 0 and 1 is infinite; a cosine can get there exactly. Written out, for torch's own function refuses NaN, on
    # a GPU by ending the process: a diverged guide must reach the loss as NaN instead.
    likely = guide.clamp(_PROBABILITY_EPS, 1 - _PROBABILITY_EPS)
    losses = cells * likely.log() + (1 - cells) * (1 - likely).log()
    return -losses.mean() if weights is None else -_mean(losses, weights)


def boundary_band(masks: Tensor, width: int, known: Tensor | None = None) -> Tensor:
    """1 where a ``width`` x ``width`` window sees both foreground and background, else 0: both sides of every border.

    Args:
        masks: (B, 1, H, W), 0 or 1, float.
        width: Odd, in pixels; 3 gives one pixel on each side.
        known: (B, 1, H, W), 1 for the pixels that count and 0 for those that do not: they are neither foreground nor background, so that
            their edge is no border, and not in the band.

    Returns:
        (B, 1, H, W), float. Max-pooling pads with minus infinity, so that the edge of the image is no border.
    """
    inside, outside = (masks, -masks) if known is None else (masks * known, (1 - masks) * known - 1)
    highest = F.max_pool2d(inside, width, stride=1, padding=width // 2)
    lowest = -F.max_pool2d(outside, width, stride=1, padding=width // 2)
    band = (highest > lowest).to(masks.dtype)
    return band if known is None else band * known


def hinge_loss(logits: Tensor, masks: Tensor, *, margin: float = 1.0, band: int = 3, known: Tensor | None = None) -> Tensor:
    """``relu(margin - y * logit)`` with ``y`` in {-1, +1}, averaged over the pixels of the boundary band.

    Args:
        logits: (B, 1, H, W), float32.
        masks: (B, 1, H, W), 0 or 1, float32.
        margin: In logits.
        band: Width of the boundary band in pixels (odd).
        known: As in ``boundary_band``.

    Returns:
        A scalar; 0 where the batch has no border at all.
    """
    return _mean(F.relu(margin - (2 * masks - 1) * logits), boundary_band(masks, band, known))


class SegmentationLoss(nn.Module):
    """``dice_weight * Dice + bce_weight * cross-entropy + lambda_guide * guide + hinge_weight * hinge``.

    Dice and cross-entropy are averaged over all heads with ``deep_supervision_weights``, every head once, against the mask on the head's
    grid (``loss.head_target``). The guide term counts once, and the hinge is on the finest head only: a band of pixels has no meaning on
    coarse heads. A term of the user's own sees the finest head too.

    Args:
        loss: Weights and choices.
        num_classes: Foreground classes; 1 for binary masks.
        ignore: Masks may hold ``IGNORED``: what a network says there changes nothing, and gets no gradient. A batch that is ignored
            altogether has a loss of 0.

    Raises:
        UserError: Neither Dice nor BCE nor hinge has a weight, so that nothing would train the segmenter.
    """

    def __init__(self, loss: Loss, num_classes: int = 1, ignore: bool = False) -> None:
        super().__init__()
        if not (loss.dice_weight or loss.bce_weight or loss.hinge_weight):
            raise UserError(
                "dice_weight, bce_weight and hinge_weight are all 0, so nothing would train the segmenter",
                where="loss",
                todo="give at least one of them a weight above 0",
            )
        self.loss, self.ignore = loss, ignore
        self.custom = load_term(loss.custom) if loss.custom and loss.custom.weight else None
        self.num_outputs = 1 if num_classes == 1 else num_classes + 1

    def forward(self, logits: Sequence[Tensor], guide: Tensor | None, masks: Tensor) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            logits: One (B, 1, h_i, w_i) per head, finest first; with several classes (B, 1 + num_classes, h_i, w_i).
            guide: (B, 1, h, w) with values in [0, 1], or ``None`` for a network without guide mask (then there is no guide term).
            masks: (B, 1, H, W), 0 or 1, or labels 0 to ``num_classes``, and ``IGNORED`` where that was said; floating point.

        Returns:
            ``total``, which carries the gradient, and the unweighted, detached value of each term in use: ``dice``, ``bce`` (with several
            classes ``cross_entropy``), ``guide``, ``hinge``, ``custom``. All are float32 scalars on the device of the logits.

        Raises:
            ValueError: The logits have another number of channels.
        """
        if any(head.shape[1] != self.num_outputs for head in logits):
            raise ValueError(f"the loss expects {self.num_outputs} channels of logits, got {[head.shape[1] for head in logits]}")
        with torch.autocast(device_type=masks.device.type, enabled=False):
            terms = self._terms([head.float() for head in logits], None if guide is None else guide.float(), masks.float())
            total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        return {"total": total, **{name: value.detach() for name, (_, value) in terms.items()}}

    def _terms(self, heads: list[Tensor], guide: Tensor | None, masks: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight and unweighted value of each term in use."""
        loss = self.loss
        weights = deep_supervision_weights(len(heads))
        targets = [_resized(masks, head, loss.head_target) for head in heads]
        known: list[Tensor | None] = [None] * len(heads)
        if self.ignore:
            seen = [target != IGNORED for target in targets]
            # Not multiplied by 0, which infinity would survive.
            heads = [head.where(there, 0) for head, there in zip(heads, seen, strict=True)]
            known = [there.to(masks.dtype) for there in seen]
        parts = list(zip(weights, heads, targets, known, strict=True))
        terms: dict[str, tuple[float, Tensor]] = {}
        if loss.dice_weight:
            dice = [w * soft_dice_loss(h, t, batch=loss.batch_dice, known=k) for w, h, t, k in parts]
            terms["dice"] = (loss.dice_weight, torch.stack(dice).sum())
        if loss.bce_weight:
            name = "bce" if self.num_outputs == 1 else "cross_entropy"
            entropy = [w * cross_entropy_loss(h, t, k) for w, h, t, k in parts]
            terms[name] = (loss.bce_weight, torch.stack(entropy).sum())
        if loss.lambda_guide and guide is not None:
            there = (masks != IGNORED).to(masks.dtype) if self.ignore else None
            value = guide_loss(guide, _union(masks), kind=loss.guide_loss, target=loss.guide_target, known=there)
            terms["guide"] = (loss.lambda_guide, value)
        if loss.hinge_weight:
            logits, target = foreground_logits(heads[0]), _union(targets[0])
            value = hinge_loss(logits, target, margin=loss.hinge_margin, band=loss.hinge_band, known=known[0])
            terms["hinge"] = (loss.hinge_weight, value)
        if self.custom is not None and loss.custom is not None:
            terms["custom"] = (loss.custom.weight, self.custom(heads[0], targets[0]))
        return terms


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The mean of what has a weight of 1 and not of 0; of nothing 0."""
    return (losses * weights).sum() / weights.sum().clamp(min=1)


def _cells(maps: Tensor, guide: Tensor, target: str) -> Tensor:
    """Maps on the guide's grid: means of its cells, or their top-left pixels."""
    grid = (guide.shape[-2], guide.shape[-1])
    return F.adaptive_avg_pool2d(maps, grid) if target == "area" else F.interpolate(maps, size=grid, mode="nearest")


def _union(masks: Tensor) -> Tensor:
    """1 where any class is, and where ``IGNORED`` is."""
    return (masks > 0).to(masks.dtype)


def _resized(masks: Tensor, head: Tensor, mode: str) -> Tensor:
    """The masks on the head's grid: the pixel in the middle of each cell (``nearest-exact``) or in its corner (``nearest``)."""
    size = (head.shape[-2], head.shape[-1])
    return masks if size == tuple(masks.shape[-2:]) else F.interpolate(masks, size=size, mode=mode)
