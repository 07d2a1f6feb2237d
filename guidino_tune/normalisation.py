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


def imagenet_constants(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for so many channels: ImageNet's own of three, else the mean of its three for each channel."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,) * channels, (sum(IMAGENET_STD) / 3,) * channels


def _imagenet(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(constants).view(-1, 1, 1) for constants in imagenet_constants(len(image)))
    return (image / 255 - mean) / std


def zscore_constants(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C, 1, 1) of an image's own channels, (C, H, W); below one grey level there is nothing but rounding, not to be
    blown up."""
    deviation, mean = torch.std_mean(image, dim=(1, 2), correction=0, keepdim=True)
    return mean, deviation.clamp(min=1)


def _zscore(image: Tensor) -> Tensor:
    mean, deviation = zscore_constants(image)
    return (image - mean) / deviation


NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {"imagenet": _imagenet, "zscore": _zscore}
"""``data.normalisation`` -> what it does to (C, H, W) of 0 to 255."""


def normalise(image: np.ndarray, kind: str = "imagenet") -> Tensor:
    """Turns uint8 or uint16 (H, W, C) into float32 (C, H, W).

    Args:
        image: RGB, or any number of channels; 65535 of uint16 counts as 255.
        kind: ``imagenet``: ImageNet's mean and deviation are taken out (with other than three channels the mean of its three from each).
            ``zscore``: those of this image, per channel (nnU-Net); a deviation of less than one grey level of 255 counts as one.

    Raises:
        TypeError: The image is of another type.
    """
    return NORMALISATIONS[kind](grey_levels(image))


def grey_levels(image: np.ndarray) -> Tensor:
    """Turns uint8 or uint16 (H, W, C) into float32 (C, H, W) of 0 to 255.

    Raises:
        TypeError: The image is of another type.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"an image is uint8 or uint16, not {image.dtype}")
    values = np.ascontiguousarray(image.transpose(2, 0, 1))
    return torch.from_numpy(values.astype(np.float32) / np.float32(257)) if image.dtype == np.uint16 else torch.from_numpy(values).float()
