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

_SAME = 8  # of 255: what differs less between neighbours is one area, compressed
_COLOURS = 64  # more of them are a photograph
_HUES = 0.1  # share of the strong pixels that other colours must have, to be more than a border
_HUE = 0.4  # of the strongest channel: what differs more from the usual colour is another one, and no border of it
FRACTIONS = 65535
"""Fractions become whole numbers: 1.0 is this one."""


def codes(raw: Raw, path: Path, *, indices: bool = False, fractions: bool = False) -> Codes:
    """A mask file as whole numbers (H, W).

    Args:
        raw: The file, decoded.
        path: For messages.
        indices: Of a file with a palette: the indices, whatever its colours, as label maps have them. Else its colours.
        fractions: Other files of the data set hold fractions of 1, so that 1.0 is the largest of them here too.

    Raises:
        UserError: It has a number of channels that no mask has, several colours that were compressed with loss, or what is no number.
    """
    if indices and raw.indices is not None:
        return raw.indices
    values = raw.values if raw.alpha is None else _opaque(raw.values, raw.alpha)
    if raw.hidden and (values == values[:1, :1]).all():  # nothing is seen of a sheet in one colour: an empty mask
        values = np.zeros_like(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(
            f"holds what is no number (NaN or infinite) in {np.count_nonzero(~np.isfinite(values))} places: background, or to be left out?",
            where=str(path),
            todo="write 0 there where it is background; to leave it out, another number such as 255, and --set data.ignore_label=255",
        )
    if values.shape[2] == 1:
        return _whole(values[..., 0], fractions)
    if values.shape[2] != 3:
        raise UserError(
            f"has {values.shape[2]} channels, and a mask is grey, coloured or has a palette",
            where=str(path),
            todo="write masks with one value for each pixel, or set data.bad_cases=skip",
        )
    red, green, blue = (values[..., channel] for channel in range(3))
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return _whole(red, fractions)
    if raw.lossy and values.dtype == np.uint8:
        highest = np.maximum(np.maximum(red, green), blue)
        if int((highest - np.minimum(np.minimum(red, green), blue)).max()) <= _NEAR_GREY:
            return np.asarray(Image.fromarray(values).convert("L"))  # a grey that was compressed in colours
        _refuse_hues(values, highest, path)
        return highest  # of real colours the strongest channel, so that dark red is no black
    if values.dtype != np.uint8:
        raise UserError(
            "has colours of more than 8 bits", where=str(path), todo="write masks with 8 bits per colour, or set data.bad_cases=skip"
        )
    red, green, blue = (channel.astype(np.int64) for channel in (red, green, blue))
    return np.where((red == green) & (green == blue), red, COLOUR + (red << 16) + (green << 8) + blue)


def _refuse_hues(values: NDArray[Any], highest: NDArray[Any], path: Path) -> None:
    """Several colours in a compressed file: which of them are the foreground its strongest channel cannot tell."""
    strong = highest > max(int(highest.max()) // 2, _NEAR_GREY)
    parts = values[strong].astype(np.float32) / highest[strong][:, None]
    alike = np.round(parts * 8).astype(np.int64) @ np.array([81, 9, 1])
    usual = parts[alike == np.bincount(alike).argmax()].mean(axis=0)
    if (abs(parts - usual) > _HUE).any(axis=1).mean() > _HUES:
        raise UserError(
            "holds several colours, and compression with loss changes them along every border",
            where=str(path),
            todo="write masks as PNG or TIFF, where colours can be told apart, or set data.bad_cases=skip",
        )


def _whole(values: NDArray[Any], fractions: bool) -> Codes:
    if values.dtype.kind != "f":
        return values
    rounded = np.round(values.astype(np.float64))
    if unit_of(values) == "fractions" or (fractions and unit_of(values) == "ones"):
        return np.asarray(np.round(values.astype(np.float64) * FRACTIONS), np.int64)
    return np.asarray(np.clip(rounded, -COLOUR + 1, COLOUR - 1), np.int64)


def unit_of(values: NDArray[Any]) -> Literal["", "ones", "fractions"]:
    """Whether floats from 0 to 1 are all 0 or 1, or some are fractions."""
    if values.dtype.kind != "f" or values.size == 0 or values.min() < 0 or values.max() > 1:
        return ""
    return "ones" if np.array_equal(np.round(values), values) else "fractions"


def strength(code: int) -> int:
    """The strongest channel of a colour, or the grey value."""
    value = value_of(code)
    return value if isinstance(value, int) else max(value)


def _strengths(found: Codes) -> Codes:
    """``strength`` of every code."""
    if found.max(initial=0) < COLOUR:
        return found
    colours = np.maximum(np.maximum((found >> 16) & 255, (found >> 8) & 255), found & 255)
    return np.where(found >= COLOUR, colours, found)


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
        areas: Code -> number of those pixels whose right and lower neighbours have nearly the same code.
        unit: Of files of floating-point numbers: see ``unit_of``.
    """

    path: Path
    lossy: bool
    values: Mapping[int, int]
    flat: Mapping[int, int]
    areas: Mapping[int, int] = field(default_factory=dict)
    unit: Literal["", "ones", "fractions"] = ""

    def in_fractions(self) -> Seen:
        """The same of a file of 0 and 1 among others with fractions."""
        values, flat, areas = ({FRACTIONS * code: n for code, n in of.items()} for of in (self.values, self.flat, self.areas))
        return Seen(self.path, self.lossy, values, flat, areas, "fractions")


def look(raw: Raw, path: Path, *, indices: bool = False) -> Seen:
    """Counts the values of one file.

    Raises:
        UserError: As ``codes``.
    """
    found = codes(raw, path, indices=indices)
    values, counts = _counted(found)
    areas: dict[int, int] = {}
    if len(values) > 2:
        corner, lower, right = found[:-1, :-1], found[1:, :-1], found[:-1, 1:]
        flat, flats = _counted(corner[(corner == lower) & (corner == right)])
        if reach := int(values[-1] - values[0]) * _SAME // 255 if values[-1] < COLOUR else 0:
            whole = found.astype({1: np.int16, 2: np.int32}.get(found.dtype.itemsize, np.int64))  # that differences fit
            near = (abs(whole[:-1, :-1] - whole[1:, :-1]) <= reach) & (abs(whole[:-1, :-1] - whole[:-1, 1:]) <= reach)
            near_values, nears = _counted(corner[near])
            areas = dict(zip(near_values.tolist(), nears.tolist(), strict=True))
    else:
        flat, flats = values, counts  # no border between two values is soft
    most = np.argsort(-counts, kind="stable")[:MOST]
    flat_of = dict(zip(flat.tolist(), flats.tolist(), strict=True))
    unit: Literal["", "ones", "fractions"] = unit_of(raw.values) if raw.indices is None else ""
    kept = dict(zip(values[most].tolist(), counts[most].tolist(), strict=True))
    return Seen(path, raw.lossy, kept, flat_of, areas or flat_of, unit)


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
            ``threshold``: what is beyond ``threshold``, on the side of ``top``, is (anti-aliased or compressed masks); of colours the
            strongest channel counts.
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
        found = codes(raw, path, indices=self.indices, fractions=FRACTIONS in (self.top, *self.values))
        if self.kind == "threshold":
            found = _strengths(found)
            self._check_soft(found, raw, path)
            return self.beyond(found).astype(np.uint8)
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

    def beyond(self, found: Any) -> Any:
        """Whether values are foreground, for a rule of kind ``threshold``."""
        return found > self.threshold if self.top > self.threshold else found < self.threshold

    @property
    def turned(self) -> str:
        """The setting that takes background and foreground the other way round; empty where there are more than two values."""
        if self.kind == "threshold":
            low, high = round(2 * self.threshold - self.top), self.top
        elif self.kind == "values" and sorted(self.values.values()) == [0, 1]:
            low, high = sorted(self.values, key=lambda code: self.values[code])
        else:
            return ""
        shown = [list(value) if isinstance(value := value_of(code), tuple) else value for code in (low, high)]
        return f"--set 'data.labels={{foreground: {shown[0]}, background: {shown[1]}}}'"

    def _check_soft(self, found: Codes, raw: Raw, path: Path) -> None:
        """A mask whose brightest value is neither background nor foreground was written in another way than the others."""
        if self.top < self.threshold:  # its foreground is dark, and what is bright in it may be all of it
            return
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
        """The inverse of ``to_dict``."""
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
