"""The guided segmenter: guide backbone, TokenBook and gated segmenter as one module."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guidino_tune.errors import UserError
from guidino_tune.models.backbone import Backbone, FeatureRequest, Features, check_image_size
from guidino_tune.models.gate import Gate
from guidino_tune.models.guide_view import GuideView
from guidino_tune.models.segmenters.base import Segmenter
from guidino_tune.models.tokenbook import TokenBook


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a guided segmenter says about a batch.

    Attributes:
        logits: One (B, num_outputs, H / 2^i, W / 2^i) per head, finest first; only the first outside deep supervision.
        guide: Guide mask (B, 1, H / 16, W / 16) in [0, 1], float32; ``None`` without a gate.
    """

    logits: tuple[Tensor, ...]
    guide: Tensor | None = None


class GuidedSegmenter(nn.Module):
    """A segmenter, gated by a guide mask where it has a guide.

    Args:
        segmenter: The medical network or head.
        backbone: ``None`` for a plain network.
        tokenbook: ``None`` without a gate.
        place: Where the mask multiplies; ``None`` without a gate.
        view: The channels that the backbone sees; ``None``: images have three, and it sees them.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        backbone: Backbone | None = None,
        tokenbook: TokenBook | None = None,
        place: str | None = None,
        view: GuideView | None = None,
    ) -> None:
        super().__init__()
        if (tokenbook is None) != (place is None) or (tokenbook is not None and backbone is None):
            raise ValueError("a TokenBook needs a backbone and a place to gate, and a place needs a TokenBook")
        self.backbone = backbone
        self.tokenbook = tokenbook
        self.segmenter = segmenter
        self.place = place
        self.view = view or GuideView()
        self.bf16 = False
        """Whether predictions are made under bf16 autocast, as the network was trained; training sets its precision itself."""

    @property
    def fingerprint(self) -> str:
        """Of the weights that the backbone came with; empty without a backbone."""
        return self.backbone.fingerprint if self.backbone is not None else ""

    @property
    def feature_request(self) -> FeatureRequest:
        """Layers that ``features`` must hold when they are given to ``forward``."""
        return self.segmenter.feature_request

    def forward(self, images: Tensor, features: Features | None = None) -> Prediction:
        """Segments a batch.

        Args:
            images: (B, C, H, W), normalised; H and W multiples of the segmenter's ``size_multiple``, C as it was built for.
            features: The backbone's features of exactly these images (see ``feature_request``); given, the backbone is not run.

        Raises:
            UserError: H or W is no such multiple.
        """
        check_image_size(images, self.segmenter.size_multiple)
        if features is None:
            features = self._features(images)
        mask = self.tokenbook(features.last) if self.tokenbook is not None and features is not None else None
        return Prediction(self.segmenter(images, Gate(mask, self.place), features), mask)

    def _features(self, images: Tensor) -> Features | None:
        if self.backbone is None:
            return None
        request = self.feature_request
        with torch.no_grad() if self.backbone.frozen else nullcontext():
            features: Features = self.backbone(self.view(images), request.layers, request.final_norm)
        return features

    def trained_state(self) -> dict[str, Tensor]:
        """Every weight and buffer but the backbone's frozen ones: its trained ones, TokenBook, segmenter. Shares memory with the module."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.") or name in trained}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``trained_state`` gave, strictly: every key must be there, no other, and every shape must fit.

        Raises:
            UserError: The state belongs to another configuration; names the keys. The module is unchanged.
        """
        own = self.trained_state()
        wrong = [
            ("missing", sorted(own.keys() - state.keys())),
            ("unexpected", sorted(state.keys() - own.keys())),
            ("of another shape", sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)),
        ]
        problems = [f"{kind}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}" for kind, keys in wrong if keys]
        if problems:
            raise UserError(
                "the weights do not fit this model; " + "; ".join(problems),
                where="trained weights",
                todo="load them with the experiment that they were trained with",
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])
