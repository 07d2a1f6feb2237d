"""The adapter of Dino U-Net: a convolutional pyramid that reads backbone layers by deformable attention (Gao et al., 2025).

It is DINOv3's segmentation adapter (Siméoni et al., 2025), a ViT-Adapter (Chen et al., 2023) whose attention goes one way: the backbone
is read and never changed. The original synchronises its batch norms over devices; here they are ``BatchNorm2d``, and who trains on several
devices may convert them with ``nn.SyncBatchNorm.convert_sync_batchnorm``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.models.parts.convolutions import BatchNorm, Upsampling, he_by_outputs
from guidino_tune.models.parts.deformable import DeformableCrossAttention, pixel_centres
from guidino_tune.models.parts.drop_path import DropPath

PRIOR_WIDTHS = (64, 128, 256, 256)
"""Channels of the spatial prior module at 1/4, 1/8, 1/16 and 1/32 before the projection."""

READ_LAYERS = (0, 1, 2, 3, 3, 3)
"""Which of the four backbone layers each extractor reads: four interactions, the last one with two extra extractors."""

Grids = Sequence[tuple[int, int]]
"""(height, width) of each scale, finest first."""


def conv_norm_relu(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """3x3 convolution without bias, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), BatchNorm(outputs), nn.ReLU(inplace=True))


class SpatialPrior(nn.Module):
    """Convolutions on the image: maps at 1/4, 1/8, 1/16 and 1/32, each projected to ``width`` channels (Spatial Prior Module)."""

    def __init__(self, width: int, in_channels: int = 3) -> None:
        super().__init__()
        first = PRIOR_WIDTHS[0]
        self.stem = nn.Sequential(
            conv_norm_relu(in_channels, first, stride=2),
            conv_norm_relu(first, first),
            conv_norm_relu(first, first),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.down = nn.ModuleList(conv_norm_relu(inputs, outputs, stride=2) for inputs, outputs in pairwise(PRIOR_WIDTHS))
        self.project = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in PRIOR_WIDTHS)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to four (B, width, H / s, W / s) with s = 4, 8, 16, 32."""
        maps = [self.stem(images)]
        for down in self.down:
            maps.append(down(maps[-1]))
        return [project(x) for project, x in zip(self.project, maps, strict=True)]


class ConvFeedForward(nn.Module):
    """Linear to a quarter of the width, depthwise 3x3 convolution on each scale with the same weights, GELU, linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 4)
        self.first = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.second = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, grids: Grids) -> Tensor:
        """(B, N, width) to the same; the tokens of each grid follow one another in raster order."""
        maps = from_tokens(self.first(tokens), grids)
        output: Tensor = self.second(F.gelu(to_tokens([self.depthwise(x) for x in maps])))
        return output


class Extractor(nn.Module):
    """One step of reading: deformable attention of the pyramid's tokens on a backbone layer, then a feed-forward block, both residual."""

    def __init__(self, width: int, *, num_heads: int, num_points: int, drop_path: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.value_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = DeformableCrossAttention(width, num_heads=num_heads, num_points=num_points)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = ConvFeedForward(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, grids: Grids, places: Tensor, layer: Tensor) -> Tensor:
        """Tokens (B, N, width) on ``grids``, at ``places`` (N, 2), read the map ``layer`` (B, width, h, w) and are given back."""
        values = self.value_norm(to_tokens([layer]))
        tokens = tokens + self.attention(self.query_norm(tokens), places, values, (layer.shape[-2], layer.shape[-1]))
        output: Tensor = tokens + self.drop_path(self.feed_forward(self.norm(tokens), grids))
        return output


class DINOAdapter(nn.Module):
    """Four backbone layers and the image become a pyramid of four maps.

    The spatial prior's maps at 1/8, 1/16 and 1/32, told apart by a learned embedding, are one sequence of tokens. It reads each layer in
    turn, shallowest first, and the last layer three times. Then the 1/8 map is also brought up to 1/4; the spatial prior at 1/4 and the
    layer of the same rank, resized bilinearly, are added to each scale, and each is normalised.

    Args:
        layer_widths: Channels of the four layers; one that differs from ``width`` is projected by a 1x1 convolution first.
        width: Channels of every map here.
        in_channels: Of the images.
        num_heads: Of the deformable attention.
        num_points: Sampling points of each head.
        drop_path: Rate of stochastic depth of every feed-forward block.

    Raises:
        ValueError: The heads do not divide half of the width.
    """

    def __init__(
        self, layer_widths: Sequence[int], width: int, *, in_channels: int = 3, num_heads: int, num_points: int, drop_path: float
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1) for inputs in layer_widths)
        self.spatial_prior = SpatialPrior(width, in_channels)
        self.level_embedding = nn.Parameter(torch.randn(3, width))
        self.extractors = nn.ModuleList(
            Extractor(width, num_heads=num_heads, num_points=num_points, drop_path=drop_path) for _ in READ_LAYERS
        )
        self.up = Upsampling(width, width)
        self.norms = nn.ModuleList(BatchNorm(width) for _ in range(4))
        self.apply(initialise)

    def project_layers(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """The four layers (B, its width, h, w), shallowest first, all as (B, width, h, w)."""
        return [project(layer) for project, layer in zip(self.project, layers, strict=True)]

    def forward(self, images: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
        """Mixes.

        Args:
            images: (B, in_channels, H, W); H and W multiples of 32.
            layers: What ``project_layers`` gave.

        Returns:
            Four (B, width, H / s, W / s) with s = 4, 8, 16, 32.
        """
        fine, *coarse = self.spatial_prior(images)
        grids = [(x.shape[-2], x.shape[-1]) for x in coarse]
        places = torch.cat([pixel_centres(*grid, device=images.device) for grid in grids])
        tokens = torch.cat([to_tokens([x]) + level for x, level in zip(coarse, self.level_embedding, strict=True)], dim=1)
        for extractor, index in zip(self.extractors, READ_LAYERS, strict=True):
            tokens = extractor(tokens, grids, places, layers[index])
        coarse = from_tokens(tokens, grids)
        maps = [fine + self.up(coarse[0]), *coarse]
        resized = [F.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=False) for x, y in zip(layers, maps, strict=True)]
        return [norm(x + y) for norm, x, y in zip(self.norms, maps, resized, strict=True)]


def to_tokens(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, h, w) as one sequence (B, N, C): each in raster order, one after the other."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def from_tokens(tokens: Tensor, grids: Grids) -> list[Tensor]:
    """Undoes ``to_tokens``."""
    parts = tokens.split([height * width for height, width in grids], dim=1)
    return [part.transpose(1, 2).unflatten(2, grid) for part, grid in zip(parts, grids, strict=True)]


def initialise(module: nn.Module) -> None:
    """The adapter's initial weights, for ``Module.apply``: truncated normal for linear layers, He's normal by fan-out for convolutions."""
    if isinstance(module, DeformableCrossAttention):
        module.reset_parameters()  # `apply` comes here after the linear layers inside
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        he_by_outputs(module)
