"""MedDINOv3's decoder (Li et al., 2025): transposed convolutions from backbone tokens straight to pixels."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, FeatureRequest, Features, segmentation_layers
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import ChannelNorm, Upsampling
from guidino_tune.models.segmenters.base import Segmenter, required


class MedDINO(Segmenter):
    """Backbone layers concatenated, four times a transposed convolution by 2 that halves the width, layer norm and GELU, a 1x1 head.

    No convolution overlaps another, so every pixel of the logits sees a single token. A layer norm takes out again what a mask multiplied
    that token by, but for the biases, which start at 0: a gate before a norm would hardly act. Hence the gate places:
    ``features``, the concatenated layers as the first transposed convolution and norm project them, at 1/8, before their GELU, where the
    mask bends the non-linearity; ``decoder``, the last map before the head, where it multiplies outright.
    """

    def __init__(
        self,
        config: sections.MedDINO,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        shape = required("MedDINOv3", backbone)
        last = shape.num_layers - 1
        layers = segmentation_layers(shape.num_layers) if config.layers == "four" else (last,)
        self.feature_request = FeatureRequest(layers, config.final_norm)
        width = sum(shape.layer_widths[layer] for layer in layers)
        widths = [max(1, width >> halvings) for halvings in range(5)]
        self.up = nn.ModuleList(Upsampling(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.norms = nn.ModuleList(ChannelNorm(outputs, eps=1e-6) for outputs in widths[1:])
        self.head = nn.Conv2d(widths[-1], num_outputs, 1)
        for layer in (*self.up, self.head):
            nn.init.kaiming_normal_(layer.weight, a=1e-2)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; one head, which needs the ``features.layers`` of ``feature_request``."""
        assert features is not None
        x = torch.cat(features.layers, dim=1)
        for stage, (up, norm) in enumerate(zip(self.up, self.norms, strict=True)):
            x = norm(up(x))
            x = F.gelu(x if stage else gate("features", x))
        return (self.head(gate("decoder", x)),)
