"""Images too large for memory: the network's maps are never held whole, and give the same mask as ``inference.predict_image``."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune.config import Data, Protocol
from guidino_tune.framing import Array, cut, frame, place
from guidino_tune.inference import (
    WINDOWS,
    ImagePrediction,
    check_finite,
    check_image,
    largest_component,
    predict_logits,
    resized,
    to_labels,
    to_probabilities,
    window_weights,
)
from guidino_tune.normalisation import grey_levels, normalise, zscore_constants
from guidino_tune.training.folder import named

ROWS = 256
"""Of an image whose maps are resized: so many become labels at a time."""

COARSE = 2048
"""Pixels of the longer side of a guide mask, at most; it is only looked at."""

Bands = Iterator[tuple[int, Tensor]]
"""First row, and maps (C, rows, W) of the rows from there, top to bottom."""


@torch.no_grad()
def predict_tiles(
    model: nn.Module,
    image: Array,
    data: Data,
    protocol: Protocol,
    *,
    threshold: float = 0.5,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    probabilities: bool = False,
    num_windows: int = WINDOWS,
) -> ImagePrediction:
    """As ``predict_image``, at the image's own size, with a mask of the same bits.

    Windows are added up in a band of rows, and rows that no further window touches become labels at once. A whole image that is resized
    has its maps made one class after the other; of several classes they wait in a file.

    Args:
        model: As of ``predict_image``.
        image: As there.
        data: As there.
        protocol: As there.
        threshold: As there.
        device: Where the network is.
        folder: Gets the file of the maps, which is gone at the end; by default that of the system for temporary files.
        probabilities: Whether they are wanted: they wait in a file, too.
        num_windows: As of ``slide``.

    Returns:
        The mask; probabilities as an array in a file, or (0, H, W); and the guide on a coarser grid, at most ``COARSE`` pixels long.

    Raises:
        ValueError: As ``predict_image``.
        UserError: As there.
        OSError: The disk is too full for the maps.
    """
    check_image(image, data, protocol, threshold)
    device = torch.device(device)
    height, width = image.shape[:2]
    mask = np.empty((height, width), np.uint8)
    chances = on_disk((data.num_classes + 1, height, width), folder) if probabilities else np.empty((0, height, width), np.float32)
    step = -(-max(height, width) // COARSE)
    guides: list[Tensor] = []
    with torch.autocast(device.type, torch.bfloat16) if getattr(model, "bf16", False) else nullcontext():
        if protocol.of(data).inference == "sliding":
            bands = _slid(model, image, data, protocol, device, num_windows)
        else:
            bands = _enlarged(model, image, data, protocol, device, folder, guides)
        outputs = 1 if data.num_classes == 1 else data.num_classes + 1
        for start, maps in bands:
            logits, rows = maps[None, :outputs], slice(start, start + maps.shape[1])
            check_finite(logits)
            mask[rows] = to_labels(logits, threshold)[0].numpy()
            if probabilities:
                chances[:, rows] = to_probabilities(logits)[0].numpy()
            if len(maps) > outputs:
                guides.append(maps[outputs, -start % step :: step, ::step].clone())
    return ImagePrediction(
        mask=largest_component(mask) if protocol.largest_component == "always" else mask,
        probabilities=chances,
        guide=torch.cat(guides).numpy() if guides else None,
    )


def on_disk(shape: tuple[int, ...], folder: Path | None) -> np.ndarray:
    """An array of float32 in a file without a name, which the system may take out of memory.

    Raises:
        OSError: There is no room for it.
    """
    size = int(np.prod(shape, dtype=np.int64)) * 4
    with named(folder or Path(tempfile.gettempdir())), tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))  # else a disk that fills up later would kill the process
        return np.memmap(file, np.float32, "r+", shape=shape)


def _enlarged(
    model: nn.Module, image: Array, data: Data, protocol: Protocol, device: torch.device, folder: Path | None, guides: list[Tensor]
) -> Bands:
    """Maps of the whole image, resized to its own size; the guide stays as the network gives it."""
    side, native = data.image_size, (image.shape[0], image.shape[1])
    tensor = normalise(place(image, side, data.resize), data.normalisation)[None].to(device)
    logits, guide = predict_logits(model, tensor, protocol.mirror)
    box = frame(*native, side, data.resize)
    if guide is not None:
        guides.append(cut(resized(guide, (side, side)), box)[0, 0].cpu())
    logits = cut(logits, box)
    if logits.shape[1] == 1:
        maps: Tensor = resized(logits, native)[0].cpu()
    else:
        maps = torch.from_numpy(on_disk((logits.shape[1], *native), folder))
        for number in range(logits.shape[1]):
            maps[number] = resized(logits[:, number : number + 1], native)[0, 0].cpu()
    for start in range(0, native[0], ROWS):
        yield start, maps[:, start : start + ROWS]


def _slid(model: nn.Module, image: Array, data: Data, protocol: Protocol, device: torch.device, num_windows: int) -> Bands:
    """Maps of overlapping windows: the sums of ``inference.slide`` in the same order, so that they have the same bits; the guide last."""
    side, (height, width) = data.image_size, image.shape[:2]
    tall, wide = max(height, side), max(width, side)
    top, left = (tall - height) // 2, (wide - width) // 2  # an image smaller than a window lies in its middle
    windows = list(itertools.product(_starts(tall, side, protocol.overlap), _starts(wide, side, protocol.overlap)))
    weights, seen = window_weights(side), _normaliser(image, data.normalisation)
    sums = counts = torch.zeros(0)
    at = 0

    def finished(rows: int) -> tuple[int, Tensor]:
        first, last = max(at, top), min(at + rows, top + height)
        part = slice(first - at, last - at)
        return first - top, (sums[:, part] / counts[part])[..., left : left + width]

    for number in range(0, len(windows), num_windows):
        some = windows[number : number + num_windows]
        pixels = []
        for y, x in some:
            part = seen(image[max(y - top, 0) : y - top + side, max(x - left, 0) : x - left + side])
            right, below = side - left - part.shape[2], side - top - part.shape[1]
            pixels.append(F.pad(part, (left, right, top, below)) if part.shape[1:] != (side, side) else part)
        logits, guide = predict_logits(model, torch.stack(pixels).to(device), protocol.mirror, num_views=num_windows)
        maps = logits if guide is None else torch.cat([logits, resized(guide, (side, side))], dim=1)
        maps = (maps * weights.to(device)).cpu()
        if not len(sums):
            sums, counts = torch.zeros(maps.shape[1], side, wide), torch.zeros(side, wide)
        for (y, x), one in zip(some, maps, strict=True):
            if y > at:  # no further window touches the rows above
                yield finished(y - at)
                sums, counts = (
                    torch.cat([old[..., y - at :, :], torch.zeros_like(old[..., : y - at, :])], dim=-2) for old in (sums, counts)
                )
                at = y
            sums[..., x : x + side] += one
            counts[:, x : x + side] += weights
    yield finished(side)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows begin along an axis that is at least as long; the last one ends with it."""
    step = max(1, int(side * (1 - overlap))) if length > side else side
    starts = [0]
    while starts[-1] + side < length:
        starts.append(min(starts[-1] + step, length - side))
    return starts


def _normaliser(image: Array, kind: str) -> Callable[[Array], Tensor]:
    """What ``normalise`` makes of a part of this image; a z-score is that of the whole, whose channels are looked at one by one."""
    if kind != "zscore":
        return lambda part: normalise(part, kind)
    constants = [zscore_constants(grey_levels(image[..., number : number + 1])) for number in range(image.shape[2])]
    mean, deviation = (torch.cat(parts) for parts in zip(*constants, strict=True))
    return lambda part: (grey_levels(part) - mean) / deviation
