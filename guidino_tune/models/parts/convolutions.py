"""Convolution blocks, norms over channels, and He's initial weights, as several segmenters have them."""

from __future__ import annotations

import math

from torch import Tensor, nn


def double_conv(inputs: int, middle: int, outputs: int, *, bias: bool) -> nn.Sequential:
    """Twice 3x3 convolution, batch norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in ((inputs, middle), (middle, outputs)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def he_by_outputs(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He's normal initialisation by the outputs that one input reaches; in depthwise convolutions those of its own channel only."""
    nn.init.normal_(conv.weight, std=math.sqrt(2 * conv.groups / (conv.out_channels * math.prod(conv.kernel_size))))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
