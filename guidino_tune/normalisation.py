"""From pixels to what a network sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Per channel, of values in [0, 1]; DINO backbones were trained on images normalised with it."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per channel, of values in [0, 1]."""


def _imagenet(image: Tensor) -> Tensor:
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (image / 255 - mean) / std


def _zscore(image: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(image, dim=(1, 2), correction=0, keepdim=True)
    return (image - mean) / deviation.clamp(min=1)  # below one grey level there is nothing but rounding, not to be blown up


NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {"imagenet": _imagenet, "zscore": _zscore}
"""``data.normalisation`` -> what it does to (3, H, W) of 0 to 255."""


def normalise(image: np.ndarray, kind: str = "imagenet") -> Tensor:
    """Turns uint8 (H, W, 3) into float32 (3, H, W).

    Args:
        image: RGB.
        kind: ``imagenet``: ImageNet's mean and deviation are taken out. ``zscore``: those of this image, per channel (nnU-Net); a
            deviation of less than one grey level counts as one.
    """
    return NORMALISATIONS[kind](torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float())
