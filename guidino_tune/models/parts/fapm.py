"""Dino U-Net's fidelity-aware projection module, which narrows wide backbone maps for a U-Net decoder (Gao et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Channels weighted by a gate of their spatial means (Hu et al., 2018), reduction 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 16)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same."""
        y: Tensor = x * self.gate(x)
        return y


def norm_act(width: int) -> tuple[nn.Module, nn.Module]:
    """Affine instance norm and LeakyReLU, as nnU-Net has them."""
    return nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.01, inplace=True)


def refinement(inputs: int, width: int) -> nn.Sequential:
    """Narrowing 1x1 convolution, a depthwise separable 3x3 one, another 1x1 one, and squeeze and excitation."""
    return nn.Sequential(
        nn.Conv2d(inputs, width, 1),
        *norm_act(width),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.Conv2d(width, width, 1),
        *norm_act(width),
        nn.Conv2d(width, width, 1),
        SqueezeExcitation(width),
    )


class FAPM(nn.Module):
    """Projects each scale twice, lets the shared projection modulate the scale's own (FiLM, Perez et al., 2018), and refines the result.

    With s = shared(x), the same 1x1 convolution for all scales, and (gamma, beta) = film(s) at every pixel: z = gamma * specific(x) + beta
    of ``rank`` channels. The result is refine(z) + shortcut(z); the shortcut is a 1x1 convolution, or nothing where ``rank`` is the width.

    Args:
        inputs: Channels of every map.
        widths: Channels that each scale leaves with.
        rank: Of the shared and the specific projections.
    """

    def __init__(self, inputs: int, widths: Sequence[int], rank: int) -> None:
        super().__init__()
        self.shared = nn.Conv2d(inputs, rank, 1)
        self.specific = nn.ModuleList(nn.Conv2d(inputs, rank, 1) for _ in widths)
        self.film = nn.ModuleList(nn.Conv2d(rank, 2 * rank, 1) for _ in widths)
        self.refine = nn.ModuleList(refinement(rank, width) for width in widths)
        self.shortcut = nn.ModuleList(nn.Identity() if width == rank else nn.Conv2d(rank, width, 1) for width in widths)

    def modulated(self, scale: int, x: Tensor) -> Tensor:
        """The map z (B, rank, h, w) of the map ``x`` (B, inputs, h, w) at a scale, 0 for the finest."""
        gamma, beta = self.film[scale](self.shared(x)).chunk(2, dim=1)
        return torch.addcmul(beta, gamma, self.specific[scale](x))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, inputs, h_i, w_i) to (B, widths[i], h_i, w_i)."""
        modulated = [self.modulated(scale, x) for scale, x in enumerate(maps)]
        return [refine(z) + shortcut(z) for refine, shortcut, z in zip(self.refine, self.shortcut, modulated, strict=True)]
