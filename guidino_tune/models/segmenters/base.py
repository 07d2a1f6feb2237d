"""What all segmenters have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from guidino_tune.models.backbone import BackboneShape, FeatureRequest, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.pretrained import Layout


class Segmenter(nn.Module, ABC):
    """A network or head that can be gated at named places.

    Args:
        config: The segmenter's configuration dataclass.
        image_size: Side of the images that it is built for, in pixels. It also takes others that are multiples of ``size_multiple``.
        num_outputs: Channels of the logits.
        in_channels: Channels of the images.
        backbone: What the backbone gives; ``None`` without a backbone.
    """

    feature_request = FeatureRequest()
    """Backbone layers that ``forward`` reads; subclasses that need some set their own in the constructor."""

    channels_last_on_avx2: ClassVar[bool] = True
    """Whether it trains more quickly in channels_last even in float32 on a processor without AVX-512, see ``channels_last_pays``."""

    layout: ClassVar[Layout | None] = None
    """Published weights that ``pretrained`` in the configuration can name a file of."""

    @abstractmethod
    def __init__(
        self, config: Any, *, image_size: int = 256, num_outputs: int = 1, in_channels: int = 3, backbone: BackboneShape | None = None
    ) -> None:
        super().__init__()
        self.size_multiple: int = config.size_multiple(image_size)

    @abstractmethod
    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """Segments a batch and calls ``gate(place, x)`` at every place named in the configuration's ``gates``.

        Args:
            images: (B, in_channels, H, W), normalised; H and W multiples of ``size_multiple``, which the caller has checked.
            gate: Multiplies at its place; a place with several maps (``skips``, ``decoder``) calls it for each.
            features: Backbone features of these images; ``None`` without a backbone.

        Returns:
            Logits, finest first; the first is (B, num_outputs, H, W), the i-th (B, num_outputs, H / 2^i, W / 2^i).
        """


def required(name: str, backbone: BackboneShape | None) -> BackboneShape:
    """The backbone's shape, for a head that cannot do without a backbone.

    Raises:
        ValueError: There is none.
    """
    if backbone is None:
        raise ValueError(f"{name} is a head on backbone features: it needs a backbone")
    return backbone
