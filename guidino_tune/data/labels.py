"""What the values of mask files mean: one rule for a data set, found from its training and validation masks, or told by the user.

A mask file is first turned into whole numbers (``codes``): grey values as they are, colours as ``2**24 + 65536 r + 256 g + b``. The codes
of many files are surveyed together, one rule is chosen for all of them, and it is applied to every mask, those of the test too, without
looking at what the others hold. A file that does not fit the rule is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from guidino_tune.data.reading import Raw
from guidino_tune.errors import UserError

Codes = NDArray[np.integer[Any]]
Mask = NDArray[np.uint8]

COLOUR = 1 << 24
"""Added to the code of a colour, so that it is no grey value."""

MOST = 4096
"""Different values of one file that are counted; more are none of a label map."""

_NEAR_GREY = 24  # largest difference between the channels of a grey that was compressed in colours
NEAR = 1 / 8
"""Share of the range: what is nearer to one of its ends may be that end, compressed or smoothed."""

_COLOURS = 64  # more of them are a photograph
_SCALE = 65535  # fractions become whole numbers: 1.0 is this one


def codes(raw: Raw, path: Path, *, indices: bool = False) -> Codes:
    """A mask file as whole numbers (H, W).

    Args:
        raw: The file, decoded.
        path: For messages.
        indices: Of a file with a palette: the indices, whatever its colours, as label maps have them. Else its colours.

    Raises:
        UserError: It has a number of channels that no mask has.
    """
    if indices and raw.indices is not None:
        return raw.indices
    values = raw.values if raw.alpha is None else _opaque(raw.values, raw.alpha)
    if values.shape[2] == 1:
        return _whole(values[..., 0])
    if values.shape[2] != 3:
        raise UserError(
            f"has {values.shape[2]} channels, and a mask is grey, coloured or has a palette",
            where=str(path),
            todo="write masks with one value for each pixel, or set data.bad_cases=skip",
        )
    red, green, blue = (values[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return _whole(red)
    if raw.lossy and values.dtype == np.uint8:
        highest = np.maximum(np.maximum(red, green), blue)
        if int((highest - np.minimum(np.minimum(red, green), blue)).max()) <= _NEAR_GREY:
            return np.asarray(Image.fromarray(values).convert("L"))  # a grey that was compressed in colours
        return highest  # of real colours the strongest channel, so that dark red is no black
    if values.dtype != np.uint8:
        raise UserError(
            "has colours of more than 8 bits", where=str(path), todo="write masks with 8 bits per colour, or set data.bad_cases=skip"
        )
    red, green, blue = (channel.astype(np.int64) for channel in (red, green, blue))
    return np.where((red == green) & (green == blue), red, COLOUR + (red << 16) + (green << 8) + blue)


def _whole(values: NDArray[Any]) -> Codes:
    if values.dtype.kind != "f":
        return values
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    rounded = np.round(finite)
    probabilities = not np.array_equal(rounded, finite) and finite.min(initial=0) >= 0 and finite.max(initial=0) <= 1
    return np.asarray(np.clip(np.round(finite * _SCALE) if probabilities else rounded, -COLOUR + 1, COLOUR - 1), np.int64)


def _opaque(values: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """The mask before a black background; or the transparency itself, where nothing else is in the picture but a mask or a photograph."""
    shown = values[alpha > 0]
    cut_out = len(np.unique(alpha)) == 2 and len(np.unique(shown[:: max(1, len(shown) // 10_000)], axis=0)) > _COLOURS
    if (not (shown != shown[0]).any() and not shown[0].any()) or cut_out:
        return alpha[..., None]
    part = alpha.astype(np.float64)[..., None] / max(int(alpha.max()), 1)
    return np.round(values * part).astype(values.dtype)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one mask file holds.

    Attributes:
        path: The file.
        lossy: JPEG or the like, in which values near each other are one.
        values: Code -> number of pixels.
        flat: Code -> number of those pixels whose right and lower neighbours have the same code (of two values: of all pixels).
    """

    path: Path
    lossy: bool
    values: Mapping[int, int]
    flat: Mapping[int, int]


def look(raw: Raw, path: Path, *, indices: bool = False) -> Seen:
    """Counts the values of one file.

    Raises:
        UserError: As ``codes``.
    """
    found = codes(raw, path, indices=indices)
    values, counts = _counted(found)
    if len(values) > 2:
        same = (found[:-1, :-1] == found[1:, :-1]) & (found[:-1, :-1] == found[:-1, 1:])
        flat, flats = _counted(found[:-1, :-1][same])
    else:
        flat, flats = values, counts  # no border between two values is soft
    most = np.argsort(-counts, kind="stable")[:MOST]
    return Seen(
        path,
        raw.lossy,
        dict(zip(values[most].tolist(), counts[most].tolist(), strict=True)),
        dict(zip(flat.tolist(), flats.tolist(), strict=True)),
    )


def _counted(found: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if found.size and found.min() >= 0 and found.max() < 1 << 16:
        counts = np.bincount(found.ravel())  # much quicker than sorting all pixels
        values = np.flatnonzero(counts)
        return values.astype(np.int64), counts[values].astype(np.int64)
    values, counts = np.unique(found, return_counts=True)
    return values, counts.astype(np.int64)


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How a mask file becomes classes.

    Attributes:
        kind: ``values``: each value has its class, and no other may occur. ``any``: whatever is no background is the one class.
            ``threshold``: what is above ``threshold`` is (anti-aliased or compressed masks).
        values: Code -> class; 0 is background, and ``IGNORED`` is left out. Of ``any`` those of the background and of what is ignored.
        threshold: Half way between the background and the foreground of the data set.
        top: The foreground's own value.
        indices: Palettes count by index, not by colour.
        text: The rule in words.
    """

    kind: Literal["values", "any", "threshold"]
    values: Mapping[int, int] = field(default_factory=dict)
    threshold: float = 0.0
    top: int = 0
    indices: bool = False
    text: str = ""

    def apply(self, raw: Raw, path: Path) -> Mask:
        """The classes of one file: uint8 (H, W) of 0 to K, and ``IGNORED``.

        Raises:
            UserError: The file does not fit the rule.
        """
        found = codes(raw, path, indices=self.indices)
        if self.kind == "threshold":
            self._check_soft(found, raw, path)
            return (found > self.threshold).astype(np.uint8)
        mask = np.full(found.shape, 1 if self.kind == "any" else 0, np.uint8)
        known = 0
        for code, number in self.values.items():
            here = found == code
            mask[here] = number
            known += int(np.count_nonzero(here))
        if self.kind == "values" and known < found.size:
            others = sorted(set(np.unique(found).tolist()) - set(self.values))
            raise misfit(path, f"holds {in_words(others)}", self)
        return mask

    def _check_soft(self, found: Codes, raw: Raw, path: Path) -> None:
        """A mask whose brightest value is neither background nor foreground was written in another way than the others."""
        brightest = int(found.max(initial=0))
        if brightest <= self.threshold and brightest > (self.top * NEAR if raw.lossy else 0):
            hard = not raw.lossy and len(np.unique(found)) == 2
            if hard or brightest > self.top * NEAR:
                raise misfit(path, f"its brightest value is {brightest}: all of it would be background", self)

    def to_dict(self) -> dict[str, Any]:
        """In plain JSON types."""
        return {**asdict(self), "values": [[code, number] for code, number in self.values.items()]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelRule:
        """What ``to_dict`` gave."""
        return cls(**{**values, "values": {int(code): int(number) for code, number in values["values"]}})


def misfit(path: Path, what: str, rule: LabelRule) -> UserError:
    """The error of a file that does not fit the rule of the others."""
    return UserError(
        f"{what}; that does not fit the rule of this data set ({rule.text})",
        where=str(path),
        todo="write this mask as the others are, or set data.bad_cases=skip to leave its case out",
    )


def in_words(found: Iterable[int], most: int = 8) -> str:
    """Values as a person writes them: ``0, 128 and (255, 0, 0)``."""
    names = [str(value) for value in map(value_of, sorted(found))]
    if len(names) > most:
        return f"{', '.join(names[: most - 2])}, ... {names[-1]} ({len(names)} different values)"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def value_of(code: int) -> int | tuple[int, int, int]:
    """The grey value or colour of a code."""
    return ((code >> 16) & 255, (code >> 8) & 255, code & 255) if code >= COLOUR else code


def code_of(value: int | tuple[int, int, int]) -> int:
    """The code of a grey value or colour."""
    return value if isinstance(value, int) else COLOUR + (value[0] << 16) + (value[1] << 8) + value[2]
