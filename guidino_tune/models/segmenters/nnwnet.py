"""nnWNet in 2D (Zhou et al., 2025): two U-shaped passes of local convolutions, with a global path at every level."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import BatchNorm
from guidino_tune.models.segmenters.base import Segmenter


def conv_norm_gelu(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Sequential:
    """3x3 convolution, batch norm, GELU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias), BatchNorm(outputs), nn.GELU())


class ResBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a residual, projected by 1x1 convolution and batch norm where widths differ."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm_gelu(inputs, outputs), nn.Conv2d(outputs, outputs, 3, padding=1), BatchNorm(outputs))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Sequential(nn.Conv2d(inputs, outputs, 1), BatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        y: Tensor = self.body(x) + self.shortcut(x)
        return F.gelu(y)


class GlobalBlock(nn.Module):
    """PoolFormer mixing (Yu et al., 2022): 3x3 convolution, then pooling and MLP residuals, each after a one-group norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_pool = nn.GroupNorm(1, outputs)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.norm_mlp = nn.GroupNorm(1, outputs)
        self.mlp = nn.Sequential(nn.Conv2d(outputs, 4 * outputs, 1), nn.GELU(), nn.Conv2d(4 * outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        x = self.embed(x)
        y = self.norm_pool(x)
        x = x + self.pool(y) - y
        mixed: Tensor = x + self.mlp(self.norm_mlp(x))
        return mixed


def embed_down(inputs: int, outputs: int) -> nn.Sequential:
    """The first encoder's way down: a 3x3 convolution, then one of stride 2."""
    return nn.Sequential(conv_norm_gelu(inputs, inputs), conv_norm_gelu(inputs, outputs, stride=2, bias=False))


def local_down(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """The second encoder's way down: a residual block of the level's own ``width``, then a 3x3 convolution of stride 2."""
    return nn.Sequential(ResBlock(inputs, width), conv_norm_gelu(width, outputs, stride=2, bias=False))


def local_up(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """The decoders' way up: a residual block of the level's own ``width``, bilinear by 2 with aligned corners, a 3x3 convolution."""
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(ResBlock(inputs, width), up, conv_norm_gelu(width, outputs, bias=False))


class NNWNet(Segmenter):
    """Encoder, decoder, encoder, decoder. At every level a global block reads the same map as the local block and skips to the next pass.

    Local widths are ``base_width * (1, 2, 4, 8, 16)``, global widths half of them. With deep supervision there are five heads, at 1,
    1/2, 1/4, 1/8 and 1/16; without it the four coarse ones exist but are neither run nor trained, so that the weights fit both ways.
    Gate places: ``input``, the image (GuiDINO-W); ``bottleneck``, the first encoder's deepest map at 1/16; ``skips``, every global map
    that goes to a later pass; ``decoder``, every map that a decoder brings up.
    """

    def __init__(
        self,
        config: sections.NNWNet,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        self.deep_supervision = config.deep_supervision
        local = [config.base_width * 2**level for level in range(5)]
        glob = [width // 2 for width in local]
        both = [a + b for a, b in zip(local, glob, strict=True)]
        levels = range(4)
        self.stem = nn.Sequential(conv_norm_gelu(in_channels, local[0]), conv_norm_gelu(local[0], local[0]))
        # First pass. Level i joins resolution 1 / 2^i and half of it; decoders below are indexed by that level too.
        self.encoder1_local = nn.ModuleList(embed_down(local[i], local[i + 1]) for i in levels)
        self.encoder1_global = nn.ModuleList(GlobalBlock(local[i], glob[i]) for i in levels)
        inputs = [*both[1:4], local[4]]
        self.decoder1_local = nn.ModuleList(local_up(inputs[i], local[i + 1], local[i]) for i in levels)
        self.decoder1_global = nn.ModuleList(GlobalBlock(inputs[i], glob[i + 1]) for i in levels)
        # Second pass: every map now has a global one beside it.
        self.encoder2_local = nn.ModuleList(local_down(both[i], local[i], local[i + 1]) for i in levels)
        self.encoder2_global = nn.ModuleList(GlobalBlock(both[i], glob[i]) for i in levels)
        self.decoder2_local = nn.ModuleList(local_up(both[i + 1], local[i + 1], local[i]) for i in levels)
        self.head = nn.Sequential(ResBlock(both[0], local[0]), nn.Conv2d(local[0], num_outputs, 1))
        self.coarse_heads = nn.ModuleList(nn.Conv2d(local[i + 1], num_outputs, 1) for i in levels)
        # Unused trainable weights would stop distributed training.
        self.coarse_heads.requires_grad_(self.deep_supervision)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; five heads with deep supervision, else one."""
        x = self.stem(gate("input", images))
        skips1, skips2 = [], []
        for down, mixer in zip(self.encoder1_local, self.encoder1_global, strict=True):
            skips1.append(mixer(x))
            x = down(x)
        x = gate("bottleneck", x)
        for up, mixer in zip(reversed(self.decoder1_local), reversed(self.decoder1_global), strict=True):
            skips2.append(mixer(x))
            x = torch.cat([gate("decoder", up(x)), gate("skips", skips1.pop())], dim=1)
        skips3 = []
        for down, mixer in zip(self.encoder2_local, self.encoder2_global, strict=True):
            skips3.append(mixer(x))
            x = down(x)
            skip = skips2.pop()
            local, x = x, torch.cat([x, gate("skips", skip)], dim=1)
        logits = []
        for up, head in zip(reversed(self.decoder2_local), reversed(self.coarse_heads), strict=True):
            if self.deep_supervision:
                logits.append(head(local))
            local = gate("decoder", up(x))
            x = torch.cat([local, gate("skips", skips3.pop())], dim=1)
        logits.append(self.head(x))
        return tuple(reversed(logits))
