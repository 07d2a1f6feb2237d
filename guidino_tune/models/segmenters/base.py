"""What all segmenters have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from guidino_tune.models.backbone import FeatureRequest, Features
from guidino_tune.models.gate import Gate


class Segmenter(nn.Module, ABC):
    """A network or head that can be gated at named places.

    Args:
        config: The segmenter's configuration dataclass.
        features_width: Channels of the backbone's features; ``None`` without a backbone.
        num_layers: Transformer layers of the backbone; ``None`` without one.
        num_outputs: Channels of the logits.
    """

    feature_request = FeatureRequest()
    """Backbone layers that ``forward`` reads; subclasses that need some set their own in the constructor."""

    @abstractmethod
    def __init__(self, config: Any, *, features_width: int | None = None, num_layers: int | None = None, num_outputs: int = 1) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """Segments a batch and calls ``gate(place, x)`` at every place named in the configuration's ``gates``.

        Args:
            images: (B, 3, H, W), ImageNet-normalised; H and W multiples of 16.
            gate: Multiplies at its place.
            features: Backbone features of these images; ``None`` without a backbone.

        Returns:
            Logits, finest first; the first is (B, num_outputs, H, W), the i-th (B, num_outputs, H / 2^i, W / 2^i).
        """


def required(name: str, *values: int | None) -> tuple[int, ...]:
    """The values of a head that cannot do without a backbone.

    Raises:
        ValueError: One is ``None``.
    """
    if None in values:
        raise ValueError(f"{name} is a head on backbone features: it needs features_width and num_layers")
    return tuple(v for v in values if v is not None)
