"""SegDINO's linear head on four layers of the backbone (SegDINO, 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import FeatureRequest, Features, segmentation_layers
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters.base import Segmenter, required


class SegDINO(Segmenter):
    """Four layers, each projected to its own width and then to ``features``, brought to 1/4 resolution, concatenated, one 1x1 head.

    There is no norm and no activation: the head is linear. The shallowest branch is upsampled by a transposed convolution, the others
    bilinearly with aligned corners, as are the logits.
    Gate place: ``features``, each of the four projected maps at 1/16.
    """

    def __init__(
        self, config: sections.SegDINO, *, features_width: int | None = None, num_layers: int | None = None, num_outputs: int = 1
    ) -> None:
        super().__init__(config)
        width, depth = required("SegDINO", features_width, num_layers)
        self.feature_request = FeatureRequest(segmentation_layers(depth), config.final_norm)
        self.project = nn.ModuleList(nn.Conv2d(width, branch, 1) for branch in config.branch_widths)
        self.mix = nn.ModuleList(nn.Conv2d(branch, config.features, 3, padding=1, bias=False) for branch in config.branch_widths)
        self.up = nn.ConvTranspose2d(config.features, config.features, 4, stride=4, bias=False)
        self.head = nn.Conv2d(4 * config.features, num_outputs, 1)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; one head, which needs the four ``features.layers`` of ``feature_request``."""
        assert features is not None
        branches = [
            mix(gate("features", project(layer))) for project, mix, layer in zip(self.project, self.mix, features.layers, strict=True)
        ]
        first = self.up(branches[0])
        others = [F.interpolate(x, size=first.shape[-2:], mode="bilinear", align_corners=True) for x in branches[1:]]
        logits = self.head(torch.cat([first, *others], dim=1))
        return (F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=True),)
