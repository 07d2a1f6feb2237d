"""Networks whose answer is known, and what they are fed with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from guidino_tune.config import Data

DATA = Data(kind="demo", image_size=64)


class KnownPrediction(NamedTuple):
    logits: tuple[Tensor, ...]
    guide: Tensor | None


class Brightness(nn.Module):
    """Logits are the mean colour of a pixel, on [-10, 10]; the guide is the brightness on a 16 times coarser grid."""

    def __init__(self, guided: bool = True) -> None:
        super().__init__()
        self.guided = guided
        self.mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    def forward(self, images: Tensor) -> KnownPrediction:
        grey = (images * self.std + self.mean).mean(1, keepdim=True)
        logits = (grey - 0.5) * 20
        return KnownPrediction((logits, logits[:, :, ::2, ::2]), nn.functional.avg_pool2d(grey, 16) if self.guided else None)


class Ramp(Brightness):
    """Adds a ramp from left to right, so that the answer depends on how the image is held."""

    def forward(self, images: Tensor) -> KnownPrediction:
        logits, guide = super().forward(images)
        return KnownPrediction((logits[0] + torch.linspace(0, 5, images.shape[-1]),), guide)


class Seen(Brightness):
    """Keeps the windows that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> KnownPrediction:
        self.batches.append(images)
        return super().forward(images)
