"""What a file holds before any rule is applied to it, and what no reader may do: fill the memory, or guess."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 80_000_000
"""Larger images are refused: a small file may unpack to fill the memory (Pillow itself only warns from 89 million)."""

_MAX_BYTES_PER_PIXEL = 16  # of an image of MAX_PIXELS; a smaller one may have more channels or deeper ones

Values = NDArray[Any]
"""Pixels in the type of the file."""

_RESTORE = "restore the file, or set data.bad_cases=skip"


@dataclass(slots=True)
class Limit:
    """How large an image may be, and whether one was larger.

    Attributes:
        pixels: The most.
        why: Added to the message about a larger one.
        exceeded: There was one.
    """

    pixels: int
    why: str = ""
    exceeded: bool = False


_limit: ContextVar[Limit | None] = ContextVar("limit", default=None)


@contextlib.contextmanager
def at_most(pixels: int, why: str = "") -> Iterator[Limit]:
    """Within the block, in this thread, images may have so many pixels instead of ``MAX_PIXELS``; see ``Limit``."""
    limit = Limit(pixels, why)
    token = _limit.set(limit)
    try:
        yield limit
    finally:
        _limit.reset(token)


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """One image or mask as its file holds it: nothing is scaled, nothing is lost.

    Attributes:
        values: (H, W, C), in the file's own type: uint8, uint16, int16, float32 or another real one, the orientation (EXIF) applied. A
            palette's colours stand here as RGB. Images of 1, 2 and 4 bits have their own small numbers: 1 bit gives 0 and 1, not 0 and 255.
        white: The number that means white by the file's format: 255 of 8 bits, 1 of 1 bit, what a PGM file says, and so on. 0 where the
            format has none (signed numbers, floats, a DICOM file).
        alpha: (H, W) in the type of ``values``, 0 (nothing is seen) to ``white``; ``None`` where it is the same everywhere or absent.
        indices: (H, W) uint8, the numbers of a palette's entries; ``None`` without a palette.
        palette: (N, 3) uint8, RGB of the entries.
        window: (low, high) of ``values`` that the file itself asks to show as black and white (DICOM).
        lossy: Compressed with loss (JPEG, WebP, JPEG 2000), so that values near borders are not those that were drawn.
        hidden: The alpha channel is 0 everywhere, so that nothing would be seen; ``alpha`` is ``None`` then.
    """

    values: Values
    white: int = 0
    alpha: Values | None = None
    indices: NDArray[np.uint8] | None = None
    palette: NDArray[np.uint8] | None = None
    window: tuple[float, float] | None = None
    lossy: bool = False
    hidden: bool = False

    def __post_init__(self) -> None:
        if self.alpha is not None and not self.alpha.any():
            object.__setattr__(self, "alpha", None)
            object.__setattr__(self, "hidden", True)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels, without the alpha channel."""
        return int(self.values.shape[2])

    @property
    def bits(self) -> int:
        """Bits of one number: as the format says, else of the type."""
        return self.white.bit_length() or self.values.dtype.itemsize * 8

    @property
    def deep(self) -> bool:
        """True where 8 bits without a sign would not hold it."""
        return self.values.dtype != np.uint8


class Refused(Exception):
    """A file that cannot be used, in words; ``read_raw`` adds its name.

    Args:
        what: What is wrong.
        todo: What to do.
    """

    def __init__(self, what: str, todo: str = _RESTORE) -> None:
        super().__init__(what)
        self.what, self.todo = what, todo


def check_size(width: int, height: int, bytes_per_pixel: int = 1) -> None:
    """Refuses what would fill the memory; to be called before anything is unpacked.

    Raises:
        Refused: It is too large, or it has no pixel.
    """
    if width < 1 or height < 1:
        raise Refused(f"cannot be decoded: it says that it is {width}x{height} pixels")
    limit = _limit.get() or Limit(MAX_PIXELS)
    if width * height > limit.pixels or width * height * bytes_per_pixel > limit.pixels * _MAX_BYTES_PER_PIXEL:
        limit.exceeded = True
        raise Refused(
            f"is too large: {width}x{height} pixels, and {limit.pixels:,} is the most{limit.why}",
            "make it and its mask smaller (training resizes both to data.image_size anyway), or set data.bad_cases=skip",
        )


def several(number: int, what: str) -> Refused:
    """The error of a file with more than one picture.

    Args:
        number: Of pictures.
        what: ``pages``, ``frames``, ...
    """
    return Refused(
        f"holds {number} {what}, and which of them is meant is not known",
        "save each as a file of its own (the channels of one picture: as a TIFF with that many samples per pixel, or as one file each), or "
        "set data.bad_cases=skip",
    )


def oriented(array: Values, orientation: int) -> Values:
    """Turns (H, W, ...) as the EXIF or TIFF orientation, 1 to 8, asks; any other number changes nothing."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def opacity(alpha: Values) -> Values | None:
    """``alpha``, or ``None`` where it is the same everywhere and says nothing."""
    return None if alpha.size == 0 or (alpha.flat[0] != 0 and (alpha == alpha.flat[0]).all()) else np.ascontiguousarray(alpha)
