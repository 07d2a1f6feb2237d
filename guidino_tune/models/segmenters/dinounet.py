"""Dino U-Net (Gao et al., 2025): an adapter on backbone layers, a fidelity-aware projection, and nnU-Net's decoder."""

from __future__ import annotations

from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.errors import UserError
from guidino_tune.models.backbone import BackboneShape, FeatureRequest, Features, segmentation_layers
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import Upsampling
from guidino_tune.models.parts.dino_adapter import DINOAdapter
from guidino_tune.models.parts.fapm import FAPM
from guidino_tune.models.parts.nnunet import UNetDecoder
from guidino_tune.models.segmenters.base import Segmenter, required


class DinoUNet(Segmenter):
    """Four backbone layers and the image become maps at 1/4 to 1/32, are narrowed, brought up by 4 to 1 to 1/8, and decoded.

    Each scale has one transposed convolution by 2 of its own, applied twice with nothing between. The adapter starts from its own initial
    weights, the rest from PyTorch's, as the original. Without deep supervision the coarse heads exist but are neither run nor trained.
    Gate places: ``skips``, the three finer maps that the decoder reads; ``input``, the image that the adapter's convolutions see;
    ``bottleneck``, the decoder's deepest map, at 1/8; ``decoder``, every map of the decoder; ``features``, the four layers at 1/16, as
    they are added to the adapter's maps (its attention normalises every token, which takes a mask out again).

    Raises:
        UserError: The attention heads do not divide half of the backbone's width.
    """

    def __init__(
        self,
        config: sections.DinoUNet,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        shape = required("Dino U-Net", backbone)
        if shape.width // 2 % config.attention_heads:
            raise UserError(
                f"{config.attention_heads} heads do not divide {shape.width // 2}, half of the width of the guide backbone",
                where="segmenter.attention_heads",
                todo="take 16, the original's, or another power of two",
            )
        layers = segmentation_layers(shape.num_layers)
        self.feature_request = FeatureRequest(layers, config.final_norm)
        self.adapter = DINOAdapter(
            [shape.layer_widths[layer] for layer in layers],
            shape.width,
            in_channels=in_channels,
            num_heads=config.attention_heads,
            num_points=config.attention_points,
            drop_path=config.drop_path,
        )
        self.fapm = FAPM(shape.width, config.widths, config.rank)
        self.upsamplers = nn.ModuleList(Upsampling(width, width) for width in config.widths)
        self.decoder = UNetDecoder(config.widths, num_outputs, num_convs=2, deep_supervision=config.deep_supervision)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; needs the four ``features.layers`` of ``feature_request``. Three heads with deep supervision."""
        assert features is not None
        layers = [gate("features", layer) for layer in self.adapter.project_layers(features.layers)]
        narrow = self.fapm(self.adapter(gate("input", images), layers))
        maps = [up(up(x)) for up, x in zip(self.upsamplers, narrow, strict=True)]
        maps[-1] = gate("bottleneck", maps[-1])
        return self.decoder(maps, gate)
