"""From an image to a mask with an exported network: NumPy and Pillow only. It does what ``preprocessor_config.json`` says.

A network is any function from pixels to probabilities: float32 (N, C, S, S) of 0 to 255 -> float32 (N, K, S, S), background first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Network = Callable[[np.ndarray], np.ndarray]
Settings = dict[str, Any]

BILINEAR = Image.Resampling.BILINEAR
LUMINANCE = (19595, 38470, 7471)  # ITU-R 601 in parts of 65536
LEAST = 1e-37  # smallest probability of which a logarithm is taken


def read_settings(folder: str | Path) -> Settings:
    """What ``config.json`` and ``preprocessor_config.json`` in a folder say, in one dictionary."""
    found: Settings = {}
    for name in ("config.json", "preprocessor_config.json"):
        found |= json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    return found


def read_image(path: str | Path) -> np.ndarray:
    """The pixels of a file that Pillow reads, as (H, W, C) in their own type; turned as its header asks, palettes as colours.

    What is transparent lies on black.

    Raises:
        ValueError: Pillow would lose half of its bits.
    """
    with Image.open(path) as opened:
        if opened.mode[0] != "I" and any(f";16{order}" in str(part) for part in opened.tile for order in "BLN"):
            raise ValueError(f"{path}: Pillow keeps 8 of its 16 bits; read it with another library, and give the array to `segment`")
        image = ImageOps.exif_transpose(opened)
        if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
            return _on_black(np.asarray(image.convert("RGBA")))
        if image.mode not in ("L", "RGB", "F", "I") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _on_black(colours: np.ndarray) -> np.ndarray:
    """(H, W, 4) to (H, W, 3); transparency that is the same everywhere says nothing."""
    pixels, alpha = colours[..., :3], colours[..., 3:]
    return pixels if alpha.min() == alpha.max() else np.rint(pixels * (alpha / 255)).astype(np.uint8)


def to_pixels(image: np.ndarray, settings: Settings) -> np.ndarray:
    """Channels and grey levels as in the training: (H, W, C), uint8, or uint16 where training images are deeper than 8 bits.

    Args:
        image: (H, W) or (H, W, C), in the type of its file.
        settings: As ``read_settings`` gives them.

    Raises:
        ValueError: It has other channels or another depth than the training images.
    """
    image = image if image.ndim == 3 else image[..., None]
    channels, rule = settings["num_channels"], settings["intensity"]
    deep = image.dtype != np.uint8
    if rule["kind"] == "8-bit" and deep:
        raise ValueError(f"training images have 8 bits, and this is {image.dtype}")
    if rule["kind"] in ("window", "percentiles") and not deep and set(rule["depths"]) == {"deep"}:
        raise ValueError("training images have more than 8 bits, and this has 8: what is black and white in it is not known")
    if rule["kind"] == "file" and deep:
        raise ValueError("each training file asks for a window of its own: apply it, and give 8 bits (0 to 255)")
    if image.shape[2] == 1 and channels == 3:
        image = np.repeat(image, 3, axis=2)
    elif image.shape[2] == 3 and channels == 1:
        grey = image.astype(np.float64) @ np.array(LUMINANCE) / 65536
        image = (np.floor(grey + 0.5).astype(np.uint8) if not deep else grey)[..., None]
    if image.shape[2] != channels:
        raise ValueError(f"the network sees images of {channels} channels, and this has {image.shape[2]}")
    if rule["kind"] == "8-bit":
        return np.ascontiguousarray(image)
    if not deep:
        return image.astype(np.uint16) * np.uint16(257)
    windows = rule["windows"] if len(rule["windows"]) in (1, channels) else rule["windows"][:1]
    low, high = np.array([windows[min(i, len(windows) - 1)] for i in range(channels)], np.float64).T
    share = (np.nan_to_num(image.astype(np.float64), nan=-np.inf, posinf=-np.inf) - low) / (high - low)
    return np.rint(np.clip(share, 0, 1) * 65535).astype(np.uint16)


def frame(height: int, width: int, settings: Settings) -> tuple[int, int, int, int]:
    """Where an image lies in the square: first row and column, number of rows and columns."""
    size = settings["image_size"]
    if settings["resize"] == "squash":
        return 0, 0, size, size
    longer = max(height, width)
    rows, columns = (max(1, (2 * side * size + longer) // (2 * longer)) for side in (height, width))
    return (size - rows) // 2, (size - columns) // 2, rows, columns


def to_square(pixels: np.ndarray, settings: Settings) -> np.ndarray:
    """Resizes (H, W, C) to the training size; a margin has the mean colour of the resized image."""
    size = settings["image_size"]
    top, left, rows, columns = frame(pixels.shape[0], pixels.shape[1], settings)
    inner = _resized(pixels, (rows, columns))
    if (rows, columns) == (size, size):
        return inner
    square = np.empty((size, size, pixels.shape[2]), pixels.dtype)
    square[:] = np.rint(inner.mean(axis=(0, 1), dtype=np.float64)).astype(pixels.dtype)
    square[top : top + rows, left : left + columns] = inner
    return square


def to_batch(square: np.ndarray) -> np.ndarray:
    """(H, W, C) as the network takes it: float32 (1, C, H, W) of 0 to 255."""
    values = np.ascontiguousarray(square.transpose(2, 0, 1))[None].astype(np.float32)
    return values / np.float32(257) if square.dtype == np.uint16 else values


def segment(image: np.ndarray, network: Network, settings: Settings) -> np.ndarray:
    """Labels of an image: (H, W), uint8, of its own size; ``settings["id2label"]`` names them.

    Args:
        image: (H, W) or (H, W, C), see ``to_pixels``.
        network: See the top.
        settings: As ``read_settings`` gives them.
    """
    pixels = to_pixels(image, settings)
    if settings["view"] == "patch":
        return _labels(_slide(pixels, network, settings))
    probabilities = np.asarray(network(to_batch(to_square(pixels, settings))))[0]
    return to_labels(probabilities, pixels.shape[0], pixels.shape[1], settings)


def to_labels(probabilities: np.ndarray, height: int, width: int, settings: Settings) -> np.ndarray:
    """Labels (height, width) of probabilities (K, S, S): of their resized logarithms, which keep borders smooth, the largest counts."""
    top, left, rows, columns = frame(height, width, settings)
    inner = _logarithms(probabilities)[:, top : top + rows, left : left + columns]
    return _labels(np.stack([np.asarray(Image.fromarray(one).resize((width, height), BILINEAR)) for one in inner]))


def to_png(mask: np.ndarray, settings: Settings) -> Image.Image:
    """A mask as a picture: 0 and 255 of one class, else the labels."""
    return Image.fromarray(mask * np.uint8(255) if settings["num_labels"] == 2 else mask)


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    logs: np.ndarray = np.log(np.maximum(probabilities, LEAST)).astype(np.float32)
    # Of one class its odds: what the network itself computes, and what is resized.
    return np.stack([np.zeros_like(logs[0]), logs[1] - logs[0]]) if len(logs) == 2 else logs


def _labels(maps: np.ndarray) -> np.ndarray:
    return maps.argmax(0).astype(np.uint8)


def _slide(pixels: np.ndarray, network: Network, settings: Settings) -> np.ndarray:
    """Means of overlapping windows at the image's own scale, weighted with a Gaussian around each window's centre."""
    size, height, width = settings["image_size"], *pixels.shape[:2]
    inside = settings.get("normalised_in_graph", True)
    values = to_batch(pixels) if inside else _zscore(to_batch(pixels))
    missing = [max(size - side, 0) for side in (height, width)]
    before = [part // 2 for part in missing]
    margins = [(0, 0), (0, 0), *((first, whole - first) for first, whole in zip(before, missing, strict=True))]
    if any(missing):  # a margin of what is 0 once it is normalised: the mean colour
        mean = 255 * np.array(settings["normalisation"]["mean"] if inside else [0], np.float32)[None, :, None, None]
        values = np.pad(values - mean, margins) + mean
    line = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2)
    weight = (line[:, None] * line).astype(np.float32)
    total, sums = np.zeros(values.shape[2:], np.float32), None
    for top in _starts(values.shape[2], size, settings["overlap"]):
        for left in _starts(values.shape[3], size, settings["overlap"]):
            maps = _logarithms(np.asarray(network(values[:, :, top : top + size, left : left + size]))[0]) * weight
            sums = np.zeros((len(maps), *total.shape), np.float32) if sums is None else sums
            sums[:, top : top + size, left : left + size] += maps
            total[top : top + size, left : left + size] += weight
    assert sums is not None
    return (sums / total)[:, before[0] : before[0] + height, before[1] : before[1] + width]


def _zscore(values: np.ndarray) -> np.ndarray:
    mean, deviation = values.mean((2, 3), keepdims=True), values.std((2, 3), keepdims=True)
    return (values - mean) / np.maximum(deviation, np.float32(1))


def _starts(length: int, size: int, overlap: float) -> list[int]:
    step = max(int(size * (1 - overlap)), 1)
    return sorted({min(start, length - size) for start in range(0, max(length - size, 0) + step, step)})


def _resized(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if pixels.shape[:2] == shape:
        return pixels
    target = (shape[1], shape[0])
    if pixels.dtype == np.uint8:
        return np.stack(
            [np.asarray(Image.fromarray(np.ascontiguousarray(one)).resize(target, BILINEAR)) for one in pixels.transpose(2, 0, 1)], 2
        )
    planes = [Image.fromarray(one.astype(np.float32)).resize(target, BILINEAR) for one in pixels.transpose(2, 0, 1)]
    return np.clip(np.rint(np.stack([np.asarray(plane) for plane in planes], 2)), 0, 65535).astype(np.uint16)


def run(network: Network, settings: Settings, arguments: list[str]) -> None:
    """Writes the masks of images: ``IMAGE ... [--output DIR]``, by default into the present folder, as ``NAME.mask.png``."""
    parser = argparse.ArgumentParser(description="Segment images with this model.")
    parser.add_argument("images", nargs="+", help="files that Pillow reads")
    parser.add_argument("--output", default=".", help="folder of the masks (default: the present one)")
    options = parser.parse_args(arguments)
    targets = {name: Path(options.output) / f"{Path(name).stem}.mask.png" for name in options.images}
    if len(set(targets.values())) < len(targets):
        parser.error("two images have the same name but for folder and ending, and so would their masks: give them one by one")
    Path(options.output).mkdir(parents=True, exist_ok=True)
    for name, target in targets.items():
        to_png(segment(read_image(name), network, settings), settings).save(target)
        print(target)
