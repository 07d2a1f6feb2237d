"""nnU-Net's convolution block and decoder (Isensee et al., 2021), which Dino U-Net shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import Upsampling


def conv_norm(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """3x3 convolution with bias, affine instance norm (eps 1e-5), LeakyReLU (slope 0.01)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(0.01, inplace=True)
    )


class UNetDecoder(nn.Module):
    """Transposed convolution by 2, concatenation [up, skip], ``num_convs`` blocks, and a 1x1 head at every stage.

    Args:
        widths: Of the encoder's maps, finest first.
        num_outputs: Channels of the logits.
        num_convs: Blocks of each stage.
        deep_supervision: Give the logits of every stage; else the coarse heads exist but are neither run nor trained, so that the
            weights fit both ways.
    """

    def __init__(self, widths: Sequence[int], num_outputs: int, *, num_convs: int, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        pairs = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(Upsampling(deep, fine) for deep, fine in pairs)
        self.merge = nn.ModuleList(
            nn.Sequential(conv_norm(2 * fine, fine), *(conv_norm(fine, fine) for _ in range(num_convs - 1))) for _, fine in pairs
        )
        self.heads = nn.ModuleList(nn.Conv2d(fine, num_outputs, 1) for _, fine in pairs)
        # Unused trainable weights would stop distributed training.
        self.heads[:-1].requires_grad_(deep_supervision)

    def forward(self, maps: Sequence[Tensor], gate: Gate) -> tuple[Tensor, ...]:
        """Decodes.

        Args:
            maps: Of the encoder, finest first, each of half the side of the one before.
            gate: Called at ``skips`` for every map but the deepest, and at ``decoder`` for every stage's result.

        Returns:
            Logits at the size of each map but the deepest, finest first; without deep supervision the finest only.
        """
        x, logits = maps[-1], []
        for stage, (up, merge, head) in enumerate(zip(self.up, self.merge, self.heads, strict=True), 2):
            x = gate("decoder", merge(torch.cat([up(x), gate("skips", maps[-stage])], dim=1)))
            if self.deep_supervision or stage == len(maps):
                logits.append(head(x))
        return tuple(reversed(logits))
