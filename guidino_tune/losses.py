"""The training loss: terms on regions, pixels, borders and the guide, with deep supervision (GuiDINO, section "Loss").

Binary masks have one channel of logits (sigmoid). Label maps have one for the background and one per class (softmax); Dice then leaves
the background out, as nnU-Net does, and the guide term and the hinge see all classes as one foreground.

Where masks may hold ``IGNORED``, those pixels are in none of the terms: means are over the other pixels, and sums leave them out.

Everything is computed in float32, whatever autocast the caller runs under: a bf16 sum over 65,536 pixels keeps two digits.
Nothing here waits for the device; the caller decides when a value is read. MONAI's focal and Tversky losses know of no ignored pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.config.data import IGNORED
from guidino_tune.config.sections import Loss
from guidino_tune.custom_loss import load_term
from guidino_tune.errors import UserError

Heads = Sequence[tuple[Tensor, Tensor, Tensor | None]]
"""Logits, masks on their grid and the pixels that count, of each head; see ``soft_dice_loss``."""

Weights = Sequence[float] | None
"""Of background and classes, see ``Loss.class_weights``; ``None``: all alike."""

MOST_HEADS = 16
_SMOOTH = 1e-5
_PROBABILITY_EPS = 1e-6


def deep_supervision_weights(num_heads: int) -> list[float]:
    """Weight of each head, finest first: ``1 / 2**i``, normalised to sum to one over all heads.

    nnU-Net sets the last weight to zero; GuiDINO keeps it, and so do we.
    """
    total = sum(0.5**i for i in range(num_heads))
    return [0.5**i / total for i in range(num_heads)]


def soft_dice_loss(logits: Tensor, masks: Tensor, *, batch: bool = True, known: Tensor | None = None, weights: Weights = None) -> Tensor:
    """``1 - (2 * sum(p * y) + s) / (sum(p) + sum(y) + s)`` with ``s = 1e-5``: 0 is perfect, 1 is no overlap.

    Args:
        logits: (B, 1, H, W) of binary masks, or (B, 1 + K, H, W) of background and K classes; float32.
        masks: (B, 1, H, W), 0 or 1, or labels 0 to K; float32.
        batch: Sum over the whole batch before the ratio (nnU-Net in 2D, "batch Dice"); else one ratio per case, then their mean.
        known: (B, 1, H, W), 1 for the pixels that count and 0 for those that do not; ``None``: all do.
        weights: Of the classes.

    Returns:
        A scalar, the mean over the classes without the background. In distributed training the batch is that of one worker.
    """
    return _dice([(logits, masks, known)], batch, weights).squeeze(0)


def _dice(heads: Heads, batch: bool, weights: Weights) -> Tensor:
    overlap, predicted, true = _areas(heads, batch)
    return _over_classes(1 - (2 * overlap + _SMOOTH) / (predicted + true + _SMOOTH), weights)


def tversky_loss(
    logits: Tensor, masks: Tensor, alpha: float, beta: float, *, batch: bool = True, known: Tensor | None = None, weights: Weights = None
) -> Tensor:
    """``1 - (TP + s) / (TP + alpha * FP + beta * FN + s)`` of soft counts (Salehi et al., 2017); with 0.5 and 0.5 it is Dice.

    Other arguments and result as in ``soft_dice_loss``.
    """
    return _tversky([(logits, masks, known)], alpha, beta, batch, weights).squeeze(0)


def _tversky(heads: Heads, alpha: float, beta: float, batch: bool, weights: Weights) -> Tensor:
    overlap, predicted, true = _areas(heads, batch)
    size = overlap + alpha * (predicted - overlap) + beta * (true - overlap)
    return _over_classes(1 - (overlap + _SMOOTH / 2) / (size + _SMOOTH / 2), weights)


def cross_entropy_loss(logits: Tensor, masks: Tensor, known: Tensor | None = None, weights: Weights = None) -> Tensor:
    """Binary cross-entropy of one channel, or softmax cross-entropy of several; the mean over all pixels that count, 0 of none.

    Args as in ``soft_dice_loss``. With weights it is the weighted mean, as ``torch.nn.CrossEntropyLoss`` has it.
    """
    if known is not None or weights is not None:
        return _mean(_weighed(_entropy(logits, masks, known), masks, known, weights), known)
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, masks)
    return F.cross_entropy(logits, masks[:, 0].long())


def focal_loss(logits: Tensor, masks: Tensor, gamma: float, *, known: Tensor | None = None, weights: Weights = None) -> Tensor:
    """The mean of ``-(1 - p)^gamma * log(p)``, where ``p`` is the probability of a pixel's true class (Lin et al., 2017, equation 4).

    Other arguments as in ``soft_dice_loss``; the paper's alpha is a weight of the classes.
    """
    entropy = _entropy(logits, masks, known)
    missed = -torch.expm1(-entropy)  # 1 - p, also where p is 1 but for the last digits
    # A root has no finite slope at 0.
    return _mean(_weighed(missed.clamp(min=_PROBABILITY_EPS) ** gamma * entropy, masks, known, weights), known)


def top_k_loss(logits: Tensor, masks: Tensor, fraction: float, *, known: Tensor | None = None, weights: Weights = None) -> Tensor:
    """The mean cross-entropy of those pixels of the batch that have the largest (nnU-Net's ``TopKLoss``), at least of one.

    Args as in ``soft_dice_loss``; ``fraction``, above 0, is of the pixels that count. Losses are weighed before they are compared.
    """
    losses = _weighed(_entropy(logits, masks, known), masks, known, weights)
    if known is None:
        return losses.flatten().topk(_share(losses.numel(), fraction)).values.mean()
    # How many pixels count is only known on the device: the largest share that could be meant is taken, and cut there.
    hardest = losses.where(known > 0, -1).flatten().topk(_share(losses.numel(), fraction)).values
    count = (known.sum().double() * fraction).floor().clamp(min=1)
    return _mean(hardest.clamp(min=0), (torch.arange(len(hardest), device=hardest.device) < count).to(hardest.dtype))


def squared_distances(there: Tensor) -> Tensor:
    """Squared Euclidean distance of every pixel to the nearest one that is true, infinite where an image has none; exact, on any device.

    First along rows, then the least over rows (Felzenszwalb and Huttenlocher, 2012, section 2.1): ``H`` passes over the image.

    Args:
        there: (..., H, W), bool.
    """
    height, width = there.shape[-2:]
    column, row = (torch.arange(side, device=there.device, dtype=torch.float32) for side in (width, height))
    before = torch.where(there, column, -math.inf).cummax(-1).values
    after = torch.where(there, column, math.inf).flip(-1).cummin(-1).values.flip(-1)
    across = torch.minimum(column - before, after - column) ** 2
    return torch.stack([(across + ((row - y) ** 2)[:, None]).amin(-2) for y in range(height)], -2)


def boundary_loss(logits: Tensor, masks: Tensor, known: Tensor | None = None) -> Tensor:
    """The mean of ``p * d`` over pixels and classes (Kervadec et al., 2019, equation 5).

    ``d`` is the distance to the class in pixels; inside it, the distance to what is not of it, minus 1, with a minus sign, as in the
    authors' code. It is 0 for a class that is not in the image, or fills it. Ignored pixels are neither inside nor outside.

    Args as in ``soft_dice_loss``.
    """
    probabilities, inside = _foreground(logits, masks, known)
    outside = (1 - inside if known is None else (1 - inside) * known) > 0
    to_class, to_others = squared_distances(torch.stack([inside > 0, outside])).sqrt()
    distance = torch.where(inside > 0, 1 - to_others, to_class)
    return _mean((probabilities * distance.where(distance.isfinite(), 0)).mean(1, keepdim=True), known)


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
        return _mean((guide - cells) ** 2, weights)
    # The logarithm's slope at 0 and 1 is infinite; a cosine can get there exactly. Written out, for torch's own function refuses NaN, on
    # a GPU by ending the process: a diverged guide must reach the loss as NaN instead.
    likely = guide.clamp(_PROBABILITY_EPS, 1 - _PROBABILITY_EPS)
    losses = cells * likely.log() + (1 - cells) * (1 - likely).log()
    return -_mean(losses, weights)


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
    """``relu(margin - y * logit)`` with ``y`` in {-1, +1}, the mean over the pixels of the boundary band; 0 where the batch has no border.

    Args as in ``boundary_band``, whose ``width`` is ``band``; ``logits`` (B, 1, H, W), and ``margin`` in logits; float32.
    """
    return _mean(F.relu(margin - (2 * masks - 1) * logits), boundary_band(masks, band, known))


Term = Callable[[Loss, Tensor, Tensor, Tensor | None, Weights], Tensor]
"""A term's value for one head: of options, logits, masks on the head's grid, the pixels that count, and class weights."""

TermOfHeads = Callable[[Loss, Heads, Weights], Tensor]
"""The same of several heads, (heads,)."""


def each(term: Term) -> TermOfHeads:
    """A term on one head after the other; those of regions compute what follows their sums over pixels once for all heads."""
    return lambda loss, heads, weights: _stacked([term(loss, *head, weights) for head in heads])


EVERY_HEAD: dict[str, tuple[str, TermOfHeads]] = {
    "dice": ("dice_weight", lambda o, heads, w: _dice(heads, o.batch_dice, w)),
    "bce": ("bce_weight", each(lambda o, x, y, k, w: cross_entropy_loss(x, y, k, w))),
    "focal": ("focal_weight", each(lambda o, x, y, k, w: focal_loss(x, y, o.focal_gamma, known=k, weights=w))),
    "tversky": ("tversky_weight", lambda o, heads, w: _tversky(heads, o.tversky_alpha, o.tversky_beta, o.batch_dice, w)),
    "top_k": ("top_k_weight", each(lambda o, x, y, k, w: top_k_loss(x, y, o.top_k_fraction, known=k, weights=w))),
}
"""Terms on all heads by the name of their metric: the field of their weight, and the term."""

FINEST_HEAD: dict[str, tuple[str, Term]] = {
    "hinge": (
        "hinge_weight",
        lambda o, x, y, k, w: hinge_loss(foreground_logits(x), _union(y), margin=o.hinge_margin, band=o.hinge_band, known=k),
    ),
    "boundary": ("boundary_weight", lambda o, x, y, k, w: boundary_loss(x, y, k)),
}
"""Terms on the finest head only: a band or a distance of pixels has no meaning on coarse heads."""


class SegmentationLoss(nn.Module):
    """The sum of the terms in use, each times its weight.

    Those of ``EVERY_HEAD`` are averaged over all heads with ``deep_supervision_weights``, every head once, against the mask on the head's
    grid (``loss.head_target``). The guide term counts once, as do those of ``FINEST_HEAD`` and a user's own, on the finest head.

    Args:
        loss: Weights and choices.
        num_classes: Foreground classes; 1 for binary masks.
        ignore: Masks may hold ``IGNORED``: what a network says there changes nothing, and gets no gradient. A batch that is ignored
            altogether has a loss of 0.

    Raises:
        UserError: No term on the segmenter's output has a weight, so that nothing would train it.
        ValueError: The class weights are those of another number of classes.
    """

    shares: Tensor

    def __init__(self, loss: Loss, num_classes: int = 1, ignore: bool = False) -> None:
        super().__init__()
        fields = [field for field, _ in (EVERY_HEAD | FINEST_HEAD).values()]
        if not any(getattr(loss, field) for field in fields):
            raise UserError(
                f"{', '.join(fields)} are all 0, so nothing would train the segmenter",
                where="loss",
                todo="give at least one of them a weight above 0",
            )
        self.loss, self.ignore, self.class_weights = loss, ignore, loss.weights_of(num_classes)
        self.custom = load_term(loss.custom) if loss.custom and loss.custom.weight else None
        self.num_outputs = 1 if num_classes == 1 else num_classes + 1
        shares = [F.pad(torch.tensor(deep_supervision_weights(n)), (0, MOST_HEADS - n)) for n in range(1, MOST_HEADS + 1)]
        self.register_buffer("shares", torch.stack(shares), persistent=False)  # on the device before the first step

    def forward(self, logits: Sequence[Tensor], guide: Tensor | None, masks: Tensor) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            logits: One (B, 1, h_i, w_i) per head, finest first; with several classes (B, 1 + num_classes, h_i, w_i).
            guide: (B, 1, h, w) with values in [0, 1], or ``None`` for a network without guide mask (then there is no guide term).
            masks: (B, 1, H, W), 0 or 1, or labels 0 to ``num_classes``, and ``IGNORED`` where that was said; floating point.

        Returns:
            ``total``, which carries the gradient, and the unweighted, detached value of each term in use: ``guide``, ``custom``, and
            those of ``EVERY_HEAD`` and ``FINEST_HEAD`` (``bce`` is called ``cross_entropy`` with several classes). All are float32 scalars
            on the device of the logits.

        Raises:
            ValueError: The logits have another number of channels.
        """
        if any(head.shape[1] != self.num_outputs for head in logits):
            raise ValueError(f"the loss expects {self.num_outputs} channels of logits, got {[head.shape[1] for head in logits]}")
        with torch.autocast(device_type=masks.device.type, enabled=False):
            terms = self._terms([head.float() for head in logits], None if guide is None else guide.float(), masks.float())
            total = torch.stack([value if weight == 1 else weight * value for weight, value in terms.values()]).sum()
        return {"total": total, **{name: value.detach() for name, (_, value) in terms.items()}}

    def _terms(self, heads: list[Tensor], guide: Tensor | None, masks: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight and unweighted value of each term in use."""
        loss = self.loss
        targets = [_resized(masks, head, loss.head_target) for head in heads]
        known: list[Tensor | None] = [None] * len(heads)
        if self.ignore:
            seen = [target != IGNORED for target in targets]
            # Not multiplied by 0, which infinity would survive.
            heads = [head.where(there, 0) for head, there in zip(heads, seen, strict=True)]
            known = [there.to(masks.dtype) for there in seen]
        parts = list(zip(heads, targets, known, strict=True))
        terms: dict[str, tuple[float, Tensor]] = {}
        for name, (field, of_heads) in EVERY_HEAD.items():
            if weight := getattr(loss, field):
                name = "cross_entropy" if name == "bce" and self.num_outputs > 1 else name
                terms[name] = (weight, self._over_heads(of_heads(loss, parts, self.class_weights)))
        if loss.lambda_guide and guide is not None:
            there = (masks != IGNORED).to(masks.dtype) if self.ignore else None
            value = guide_loss(guide, _union(masks), kind=loss.guide_loss, target=loss.guide_target, known=there)
            terms["guide"] = (loss.lambda_guide, value)
        for name, (field, term) in FINEST_HEAD.items():
            if weight := getattr(loss, field):
                terms[name] = (weight, term(loss, heads[0], targets[0], known[0], self.class_weights))
        if self.custom is not None and loss.custom is not None:
            terms["custom"] = (loss.custom.weight, self.custom(heads[0], targets[0]))
        return terms

    def _over_heads(self, values: Tensor) -> Tensor:
        number = len(values)
        return values.squeeze(0) if number == 1 else (values * self.shares[number - 1, :number]).sum()


def _foreground(logits: Tensor, masks: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities and truth of each foreground class, (B, K, H, W); 0 where pixels do not count."""
    probabilities = logits.sigmoid()
    if logits.shape[1] > 1:
        probabilities = logits.softmax(1)[:, 1:]
        masks = (masks == torch.arange(1, logits.shape[1], device=masks.device).view(1, -1, 1, 1)).to(masks.dtype)
    return (probabilities, masks) if known is None else (probabilities * known, masks * known)


def _areas(heads: Heads, batch: bool) -> list[Tensor]:
    """Soft areas of overlap, prediction and truth in pixels, (heads, K) over the batch or (heads, B, K)."""
    axes = (0, 2, 3) if batch else (2, 3)
    found = [((p * y).sum(axes), p.sum(axes), y.sum(axes)) for p, y in (_foreground(*head) for head in heads)]
    return [_stacked(parts) for parts in zip(*found, strict=True)]


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return values[0][None] if len(values) == 1 else torch.stack(tuple(values))


def _over_classes(losses: Tensor, weights: Weights) -> Tensor:
    """The means (heads,) of (heads, ..., K), of the classes by their weights; those of the background come first."""
    if weights is not None:
        parts = [weight * part for weight, part in zip(weights[1:], losses.unbind(-1), strict=True)]
        losses = torch.stack(parts).sum(0) / sum(weights[1:])
    return losses.reshape(len(losses), -1).mean(1)


def _entropy(logits: Tensor, masks: Tensor, known: Tensor | None) -> Tensor:
    """Cross-entropy of every pixel, (B, 1, H, W); that of pixels that do not count means nothing."""
    masks = masks if known is None else masks * known
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return F.cross_entropy(logits, masks[:, 0].long(), reduction="none")[:, None]


def _weighed(losses: Tensor, masks: Tensor, known: Tensor | None, weights: Weights) -> Tensor:
    """Losses of pixels, times the weight of their true class over the mean weight of the pixels that count."""
    if weights is None:
        return losses
    # A sum of products with numbers: a tensor of the weights would have to travel to the device, which waits for it.
    shares = torch.stack([weight * (masks == label) for label, weight in enumerate(weights)]).sum(0)
    return losses * shares / _mean(shares, known).clamp(min=1e-12)


def _share(number: int, fraction: float) -> int:
    return max(1, int(number * fraction))


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of what has a weight of 1 and not of 0, or of all; of nothing 0."""
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum().clamp(min=1)


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
