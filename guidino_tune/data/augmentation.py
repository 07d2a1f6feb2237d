"""nnU-Net's augmentation (Isensee et al., Nature Methods 2021, supplement 4) with MONAI's transforms, as a function of a seed.

Parameters are drawn here, from one seed per view, and MONAI's deterministic transforms apply them. Its random transforms keep a state
of their own, so that a view would depend on the views before it.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guidino_tune.errors import UserError, nearest
from guidino_tune.monai_parts import AdjustContrast, Affine, GaussianSmooth, MetaTensor, ScaleIntensity, ScaleIntensityFixedMean

_BLUR_MARGIN = 4  # pixels; MONAI's kernel reaches 4 sigma and pads with zeros, which would darken the border


class Augmentation(Protocol):
    """Makes a view of a case."""

    def __call__(self, image: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Returns new tensors; equal arguments give equal views, in any process and thread.

        Args:
            image: float32 (C, S, S), from ``normalise``.
            mask: float32 (1, S, S) of 0 and 1, or of labels, and ``IGNORED``.
            seed: At least 0.
        """


def no_augmentation(image: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Leaves the case as it is."""
    return image, mask


def nnunet_augmentation(image: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """nnU-Net's set for square 2D images, in its order and with its probabilities.

    Rotation by any angle (p 0.2) and scaling by 0.7 to 1.4 (0.2) in one resampling with zeros outside (background; in the image the mean
    colour: ImageNet's or, of z-scores, the image's own, as in nnU-Net); Gaussian noise of variance 0 to 0.1 (0.1); blur, sigma 0.5 to 1
    pixel (0.2, each channel 0.5); brightness times 0.75 to 1.25 (0.15); contrast times 0.75 to 1.25 about the mean, within the range of
    the image (0.15); resolution lowered to 0.5 to 1 (0.25, each channel 0.5); gamma 0.7 to 1.5 on the inverted image (0.1) and on the
    image (0.3), keeping mean and deviation; flips of either axis (0.5 each). Intensity parameters are drawn per channel. Masks are
    resampled to the nearest pixel: labels stay labels.
    """
    rng = np.random.default_rng(seed)
    image, mask = _rotate_and_scale(image, mask, rng)
    if rng.random() < 0.1:
        noise = rng.standard_normal(tuple(image.shape), dtype=np.float32)
        image = image + torch.from_numpy(noise) * float(np.sqrt(rng.uniform(0, 0.1)))
    for probability, change in (
        (0.2, _blur),
        (0.15, _brightness),
        (0.15, _contrast),
        (0.25, _lower_resolution),
        (0.1, _gamma_inverted),
        (0.3, _gamma),
    ):
        if rng.random() < probability:
            image = torch.cat([change(image[index : index + 1], rng) for index in range(len(image))])
    axes = [axis for axis in (1, 2) if rng.random() < 0.5]
    return image.flip(axes), mask.flip(axes)


AUGMENTATIONS: dict[str, Augmentation] = {"nnunet": nnunet_augmentation, "none": no_augmentation}
"""``data.augmentation`` -> what makes a view."""


def make_augmentation(kind: str) -> Augmentation:
    """Returns the augmentation of that name.

    Raises:
        UserError: There is none.
    """
    if kind not in AUGMENTATIONS:
        raise UserError(f"unknown augmentation {kind!r}", where="data.augmentation", todo=nearest(kind, AUGMENTATIONS))
    return AUGMENTATIONS[kind]


def _about_one(rng: np.random.Generator, low: float, high: float) -> float:
    # nnU-Net weakens as often as it strengthens, however unequal the two sides of the range are
    return float(rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high))


def _rotate_and_scale(image: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    angle = float(rng.uniform(-np.pi, np.pi)) if rng.random() < 0.2 else 0.0
    scale = _about_one(rng, 0.7, 1.4) if rng.random() < 0.2 else 1.0
    if angle == 0.0 and scale == 1.0:
        return image, mask
    move = Affine(rotate_params=angle, scale_params=(scale, scale), padding_mode="zeros", image_only=True)
    return _plain(move(image, mode="bilinear")), _plain(move(mask, mode="nearest"))


# Each of the following changes one channel, (1, S, S).


def _blur(channel: Tensor, rng: np.random.Generator) -> Tensor:
    if rng.random() < 0.5:
        return channel
    padded = functional.pad(channel[None], [_BLUR_MARGIN] * 4, mode="reflect")[0]
    blurred = _plain(GaussianSmooth(sigma=float(rng.uniform(0.5, 1.0)), approx="sampled")(padded))
    return blurred[:, _BLUR_MARGIN:-_BLUR_MARGIN, _BLUR_MARGIN:-_BLUR_MARGIN]


def _brightness(channel: Tensor, rng: np.random.Generator) -> Tensor:
    return _plain(ScaleIntensity(minv=None, maxv=None, factor=_about_one(rng, 0.75, 1.25) - 1)(channel))


def _contrast(channel: Tensor, rng: np.random.Generator) -> Tensor:
    return _plain(ScaleIntensityFixedMean(factor=_about_one(rng, 0.75, 1.25) - 1, fixed_mean=True, preserve_range=True)(channel))


def _lower_resolution(channel: Tensor, rng: np.random.Generator) -> Tensor:
    if rng.random() < 0.5:
        return channel
    zoom = float(rng.uniform(0.5, 1.0))
    sides = list(channel.shape[1:])
    small = functional.interpolate(channel[None], size=[max(1, round(side * zoom)) for side in sides], mode="nearest-exact")
    return functional.interpolate(small, size=sides, mode="bilinear", align_corners=False)[0]  # MONAI has it as a random transform only


def _gamma_inverted(channel: Tensor, rng: np.random.Generator) -> Tensor:
    return _plain(AdjustContrast(_about_one(rng, 0.7, 1.5), invert_image=True, retain_stats=True)(channel))


def _gamma(channel: Tensor, rng: np.random.Generator) -> Tensor:
    return _plain(AdjustContrast(_about_one(rng, 0.7, 1.5), retain_stats=True)(channel))


def _plain(tensor: Any) -> Tensor:
    plain: Tensor = tensor.as_tensor() if isinstance(tensor, MetaTensor) else torch.as_tensor(tensor)  # MONAI's carry a history
    return plain
