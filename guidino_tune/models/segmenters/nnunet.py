"""nnU-Net in 2D (Isensee et al., 2021), with its plain encoder or the residual one of its later presets (Isensee et al., 2024)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.nnunet import UNetDecoder, conv_norm
from guidino_tune.models.segmenters.base import Segmenter

SLOPE = 0.01
"""Of every LeakyReLU below zero."""


class ResidualBlock(nn.Module):
    """Twice 3x3 convolution and instance norm, a shortcut, LeakyReLU after the addition (nnU-Net's basic block).

    The shortcut is pooled by averages where the block is strided, and projected by a 1x1 convolution without bias and an instance norm
    where widths differ (ResNet-D, He et al., 2019).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, stride=stride)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm = nn.InstanceNorm2d(outputs, affine=True)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        project = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.InstanceNorm2d(outputs, affine=True)] if inputs != outputs else []
        self.project = nn.Sequential(*project)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.norm(self.second(self.first(x))) + self.project(self.pool(x))
        return F.leaky_relu(y, SLOPE)


def stage(block: Callable[..., nn.Module], num_blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Blocks in a row, the first one strided."""
    return nn.Sequential(block(inputs, outputs, stride=stride), *(block(outputs, outputs) for _ in range(num_blocks - 1)))


def initialise(module: nn.Module) -> None:
    """nnU-Net's initial weights, for ``Module.apply``: He's normal weights for LeakyReLU, biases 0, residual blocks start as shortcuts."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.norm.weight)
        nn.init.zeros_(module.norm.bias)


class NNUNet(Segmenter):
    """``num_stages`` resolutions of widths ``base_width * 2^i``, at most ``max_width``; strided convolutions down, transposed ones up.

    Plain: two convolutions a stage in encoder and decoder. Residual: a stem of one convolution, 1, 3, 4, 6, 6, 6, ... residual blocks a
    stage, one convolution a decoder stage. With deep supervision there are ``num_stages - 1`` heads, at 1, 1/2, 1/4, ...; without it the
    coarse ones exist but are neither run nor trained, so that the weights fit both ways.
    Gate places: ``input``, the image; ``bottleneck``, the deepest map; ``skips``; ``decoder``, every map of the decoder.
    The first norm undoes a mask at ``input`` that is the same all over the image; what counts there is how it differs from place to place.
    """

    channels_last_on_avx2 = False

    def __init__(
        self,
        config: sections.NNUNet,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        widths = [min(config.base_width * 2**level, config.max_width) for level in range(config.num_stages)]
        residual = config.encoder == "residual"
        self.stem = conv_norm(in_channels, widths[0]) if residual else nn.Sequential()
        block = ResidualBlock if residual else conv_norm
        depths = [1, 3, 4, *[6] * (config.num_stages - 3)] if residual else [2] * config.num_stages
        inputs = [widths[0] if residual else in_channels, *widths]
        self.encoder = nn.ModuleList(
            stage(block, depth, *pair, stride=2 if level else 1)
            for level, (depth, pair) in enumerate(zip(depths, pairwise(inputs), strict=True))
        )
        self.decoder = UNetDecoder(widths, num_outputs, num_convs=1 if residual else 2, deep_supervision=config.deep_supervision)
        self.apply(initialise)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; ``num_stages - 1`` heads with deep supervision, else one."""
        x = self.stem(gate("input", images))
        maps = []
        for blocks in self.encoder:
            x = blocks(x)
            maps.append(x)
        maps[-1] = gate("bottleneck", x)
        logits: tuple[Tensor, ...] = self.decoder(maps, gate)
        return logits
