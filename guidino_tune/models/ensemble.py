"""Several trained networks that predict as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.models.guided import GuidedSegmenter, Prediction


class Ensemble(nn.Module):
    """The weighted mean of the members' probabilities, and the plain mean of their guide masks.

    It is used like a single network, so it gives logits: those whose sigmoid or softmax is the mean probability.

    Args:
        members: At least one, of one task: the same input and the same classes.
        weights: Above 0, of each member; only their ratios count. ``None``: all count the same.

    Raises:
        ValueError: There is no member, or not one weight above 0 for each.
    """

    def __init__(self, members: Sequence[GuidedSegmenter], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs members")
        weights = [1.0] * len(members) if weights is None else list(weights)
        if len(weights) != len(members) or min(weights) <= 0:
            raise ValueError(f"{len(members)} members need as many weights above 0; got {weights}")
        self.members = nn.ModuleList(members)
        self.weights = [weight / sum(weights) for weight in weights]
        """They add up to 1."""
        self.bf16 = all(member.bf16 for member in members)
        """As of ``GuidedSegmenter``."""

    def forward(self, images: Tensor) -> Prediction:
        """Segments a batch.

        Args:
            images: As of ``GuidedSegmenter.forward``.

        Returns:
            The finest head only, float32; guide masks of members that have one, at the size of the first.
        """
        logits, guides = [], []
        for member in self.members:  # one after the other: no more memory than one network needs
            prediction = member(images)
            logits.append(prediction.logits[0].float())
            if prediction.guide is not None:
                guides.append(prediction.guide.float())
        size = guides[0].shape[-2:] if guides else None
        fitted = [g if g.shape[-2:] == size else F.interpolate(g, size=size, mode="bilinear", align_corners=False) for g in guides]
        return Prediction((mean_logits(torch.stack(logits), self.weights),), torch.stack(fitted).mean(0) if fitted else None)


def mean_logits(logits: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Logits of the mean probability.

    Args:
        logits: (M, B, 1, H, W) of binary networks, or (M, B, num_classes + 1, H, W).
        weights: M numbers above 0 that add up to 1; ``None``: 1 / M each.

    Returns:
        (B, 1, H, W), log p - log(1 - p); or (B, num_classes + 1, H, W), log p. Worked out from logarithms, so that sure pixels stay finite.
    """
    shares = [
        math.log(weight) for weight in weights or [1 / len(logits)] * len(logits)
    ]  # numbers, not a tensor, for exports to other formats

    def mean(logarithms: Tensor) -> Tensor:
        return torch.stack([one + share for one, share in zip(logarithms, shares, strict=True)]).logsumexp(0)

    if logits.shape[2] == 1:
        return mean(F.logsigmoid(logits)) - mean(F.logsigmoid(-logits))
    return mean(F.log_softmax(logits, 2))
