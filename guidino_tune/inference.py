"""From an image to a mask of the same size: resize, normalise, predict (with mirroring, if wanted), resize the logits, threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from guidino_tune.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Flips as the axes they reverse: none, left-right, top-down, both.
_FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """What a network says about one image, at the image's own size.

    Attributes:
        mask: (H, W), uint8, 0 or 1.
        probability: (H, W), float32 in [0, 1].
        guide: (H, W), float32: the guide mask, bilinearly upsampled; ``None`` for a network without one.
    """

    mask: np.ndarray
    probability: np.ndarray
    guide: np.ndarray | None


@torch.no_grad()
def predict_logits(model: nn.Module, images: Tensor, mirror: bool = False) -> tuple[Tensor, Tensor | None]:
    """The finest head's logits for a batch.

    Args:
        model: Maps (B, 3, S, S) to an object with ``logits`` (a tuple, finest first) and ``guide`` ((B, 1, h, w) or ``None``).
            It must be in eval mode; switching it here could also wake a backbone that has to stay frozen.
        images: (B, 3, S, S), float, normalised, on the model's device.
        mirror: Average over the four flips of the image (nnU-Net's test-time augmentation): logits and guide, each flipped back.

    Returns:
        Logits (B, 1, S, S) and guide (B, 1, h, w) or ``None``, both float32, also under autocast.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() before predicting")
    flips = _FLIPS if mirror else _FLIPS[:1]
    logits: Tensor | None = None
    guide: Tensor | None = None
    for axes in flips:
        prediction = model(images.flip(axes) if axes else images)
        logits = _added(logits, prediction.logits[0].float().flip(axes))
        if prediction.guide is not None:
            guide = _added(guide, prediction.guide.float().flip(axes))
    assert logits is not None
    return logits / len(flips), None if guide is None else guide / len(flips)


def predict_image(
    model: nn.Module,
    image: np.ndarray,
    image_size: int,
    mirror: bool = False,
    device: torch.device | str | None = None,
    threshold: float = 0.5,
    *,
    keep_largest: bool = False,
) -> ImagePrediction:
    """Segments one image of any size.

    The image is squeezed to a square as in training (Pillow's antialiased bilinear filter on uint8), and the logits, not the mask, are
    resized back, so that the border is smooth at the image's own size.

    Args:
        model: See ``predict_logits``; in eval mode and already on ``device``.
        image: (H, W, 3), uint8, RGB.
        image_size: Side S that the model was trained with.
        mirror: Average over the four flips.
        device: Where to compute; by default where the model's first parameter is.
        threshold: Foreground is where the probability is above it; in (0, 1).
        keep_largest: Keep the largest connected component only.

    Raises:
        ValueError: The image is not (H, W, 3) uint8, or the model is in training mode.
        UserError: The threshold is not in (0, 1).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image is (H, W, 3) uint8; got shape {image.shape}, {image.dtype}")
    if not 0 < threshold < 1:
        raise UserError(f"a threshold of {threshold} marks everything or nothing", where="threshold", todo="choose one between 0 and 1")
    native = (image.shape[0], image.shape[1])
    batch = normalise(resize_image(image, image_size))[None].to(_device(model) if device is None else device)
    logits, guide = predict_logits(model, batch, mirror)
    probability = _resized(logits, native).sigmoid()[0, 0].cpu().numpy()
    mask = (probability > threshold).astype(np.uint8)
    return ImagePrediction(
        mask=largest_component(mask) if keep_largest else mask,
        probability=probability,
        guide=None if guide is None else _resized(guide, native)[0, 0].cpu().numpy(),
    )


def resize_image(image: np.ndarray, image_size: int) -> np.ndarray:
    """(H, W, 3) uint8 to (S, S, 3) uint8 with Pillow's bilinear filter, which antialiases; the aspect is not kept."""
    return np.asarray(Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BILINEAR))


def normalise(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 with ImageNet's mean and standard deviation, which DINOv3 expects."""
    scaled = torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1).float() / 255
    return ((scaled - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]).contiguous()


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keeps the largest connected component (4 neighbours), the first in reading order of several of that size.

    Args:
        mask: (H, W), 0 or 1.

    Returns:
        (H, W), uint8; a copy, empty if the mask is.
    """
    from scipy.ndimage import label

    labels, _ = label(mask)
    sizes = np.bincount(labels.ravel(), minlength=2)
    largest = 1 + int(sizes[1:].argmax())
    return np.asarray(labels == largest, dtype=np.uint8)


def _added(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total + value


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear; antialiased, for images that are smaller than the training size."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)
