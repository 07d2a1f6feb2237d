"""Convolution blocks, norms over channels, and He's initial weights, as several segmenters have them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.models.torch_private import add_to_all


def double_conv(inputs: int, middle: int, outputs: int, *, bias: bool) -> nn.Sequential:
    """Twice 3x3 convolution, batch norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in ((inputs, middle), (middle, outputs)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), BatchNorm(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that does not count its batches itself: ``batch_counter`` does so for all of a network at once.

    Nothing reads the numbers, but they are among the weights. On a GPU each would be a launch of its own in every step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps)


def batch_counter(network: nn.Module) -> Callable[[], None]:
    """Counts one more batch in every ``BatchNorm`` of a network."""
    norms = (part for part in network.modules() if isinstance(part, BatchNorm))
    counters = [counter for norm in norms if (counter := norm.num_batches_tracked) is not None]
    return lambda: add_to_all(counters, 1) if counters else None


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Upsampling(nn.ConvTranspose2d):
    """Transposed convolution whose stride is its kernel: every pixel becomes a block of ``factor`` x ``factor``, none of which overlap.

    In bf16 on a CPU it is taken as one product of matrices where the map is in channels_last: forward and backward then need 0.4 to 0.55
    of the time of torch's transposed convolution, and give the same numbers. In float32 torch's own is as quick or quicker.
    """

    def __init__(self, inputs: int, outputs: int, factor: int = 2, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, factor, stride=factor, bias=bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, factor * H, factor * W)."""
        bf16 = x.dtype == torch.bfloat16 or (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
        if not (bf16 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)):
            return super().forward(x, output_size)
        batch, inputs, height, width = x.shape
        side, outputs = self.stride[0], self.out_channels
        weight = self.weight.permute(2, 3, 1, 0).reshape(-1, inputs)
        bias = None if self.bias is None else self.bias.repeat(side * side)
        blocks = F.linear(x.permute(0, 2, 3, 1), weight, bias).view(batch, height, width, side, side, outputs)
        return blocks.transpose(2, 3).reshape(batch, side * height, side * width, outputs).permute(0, 3, 1, 2)


def he_by_outputs(conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He's normal initialisation by the outputs that one input reaches; in depthwise convolutions those of its own channel only."""
    nn.init.normal_(conv.weight, std=math.sqrt(2 * conv.groups / (conv.out_channels * math.prod(conv.kernel_size))))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
