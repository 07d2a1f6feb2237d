"""SegDINO's linear head on four layers of the backbone (SegDINO, 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, FeatureRequest, Features, segmentation_layers
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import Upsampling
from guidino_tune.models.segmenters.base import Segmenter, required


class SegDINO(Segmenter):
    """Four layers, each projected to its own width and then to ``features``, brought to 1/4 resolution, concatenated, one 1x1 head.

    There is no norm and no activation: the head is linear. The shallowest branch is upsampled by a transposed convolution, the others
    bilinearly with aligned corners, as are the logits.
    Gate places: ``features``, each of the four projected maps at 1/16, and ``decoder``, their concatenation at 1/4.
    """

    def __init__(
        self,
        config: sections.SegDINO,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        shape = required("SegDINO", backbone)
        layers = segmentation_layers(shape.num_layers)
        self.feature_request = FeatureRequest(layers, config.final_norm)
        widths = [shape.layer_widths[layer] for layer in layers]
        self.project = nn.ModuleList(nn.Conv2d(width, branch, 1) for width, branch in zip(widths, config.branch_widths, strict=True))
        self.mix = nn.ModuleList(nn.Conv2d(branch, config.features, 3, padding=1, bias=False) for branch in config.branch_widths)
        self.up = Upsampling(config.features, config.features, 4, bias=False)
        self.head = nn.Conv2d(4 * config.features, num_outputs, 1)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; one head, which needs the four ``features.layers`` of ``feature_request``."""
        assert features is not None
        branches = [
            mix(gate("features", project(layer))) for project, mix, layer in zip(self.project, self.mix, features.layers, strict=True)
        ]
        first = self.up(branches[0])
        others = F.interpolate(torch.cat(branches[1:], dim=1), size=first.shape[-2:], mode="bilinear", align_corners=True)
        logits = self.head(gate("decoder", torch.cat([first, others], dim=1)))
        return (F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True),)
