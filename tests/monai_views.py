"""The same augmentation by MONAI's transforms, one channel after the other, from the same draws: to compare with."""

from __future__ import annotations

import torch
from monai.transforms import AdjustContrast, Affine, GaussianSmooth, ScaleIntensity, ScaleIntensityFixedMean
from torch import Tensor
from torch.nn import functional

from guidino_tune.data.augmentation import Plan

CHANGES = {
    "blur": lambda sigma: _blur(sigma),
    "brightness": lambda factor: ScaleIntensity(minv=None, maxv=None, factor=factor - 1),
    "contrast": lambda factor: ScaleIntensityFixedMean(factor=factor - 1, fixed_mean=True, preserve_range=True),
    "resolution": lambda zoom: _lower_resolution(zoom),
    "gamma of the inverted image": lambda exponent: AdjustContrast(exponent, invert_image=True, retain_stats=True),
    "gamma": lambda exponent: AdjustContrast(exponent, retain_stats=True),
}


def monai_view(image: Tensor, mask: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """One view, (C, S, S) and (1, S, S), by the changes of ``plan``."""
    if plan.angle or plan.scale != 1:
        move = Affine(rotate_params=plan.angle, scale_params=(plan.scale,) * 2, padding_mode="zeros", image_only=True)
        image, mask = move(image, mode="bilinear").as_tensor(), move(mask, mode="nearest").as_tensor()
    if plan.noise is not None:
        image = image + torch.from_numpy(plan.noise)
    for name, make in CHANGES.items():
        if name in plan.channels:
            values = plan.channels[name]
            changed = [
                channel if value is None else torch.as_tensor(make(value)(channel))
                for channel, value in zip(image.split(1), values, strict=True)
            ]
            image = torch.cat(changed)
    return image.flip(plan.flips), mask.flip(plan.flips)


def _blur(sigma: float):
    def change(channel: Tensor) -> Tensor:
        padded = functional.pad(channel[None], [4] * 4, mode="reflect")[0]
        return torch.as_tensor(GaussianSmooth(sigma=sigma, approx="sampled")(padded))[:, 4:-4, 4:-4]

    return change


def _lower_resolution(zoom: float):
    def change(channel: Tensor) -> Tensor:
        sides = list(channel.shape[1:])
        small = functional.interpolate(channel[None], size=[max(1, round(side * zoom)) for side in sides], mode="nearest-exact")
        return functional.interpolate(small, size=sides, mode="bilinear", align_corners=False)[0]

    return change
