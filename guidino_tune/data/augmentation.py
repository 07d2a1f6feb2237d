"""nnU-Net's augmentation (Isensee et al., Nature Methods 2021, supplement 4) of many views at once, each a function of its seed.

What happens to a view is drawn first, from its seed alone; then each operation changes, in one go, all channels of the batch that want
it, on whatever device they are. So a view is the same whatever batch it comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from guidino_tune.errors import UserError, nearest

_BLUR_REACH = 4  # pixels: 4 times the largest sigma


class Augmentation(Protocol):
    """Makes views of cases."""

    def __call__(self, images: Tensor, masks: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns tensors of the same shapes; what is given is not changed. Equal arguments give equal views, in any process and thread.

        Args:
            images: float32 (B, C, S, S), from ``normalise``.
            masks: float32 (B, 1, S, S) of 0 and 1, or of labels, and ``IGNORED``.
            seeds: One per view, each at least 0.
        """


def no_augmentation(images: Tensor, masks: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Leaves the cases as they are."""
    return images, masks


def nnunet_augmentation(images: Tensor, masks: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """nnU-Net's set for square 2D images, in its order and with its probabilities.

    Rotation by any angle (p 0.2) and scaling by 0.7 to 1.4 (0.2) in one resampling with zeros outside (background; in the image the mean
    colour: ImageNet's or, of z-scores, the image's own, as in nnU-Net); Gaussian noise of variance 0 to 0.1 (0.1); blur, sigma 0.5 to 1
    pixel (0.2, each channel 0.5); brightness times 0.75 to 1.25 (0.15); contrast times 0.75 to 1.25 about the mean, within the range of
    the image (0.15); resolution lowered to 0.5 to 1 (0.25, each channel 0.5); gamma 0.7 to 1.5 on the inverted image (0.1) and on the
    image (0.3), keeping mean and deviation; flips of either axis (0.5 each). Intensity parameters are drawn per channel. Masks are
    resampled to the nearest pixel: labels stay labels.
    """
    plans = [draw(np.random.default_rng(seed), images.shape[1:]) for seed in seeds]
    images, masks = (x.clone(memory_format=torch.contiguous_format) for x in (images, masks))

    moved = [row for row, plan in enumerate(plans) if plan.angle or plan.scale != 1.0]
    if moved:
        where = torch.tensor(moved, device=images.device)
        grid = _grid([plans[row] for row in moved], images)
        images[where] = functional.grid_sample(images[where], grid, mode="bilinear", align_corners=False)
        masks[where] = functional.grid_sample(masks[where], grid, mode="nearest", align_corners=False)
    for row, plan in enumerate(plans):
        if plan.noise is not None:
            images[row] += torch.from_numpy(plan.noise).to(images.device)
    channels = images.flatten(0, 1)  # a view of them: what changes here changes there
    for name, change in _CHANGES:
        wanted = [value for plan in plans for value in plan.channels.get(name, (None,) * images.shape[1])]
        rows = [row for row, value in enumerate(wanted) if value is not None]
        if rows:
            where = torch.tensor(rows, device=images.device)
            values = torch.tensor([wanted[row] for row in rows], dtype=torch.float32, device=images.device)
            channels[where] = change(channels[where], values[:, None, None])
    for axes in ((1,), (2,), (1, 2)):
        rows = [row for row, plan in enumerate(plans) if plan.flips == axes]
        if rows:
            where = torch.tensor(rows, device=images.device)
            for tensor in (images, masks):
                tensor[where] = tensor[where].flip([axis + 1 for axis in axes])
    return images, masks


AUGMENTATIONS: dict[str, Augmentation] = {"nnunet": nnunet_augmentation, "none": no_augmentation}
"""``data.augmentation`` -> what makes views."""


def make_augmentation(kind: str) -> Augmentation:
    """Returns the augmentation of that name.

    Raises:
        UserError: There is none.
    """
    if kind not in AUGMENTATIONS:
        raise UserError(f"unknown augmentation {kind!r}", where="data.augmentation", todo=nearest(kind, AUGMENTATIONS))
    return AUGMENTATIONS[kind]


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to one view.

    Attributes:
        angle: Of the rotation, radians; 0: none.
        scale: Pixels of the image per pixel of the view: what is seen shrinks above 1.
        noise: float32 (C, S, S) that is added; ``None``: nothing.
        channels: Name of a change -> its parameter for each channel; ``None``: that one stays as it is.
        flips: Axes of (C, S, S).
    """

    angle: float
    scale: float
    noise: np.ndarray | None
    channels: dict[str, tuple[float | None, ...]]
    flips: tuple[int, ...]


def draw(rng: np.random.Generator, shape: Sequence[int]) -> Plan:
    """Draws what happens to a view of that shape (C, S, S)."""
    angle = float(rng.uniform(-np.pi, np.pi)) if rng.random() < 0.2 else 0.0
    scale = _about_one(rng, 0.7, 1.4) if rng.random() < 0.2 else 1.0
    noise = None
    if rng.random() < 0.1:
        noise = rng.standard_normal(tuple(shape), dtype=np.float32)
        noise *= np.float32(np.sqrt(rng.uniform(0, 0.1)))
    channels = {}
    for name, probability, parameter in _DRAWN:
        if rng.random() < probability:
            channels[name] = tuple(parameter(rng) for _ in range(shape[0]))
    return Plan(angle, scale, noise, channels, tuple(axis for axis in (1, 2) if rng.random() < 0.5))


def _about_one(rng: np.random.Generator, low: float, high: float) -> float:
    # nnU-Net weakens as often as it strengthens, however unequal the two sides of the range are
    return float(rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high))


def _of_half(rng: np.random.Generator) -> float | None:
    return None if rng.random() < 0.5 else float(rng.uniform(0.5, 1.0))


_DRAWN: tuple[tuple[str, float, Callable[[np.random.Generator], float | None]], ...] = (
    ("blur", 0.2, _of_half),
    ("brightness", 0.15, lambda rng: _about_one(rng, 0.75, 1.25)),
    ("contrast", 0.15, lambda rng: _about_one(rng, 0.75, 1.25)),
    ("resolution", 0.25, _of_half),
    ("gamma of the inverted image", 0.1, lambda rng: _about_one(rng, 0.7, 1.5)),
    ("gamma", 0.3, lambda rng: _about_one(rng, 0.7, 1.5)),
)


def _grid(plans: Sequence[Plan], images: Tensor) -> Tensor:
    """Where each pixel of the views is taken from, (N, S, S, 2) for ``grid_sample``: turned and scaled about the middle."""
    turns = torch.tensor([[plan.scale * math.cos(plan.angle), plan.scale * math.sin(plan.angle)] for plan in plans], device=images.device)
    cos, sin = turns[:, 0, None, None], turns[:, 1, None, None]
    # Pixel centres from -1 to 1, as `align_corners=False` has them; `affine_grid` takes four times as long for the same.
    side = images.shape[-1]
    along = (torch.arange(side, device=images.device, dtype=torch.float32) * 2 + 1) / side - 1
    x, y = along[None, None, :], along[None, :, None]
    return torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)


# Each of the following changes channels, (R, S, S), by a parameter of each, (R, 1, 1); in place where that is faster: use what it returns.


def blurred(channels: Tensor, sigma: Tensor) -> Tensor:
    """By a Gaussian of ``sigma`` pixels, mirrored at the border."""
    side = channels.shape[-1]
    weights = torch.exp(-0.5 * (torch.arange(_BLUR_REACH + 1, device=channels.device) / sigma) ** 2)  # (R, 1, 5), of one half
    weights /= 2 * weights.sum(-1, keepdim=True) - 1
    channels = functional.pad(channels[None], [_BLUR_REACH] * 4, mode="reflect")[0]
    for axis in (1, 2):
        total = channels.narrow(axis, _BLUR_REACH, side) * weights[..., :1]
        for step in range(1, _BLUR_REACH + 1):
            before, after = (channels.narrow(axis, _BLUR_REACH + offset, side) for offset in (-step, step))
            total.addcmul_(before + after, weights[..., step : step + 1])
        channels = total
    return channels


def brightened(channels: Tensor, factor: Tensor) -> Tensor:
    """Times ``factor``."""
    return channels.mul_(factor)


def contrasted(channels: Tensor, factor: Tensor) -> Tensor:
    """Distances from the mean times ``factor``, within the range that the channel had."""
    low, high = _range(channels)
    mean = _mean(channels)
    return torch.clamp(channels.sub_(mean).mul_(factor).add_(mean), low, high, out=channels)


def at_lower_resolution(channels: Tensor, zoom: Tensor) -> Tensor:
    """As if it had been taken with ``zoom`` times the pixels: reduced to the nearest ones, and enlarged linearly."""
    sides = list(channels.shape[1:])
    enlarged = []
    for channel, share in zip(channels[:, None, None], zoom.flatten().tolist(), strict=True):
        small = functional.interpolate(channel, size=[max(1, round(side * share)) for side in sides], mode="nearest-exact")
        enlarged.append(functional.interpolate(small, size=sides, mode="bilinear", align_corners=False)[0, 0])
    return torch.stack(enlarged)


def with_gamma(channels: Tensor, exponent: Tensor) -> Tensor:
    """Grey values, as shares of their range, to the power ``exponent``; mean and deviation stay."""
    low, high = _range(channels)
    mean = _mean(channels)
    deviation = _deviation(channels, mean)
    channels.sub_(low).div_(high - low + 1e-7).pow_(exponent)
    bent = _mean(channels)
    # The range that it would be brought back to cancels out, but for a channel of one value.
    scale = torch.where(high > low, deviation / (_deviation(channels, bent) + 1e-8), 0.0)
    return channels.sub_(bent).mul_(scale).add_(mean)


def with_gamma_inverted(channels: Tensor, exponent: Tensor) -> Tensor:
    """The same of the negative."""
    return with_gamma(channels.neg_(), exponent).neg_()


def _range(channels: Tensor) -> tuple[Tensor, Tensor]:
    return channels.amin((1, 2), keepdim=True), channels.amax((1, 2), keepdim=True)


def _mean(channels: Tensor) -> Tensor:
    # Summed in double precision: the order of summation, which follows the size of the batch and the threads, is not seen in the result.
    return (channels.sum((1, 2), keepdim=True, dtype=torch.float64) / channels[0].numel()).float()


def _deviation(channels: Tensor, mean: Tensor) -> Tensor:
    return _mean((channels - mean).square_()).sqrt_()


_CHANGES: tuple[tuple[str, Callable[[Tensor, Tensor], Tensor]], ...] = (
    ("blur", blurred),
    ("brightness", brightened),
    ("contrast", contrasted),
    ("resolution", at_lower_resolution),
    ("gamma of the inverted image", with_gamma_inverted),
    ("gamma", with_gamma),
)
"""In their order, by the names of ``Plan.channels``."""
