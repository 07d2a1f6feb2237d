"""Whether values between background and foreground are a soft border (smoothing, compression), or levels of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from guidino_tune.data.labels import COLOUR, NEAR, Seen, strength, value_of

_FEW = 8  # different values that lossless files may hold and still be judged one by one
_FLAT = 0.5  # share of pixels with equal neighbours from which values mark areas, not soft borders
_AREA = 0.005  # areas of one level between, as a share of the foreground, from which it is a class (of retinal vessels as JPEG: 0.002)
_PEAK = 0.4  # share of all such areas that the level must have: a wide border has some of each level
_LEVEL = 1 / 8  # of the range: so far apart may values be and still be one level
_BEYOND = 0.1  # share of the foreground (or background) that may lie beyond the level that most of it has
_MAIN = 0.05  # share of the foreground from which a value is a level, and not one of many of a border
_MANY = 15  # so many other values make a border
_SMOOTH = 0.25  # share with equal neighbours below which they mark no areas
_HUE = 24  # so far may a channel be from a darker shade of a colour


@dataclass(frozen=True, slots=True)
class Levels:
    """Background and foreground of masks with soft borders.

    Attributes:
        low: The background's own value.
        high: The foreground's own value.
    """

    low: int
    high: int

    @property
    def middle(self) -> float:
        """What is above is foreground."""
        return (self.low + self.high) / 2


def total(seen: Iterable[Seen]) -> dict[int, int]:
    """Code -> pixels of all files."""
    found: dict[int, int] = {}
    for file in seen:
        for code, number in file.values.items():
            found[code] = found.get(code, 0) + number
    return found


def levels_of(values: Mapping[int, int], seen: Sequence[Seen]) -> Levels | None:
    """The two levels of masks with soft borders; ``None`` where there are other levels, or no border is soft.

    Args:
        values: Code -> pixels, without what is ignored.
        seen: The files.
    """
    if max(values) >= COLOUR or len(values) < 2:
        return None
    low, high = min(values), max(values)
    between = [value for value in values if low < value < high]
    lossy = any(file.lossy for file in seen)
    levels = _ends(values)
    if not between:
        return levels if lossy else None  # others of the kind will have values between
    if lossy or len(between) > _FEW:
        reach = (high - low) * NEAR
        middle = [value for value in between if low + reach < value < high - reach]
        if not lossy and not middle and not any(value >= high - reach for value in between):
            return None  # 1, 2, 3 ... and 255: compression would have changed the foreground too
        if not lossy and _flat(middle or between, seen) >= _FLAT:
            return None
        return None if _is_spread(values, levels) or third_level(values, seen) is not None else levels
    return levels if _flat(between, seen) < _FLAT else None


def third_level(values: Mapping[int, int], seen: Iterable[Seen]) -> int | None:
    """The level, between background and foreground, of areas that are too large for a border; ``None`` where there are none."""
    levels = _ends(values)
    reach = (levels.high - levels.low) * NEAR
    areas: dict[int, int] = {}
    for file in seen:
        for value, number in file.areas.items():
            if levels.low + reach < value < levels.high - reach:
                areas[value] = areas.get(value, 0) + number
    if not areas:
        return None
    at = np.array(sorted(areas))
    up_to = np.concatenate([[0], np.cumsum([areas[value] for value in at.tolist()])])
    ends = np.searchsorted(at, at + (levels.high - levels.low) * _LEVEL, side="right")
    inside = up_to[ends] - up_to[:-1]
    first = int(np.argmax(inside))
    if inside[first] < max(_PEAK * up_to[-1], _AREA * sum(number for value, number in values.items() if value > levels.low + reach)):
        return None
    return max(at[first : ends[first]].tolist(), key=lambda value: (areas[value], -value))


def _ends(values: Mapping[int, int]) -> Levels:
    """The most frequent value of each half of the range."""
    middle = (min(values) + max(values)) / 2
    return Levels(
        max((v for v in values if v <= middle), key=lambda v: (values[v], -v)),
        max((v for v in values if v > middle), key=lambda v: (values[v], v)),
    )


def _is_spread(values: Mapping[int, int], levels: Levels) -> bool:
    """Photographs, and maps of distances, have no foreground at one level with the border below it."""
    middle, reach = (min(values) + max(values)) / 2, (levels.high - levels.low) * NEAR
    sides: tuple[tuple[Callable[[int], bool], Callable[[int], bool]], ...] = (
        (lambda value: value > middle, lambda value: value > levels.high + reach),
        (lambda value: value <= middle, lambda value: value < levels.low - reach),
    )
    for side, beyond in sides:
        whole = sum(number for value, number in values.items() if side(value))
        if sum(number for value, number in values.items() if beyond(value)) > _BEYOND * whole:
            return True
    return False


def _flat(chosen: Iterable[int], seen: Iterable[Seen]) -> float:
    """Share of the pixels with these values that stand in an area of their own value."""
    chosen = set(chosen)
    seen = tuple(seen)
    whole = sum(n for file in seen for value, n in file.values.items() if value in chosen)
    return sum(n for file in seen for value, n in file.flat.items() if value in chosen) / whole if whole else 0.0


def is_smooth(seen: Sequence[Seen]) -> bool:
    """True where none of the values can be named: changed by compression, or so many that are seldom beside their like."""
    if any(file.lossy for file in seen):
        return True
    values = total(seen)
    marked = sum(number for value, number in values.items() if value)
    few = {value for value, number in values.items() if value and number < _MAIN * marked}
    return len(few) > _MANY and _flat(few, seen) < _SMOOTH


def in_shades(seen: Sequence[Seen]) -> tuple[Seen, ...] | None:
    """Of files in each of which one colour fades into black: the same by the strongest channel; ``None`` where they are none."""
    if not any(len(set(file.values) - {0}) > 1 for file in seen):
        return None
    if not all(_is_one_hue(file.values) for file in seen):
        return None
    return tuple(replace(file, values=_strengths(file.values), flat=_strengths(file.flat), areas=_strengths(file.areas)) for file in seen)


def _is_one_hue(found: Collection[int]) -> bool:
    colours = [_channels(code) for code in found]
    top = max(colours, key=max)
    shades = ([part * max(colour) / max(1, max(top)) for part in top] for colour in colours)
    return all(abs(is_ - shade) <= _HUE for colour, of in zip(colours, shades, strict=True) for is_, shade in zip(colour, of, strict=True))


def _channels(code: int) -> tuple[int, int, int]:
    value = value_of(code)
    return value if isinstance(value, tuple) else (value, value, value)


def _strengths(values: Mapping[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for code, number in values.items():
        found[strength(code)] = found.get(strength(code), 0) + number
    return found
