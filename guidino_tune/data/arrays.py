"""Images that come as arrays or Pillow images: they become what a file of the same numbers becomes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guidino_tune.data.intensity import IntensityRule, apply
from guidino_tune.data.rasters import read_opened
from guidino_tune.data.raw import Raw, Refused, Values, check_size, opacity
from guidino_tune.data.reading import explained
from guidino_tune.data.rules import Rules
from guidino_tune.errors import about
from guidino_tune.framing import Array

_FAINT = 16  # of a window so wide, fractions of 0 to 1 would show next to nothing


def decode_array(image: NDArray[Any] | Image.Image, rules: Rules, where: str) -> Array:
    """Turns an image in memory into what the network is given, by the rules of the training images.

    An array is read as a PNG or TIFF of its numbers: with four channels (or two) where the model has another number, the last one is the
    alpha channel of unsigned numbers. Only floats can mean two things. Where the training images have 8 bits, floats of 0 to 1 are
    fractions of white, and whole numbers up to 255 are those of a file. Where they are deeper, floats are the numbers of a file.

    Args:
        image: (H, W) or (H, W, C), of real numbers. Where the training images have several files each, one channel of each.
        rules: Of the model.
        where: For messages.

    Returns:
        As ``decoding.read_image``.

    Raises:
        UserError: It is no such image, it holds NaN, or it does not fit the rules.
    """
    with explained(where):
        raws = [read_opened(image)] if isinstance(image, Image.Image) else _split(np.asarray(image), rules)
    with about(where):
        return apply(rules.intensity, raws, rules.channels)


def _split(array: NDArray[Any], rules: Rules) -> list[Raw]:
    """One ``Raw`` for each file that an image of the training has."""
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif":
        raise Refused("is no image, which is (H, W) or (H, W, C) of real numbers")
    if array.size == 0:
        raise Refused("is empty")
    check_size(array.shape[1], array.shape[0], array.dtype.itemsize * (array.size // (array.shape[0] * array.shape[1])))
    values = array[..., None] if array.ndim == 2 else array
    white = 1 if values.dtype.kind == "b" else int(np.iinfo(values.dtype).max) if values.dtype.kind == "u" else 0
    values = values.astype(np.uint8 if values.dtype.kind == "b" else values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "f":
        values = _of_floats(values, rules.intensity)
        white = 255 if values.dtype == np.uint8 else 0
    files, alpha = len(rules.intensity.depths), None
    if files > 1:
        if values.shape[2] != files:
            raise Refused(f"has {values.shape[2]} channels, and the training images have {files} files: an array holds one channel of each")
        return [Raw(np.ascontiguousarray(values[..., i : i + 1]), white) for i in range(files)]
    if white and values.shape[2] in (2, 4) and values.shape[2] != rules.channels:
        values, alpha = values[..., :-1], opacity(values[..., -1])
    return [Raw(np.ascontiguousarray(values), white, alpha)]


def _of_floats(values: Values, rule: IntensityRule) -> Values:
    """The numbers of a file that floats stand for."""
    if not np.isfinite(values).all():
        raise Refused("holds NaN or infinity")
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    if set(rule.depths) == {"8"}:
        if low >= 0 and high <= 1:
            return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
        if low >= 0 and high <= 255 and whole:
            return values.astype(np.uint8)
        raise Refused(f"holds floats from {low:.6g} to {high:.6g}, which are neither fractions of 0 to 1 nor whole numbers of 0 to 255")
    wide = rule.windows and all(end - start > _FAINT for start, end in rule.windows)
    if wide and low >= 0 and high <= 1 and not whole and "fractions" not in rule.form:
        (start, end), *_ = rule.windows
        raise Refused(f"holds fractions of 0 to 1, and in the files of the training images {start:.6g} to {end:.6g} become black to white")
    return values
