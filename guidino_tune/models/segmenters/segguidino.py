"""Seg-GuiDINO's head: one scale, no skips, directly on the backbone's last map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters.base import Segmenter, required


class SegGuiDINO(Segmenter):
    """3x3 projection, gate, 3x3 convolution, group norm, GELU, dropout, 1x1 head, bilinear upsampling by 16.

    Gate places: ``features``, the projected map at 1/16, and ``decoder``, the map before the head.
    """

    channels_last_on_avx2 = False

    def __init__(
        self,
        config: sections.SegGuiDINO,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        self.project = nn.Conv2d(required("SegGuiDINO", backbone).width, config.hidden, 3, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(config.hidden, config.hidden, 3, padding=1),
            nn.GroupNorm(1 if config.hidden % 32 else 32, config.hidden),
            nn.GELU(),
            nn.Dropout2d(config.dropout),
        )
        self.head = nn.Conv2d(config.hidden, num_outputs, 1)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; one head, which needs ``features.last``."""
        assert features is not None
        logits = self.head(gate("decoder", self.block(gate("features", self.project(features.last)))))
        return (F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False),)
