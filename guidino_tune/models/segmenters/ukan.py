"""U-KAN (Li et al., 2024): a U-Net whose two deepest levels mix tokens with Kolmogorov-Arnold layers."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import BatchNorm, ChannelNorm, double_conv, he_by_outputs
from guidino_tune.models.parts.drop_path import DropPath
from guidino_tune.models.parts.kan import KANLinear
from guidino_tune.models.segmenters.base import Segmenter


class KANMixer(nn.Module):
    """A KAN layer on every token, then a depthwise 3x3 convolution, batch norm and ReLU, which let neighbours meet."""

    def __init__(self, width: int, *, grid: int, order: int) -> None:
        super().__init__()
        self.linear = KANLinear(width, width, grid=grid, order=order)
        conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        he_by_outputs(conv)
        self.local = nn.Sequential(conv, BatchNorm(width), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        mixed: Tensor = self.local(self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return mixed


class KANBlock(nn.Module):
    """``norm(x + drop_path(mixers(norm(x))))`` with three mixers (section "Tokenized KAN Block")."""

    def __init__(self, width: int, config: sections.UKAN, drop_path: float) -> None:
        super().__init__()
        mixers = (KANMixer(width, grid=config.grid, order=config.order) for _ in range(3))
        self.branch = nn.Sequential(ChannelNorm(width), *mixers, DropPath(drop_path))
        self.norm = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        y: Tensor = self.norm(x + self.branch(x))
        return y


class UKAN(Segmenter):
    """Three levels of convolutions, two of tokens with a KAN block each; the decoder adds the skips and has KAN blocks at 1/16 and 1/8.

    Gate places: ``skips``, every map that the decoder adds; ``input``, the image; ``bottleneck``, the deepest tokens as a map, at 1/32;
    ``decoder``, every stage's map, after the skip is added and the KAN block if it has one.
    """

    def __init__(
        self,
        config: sections.UKAN,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        first, middle, deepest = config.widths
        fine, coarse = [first // 8, first // 4, first], [first, middle, deepest]
        self.encoder = nn.ModuleList(double_conv(inputs, outputs, outputs, bias=True) for inputs, outputs in pairwise([in_channels, *fine]))
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), ChannelNorm(outputs)) for inputs, outputs in pairwise(coarse)
        )
        for conv in self.embed.modules():
            if isinstance(conv, nn.Conv2d):
                he_by_outputs(conv)
        rates = (0.0, config.drop_path / 2)  # the original's schedule, the same for encoder and decoder
        self.encoder_kan = nn.ModuleList(KANBlock(width, config, rate) for width, rate in zip((middle, deepest), rates, strict=True))
        widths = [deepest, middle, *reversed(fine), fine[0]]
        self.decoder = nn.ModuleList(double_conv(inputs, inputs, outputs, bias=True) for inputs, outputs in pairwise(widths))
        blocks = (KANBlock(width, config, rate) for width, rate in zip((middle, first), rates, strict=True))
        self.decoder_kan = nn.ModuleList([*blocks, *(nn.Identity() for _ in range(3))])
        self.head = nn.Conv2d(fine[0], num_outputs, 1)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; one head."""
        x = gate("input", images)
        skips = []
        for convs in self.encoder:
            x = F.max_pool2d(convs(x), 2)
            skips.append(x)
        for embed, block in zip(self.embed, self.encoder_kan, strict=True):
            x = block(embed(x))
            skips.append(x)
        x = gate("bottleneck", skips.pop())
        for convs, block in zip(self.decoder, self.decoder_kan, strict=True):
            x = F.interpolate(convs(x), scale_factor=2, mode="bilinear", align_corners=False)
            if skips:  # none at full resolution
                x = x + gate("skips", skips.pop())
            x = gate("decoder", block(x))
        return (self.head(x),)
