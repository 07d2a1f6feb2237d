"""U-Net (Ronneberger et al., 2015) with batch norm, as GuiDINO-U gates it."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import Upsampling, double_conv
from guidino_tune.models.segmenters.base import Segmenter


class UNet(Segmenter):
    """Five levels of widths ``base_width * (1, 2, 4, 8, 16)``, max pooling down, transposed convolutions up, one 1x1 head.

    Gate places: ``bottleneck``, the deepest map at 1/16 (GuiDINO-U); ``input``, the image; ``skips``; ``decoder``, every merged map.
    """

    channels_last_on_avx2 = False

    def __init__(
        self,
        config: sections.UNet,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        widths = [config.base_width * 2**level for level in range(5)]
        self.down = nn.ModuleList(double_conv(inputs, outputs, outputs, bias=False) for inputs, outputs in pairwise([in_channels, *widths]))
        widths.reverse()
        self.up = nn.ModuleList(Upsampling(deep, fine) for deep, fine in pairwise(widths))
        self.merge = nn.ModuleList(double_conv(deep, fine, fine, bias=False) for deep, fine in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], num_outputs, 1)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; one head."""
        x = self.down[0](gate("input", images))
        skips = []
        for block in self.down[1:]:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        x = gate("bottleneck", x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = gate("decoder", merge(torch.cat([gate("skips", skips.pop()), up(x)], dim=1)))
        return (self.head(x),)
