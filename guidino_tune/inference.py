"""From an image to labels of the same size: normalise, predict (whole or in windows, with mirroring if wanted), post-process."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.config import Data, Protocol
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.errors import UserError
from guidino_tune.framing import cut, frame, place
from guidino_tune.normalisation import normalise

# Flips as the axes they reverse: none, left-right, top-down, both.
_FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))

WINDOWS = 4
"""Windows of a sliding window that go through the network together; of the order of a training batch, so that they fit in memory."""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """What a network says about one image: at the image's own size, or where the protocol compares at training size
    at the size that it has there.

    Attributes:
        mask: (H, W), uint8: 0 or 1, for several classes the labels 0 (background) to ``num_classes``.
        probabilities: (num_classes + 1, H, W), float32 in [0, 1]: of background first, then of each class; they add up to 1. ``mask`` is
            made from them, before any post-processing.
        guide: (H, W), float32: the guide mask, bilinearly upsampled; ``None`` for a network without one.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    guide: np.ndarray | None

    @property
    def probability(self) -> np.ndarray:
        """Of foreground, whatever its class: (H, W), float32 in [0, 1]."""
        return self.probabilities[1] if len(self.probabilities) == 2 else 1 - self.probabilities[0]


def to_labels(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """Labels of a batch.

    Args:
        logits: (B, 1, H, W) of a binary network, or (B, num_classes + 1, H, W) with background first.
        threshold: For binary masks only: foreground is where the sigmoid is above it.

    Returns:
        (B, H, W), uint8: 0 and 1, or the channel with the greatest logit (the first of several).
    """
    labels = logits.sigmoid()[:, 0] > threshold if logits.shape[1] == 1 else logits.argmax(1)
    return labels.to(torch.uint8)


def to_probabilities(logits: Tensor) -> Tensor:
    """Probabilities (B, num_classes + 1, H, W) from logits as in ``to_labels``; those of background come first."""
    if logits.shape[1] > 1:
        return logits.softmax(1)
    foreground = logits.sigmoid()
    return torch.cat([1 - foreground, foreground], dim=1)


# Not inference_mode, which gains 2 % at most: attention masks that a network made and kept there would break its training later.
@torch.no_grad()
def predict_logits(model: nn.Module, images: Tensor, mirror: bool = False, *, num_views: int = WINDOWS) -> tuple[Tensor, Tensor | None]:
    """The finest head's logits for a batch.

    Args:
        model: Maps (B, C, S, S) to an object with ``logits`` (a tuple, finest first) and ``guide`` ((B, 1, h, w) or ``None``).
            It must be in eval mode; switching it here could also wake a backbone that has to stay frozen.
        images: (B, C, S, S), float, normalised, on the model's device.
        mirror: Average over the four flips of the image (nnU-Net's test-time augmentation): logits and guide, each flipped back.
        num_views: Flipped images that go through the network together, if B is not more already.

    Returns:
        Logits (B, num_outputs, S, S) and guide (B, 1, h, w) or ``None``, both float32, also under autocast.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() before predicting")
    flips = _FLIPS if mirror else _FLIPS[:1]
    views = torch.cat([images.flip(axes) for axes in flips]) if mirror else images
    predictions = [model(part) for part in views.split(max(num_views, len(images)))]
    logits = _mean_of_flips([prediction.logits[0] for prediction in predictions], flips)
    return logits, None if predictions[0].guide is None else _mean_of_flips([prediction.guide for prediction in predictions], flips)


@torch.no_grad()
def slide(
    model: nn.Module,
    image: Tensor,
    window: int,
    *,
    overlap: float = 0.5,
    mirror: bool = False,
    device: torch.device | str | None = None,
    num_windows: int = WINDOWS,
) -> tuple[Tensor, Tensor | None]:
    """Logits of an image at its own scale, from overlapping windows (Isensee et al., nnU-Net, Nature Methods 2021, "Inference").

    Logits and guide of the windows are averaged with a Gaussian around each window's centre as their weight (sigma: an eighth of its
    side), for a network is surest there. Mirroring is done within the windows. An image smaller than the window gets a margin of zeros,
    which is the mean colour once an image is normalised.

    Args:
        model: As in ``predict_logits``.
        image: (1, C, H, W), float, normalised.
        window: Side S of the windows, in pixels.
        overlap: Of neighbouring windows, as a share of S, in [0, 1).
        mirror: Average over the four flips.
        device: Where the network is; by default where ``image`` is.
        num_windows: That go through the network together.

    Returns:
        Logits (1, num_outputs, H, W) and guide (1, 1, H, W) or ``None``, float32, on the device of ``image``: sums of a large image
        on the CPU take none of a GPU's memory.

    Raises:
        ValueError: The model is in training mode.
    """
    # Not at the top: MONAI takes seconds to import, and whole images need none of it.
    from guidino_tune.monai_parts import sliding_window_inference

    guided = False

    def predict(windows: Tensor) -> Tensor:
        nonlocal guided
        logits, guide = predict_logits(model, windows, mirror, num_views=num_windows)
        guided = guide is not None
        return logits if guide is None else torch.cat([logits, resized(guide, (window, window))], dim=1)

    maps = sliding_window_inference(
        image, (window, window), num_windows, predict,
        overlap=overlap, roi_weight_map=window_weights(window), padding_mode="constant", cval=0.0,
        sw_device=image.device if device is None else device, device=image.device,
    )  # fmt: skip
    assert isinstance(maps, Tensor)
    return (maps[:, :-1], maps[:, -1:]) if guided else (maps, None)


def predict_image(
    model: nn.Module,
    image: np.ndarray,
    data: Data,
    protocol: Protocol = DEFAULT_PROTOCOL,
    *,
    threshold: float = 0.5,
    device: torch.device | str | None = None,
) -> ImagePrediction:
    """Segments one image of any size.

    ``resized``: the image is brought into a square as in training (``framing.place``), and the logits, not the mask, are resized back, so
    that the border is smooth at the image's own size; at training resolution they stay as they are. With ``data.resize: pad`` what the
    network says of the margin is cut off first, so that the prediction at training resolution has the shape of the image.
    ``sliding``: see ``slide``.

    Args:
        model: See ``predict_logits``; in eval mode and already on ``device``. One whose attribute ``bf16`` is true computes under bf16
            autocast, as it was trained.
        image: (H, W, C), uint8 or uint16, with the channels that the model was trained on (RGB).
        data: What the model was trained with: ``image_size``, ``resize``, ``channels``, ``normalisation`` and ``num_classes`` count here.
        protocol: How to predict, and at which size; its ``hd95`` has no part in it.
        threshold: Binary foreground is where the probability is above it; in (0, 1).
        device: Where to compute; by default where the model's first parameter is.

    Raises:
        ValueError: The image is not (H, W, C) uint8 or uint16, the model is in training mode, or ``largest_component`` is still to be
            decided.
        UserError: The threshold is not in (0, 1), or there is one for several classes; or the network's output is not finite.
    """
    check_image(image, data, protocol, threshold)
    device = _device(model) if device is None else torch.device(device)
    # Around all windows: weights are cast once for an image, not once for each forward pass.
    with torch.autocast(device.type, torch.bfloat16) if getattr(model, "bf16", False) else nullcontext():
        logits, guide = _predict(model, image, data, protocol, device)
    check_finite(logits)
    mask = to_labels(logits, threshold)[0].cpu().numpy()
    return ImagePrediction(
        mask=largest_component(mask) if protocol.largest_component == "always" else mask,
        probabilities=to_probabilities(logits)[0].cpu().numpy(),
        guide=None if guide is None else guide[0, 0].cpu().numpy(),
    )


def check_image(image: np.ndarray, data: Data, protocol: Protocol, threshold: float) -> None:
    """Refuses what cannot be predicted; see ``predict_image``.

    Raises:
        ValueError: As ``predict_image``.
        UserError: As there, but for the network's output.
    """
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != data.channels or 0 in image.shape:
        raise ValueError(f"an image is (H, W, {data.channels}) uint8 or uint16; got shape {image.shape}, {image.dtype}")
    if protocol.largest_component == "validation":
        raise ValueError("largest_component='validation' is to be decided first, by choose_largest_component")
    if not 0 < threshold < 1:
        raise UserError(f"a threshold of {threshold} marks everything or nothing", where="threshold", todo="choose one between 0 and 1")
    if data.num_classes > 1 and threshold != 0.5:
        raise UserError(
            f"of {data.num_classes} classes the likeliest is taken, without a threshold", where="threshold", todo="leave it out"
        )


def check_finite(logits: Tensor) -> None:
    """Refuses logits of which one is no number: its label would be background, and look like an answer.

    Raises:
        UserError: It says what to do.
    """
    if not all(one.isfinite().all() for one in logits.unbind(1)):  # one by one: in between it takes as much memory as the logits
        raise UserError(
            "the network gives NaN or infinity for this image, and no mask",
            todo="choose another trial or seed: its weights are so large that its numbers overflow",
        )


def largest_component(labels: np.ndarray) -> np.ndarray:
    """Keeps the largest connected component (4 neighbours) of each class, the first in reading order of several of that size.

    Args:
        labels: (H, W), integer; 0 is background, every other value a class of its own.

    Returns:
        (H, W), uint8; a copy, in which all other components are background.
    """
    from scipy.ndimage import label

    kept = np.zeros(labels.shape, np.uint8)
    for number in np.unique(labels[labels != 0]):
        components, _ = label(labels == number)
        sizes = np.bincount(components.ravel())
        kept[components == 1 + sizes[1:].argmax()] = number
    return kept


def _predict(model: nn.Module, image: np.ndarray, data: Data, protocol: Protocol, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Logits (1, num_outputs, H, W) and guide (1, 1, H, W) of the size that the protocol compares at."""
    if protocol.of(data).inference == "sliding":
        tensor = normalise(image, data.normalisation)[None]
        return slide(model, tensor, data.image_size, overlap=protocol.overlap, mirror=protocol.mirror, device=device)
    side, native = data.image_size, (image.shape[0], image.shape[1])
    tensor = normalise(place(image, side, data.resize), data.normalisation)[None].to(device)
    logits, guide = predict_logits(model, tensor, protocol.mirror)
    box = frame(*native, side, data.resize)
    size = native if protocol.resolution == "native" else (box.height, box.width)
    if guide is not None and (box.height, box.width) != (side, side):
        guide = cut(resized(guide, (side, side)), box)  # its cells are too coarse to be cut along a margin
    return resized(cut(logits, box), size), None if guide is None else resized(guide, size)


def window_weights(window: int) -> Tensor:
    """Weights (S, S) of a window's pixels: 1 at its centre, sigma S / 8.

    MONAI's own map has no weight below 0.001, which at the image's edges, far from any centre, is that of every window: there the
    windows would count the same, and their borders show.
    """
    line = torch.exp(-0.5 * ((torch.arange(window) - (window - 1) / 2) / (window / 8)) ** 2)
    return line[:, None] * line


def _mean_of_flips(parts: list[Tensor], flips: tuple[tuple[int, ...], ...]) -> Tensor:
    """Mean (B, C, H, W) of maps (len(flips) * B, C, H, W), all images in the first flip first, in float32."""
    mean, *others = torch.cat(parts).float().chunk(len(flips))
    for axes, maps in zip(flips[1:], others, strict=True):
        mean = mean + maps.flip(axes)
    return mean / len(flips)


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear; antialiased, for images that are smaller than the training size."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)
