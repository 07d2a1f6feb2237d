"""What the guide backbone sees of an image of any number of channels: three of them, as red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guidino_tune.normalisation import IMAGENET_MEAN, IMAGENET_STD, imagenet_constants


@dataclass(frozen=True, slots=True)
class GuideView:
    """Picks three channels.

    Attributes:
        channels: From 0: which are red, green and blue; one may be taken several times.
        of: Channels of the images.
    """

    channels: tuple[int, int, int] = (0, 1, 2)
    of: int = 3

    @property
    def whole(self) -> bool:
        """True when the images are what the guide sees."""
        return self.channels == (0, 1, 2) and self.of == 3

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, ``of``, H, W) of ``normalisation: imagenet`` as the backbone was trained to see them: (B, 3, H, W).

        A channel is normalised by its own place in the image; here it gets mean and deviation of the colour it stands for. A grey image
        of one channel becomes what the same image in RGB would be.
        """
        if self.whole:
            return images
        means, deviations = imagenet_constants(self.of)
        colours = []
        # Plain numbers and slices: small tensors would have to be copied to the device in every step.
        for channel, mean, deviation in zip(self.channels, IMAGENET_MEAN, IMAGENET_STD, strict=True):
            scale, shift = deviations[channel] / deviation, (means[channel] - mean) / deviation
            colours.append(images[:, channel : channel + 1] * scale + shift)
        return torch.cat(colours, dim=1)
