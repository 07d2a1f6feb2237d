"""The gate: where the guide mask multiplies the segmenter's features (GuiDINO, section "Gate")."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gate:
    """A guide mask and the one place where it multiplies.

    A segmenter calls the gate at each of its named places; all but one of the calls give their input back.

    Attributes:
        mask: (B, 1, h, w) in [0, 1], or ``None`` for no guide.
        place: Name of the place that is gated, or ``None``.
    """

    mask: Tensor | None = None
    place: str | None = None

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Multiplies ``x`` of shape (B, C, H, W) by the mask if ``name`` is the gated place.

        The mask is resized bilinearly (corners not aligned) to H x W. The product is taken in the mask's precision and given in that
        of ``x``, so that a bf16 network is not gated by a mask of eight bits.
        """
        if self.mask is None or name != self.place:
            return x
        mask = self.mask
        if mask.shape[-2:] != x.shape[-2:]:
            mask = F.interpolate(mask, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return (x * mask).to(x.dtype)
