"""Drawings as SVG: scales, axes, and marks with a tooltip each. Colours and fonts come from the page's style sheet, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Protocol

from guidino_tune.reporting.words import figure

INNER = 5
"""Pixels between the axes and the outermost marks."""


class Scale(Protocol):
    """Where a value lies on an axis, from 0 to 1, and what is written beside the axis."""

    def __call__(self, value: float) -> float:
        """From 0 to 1."""
        ...

    def ticks(self) -> list[tuple[float, str]]:
        """Values and their texts."""
        ...


class Linear:
    """Even steps.

    Args:
        low: Least value.
        high: Greatest.
        most: Ticks at most.
    """

    def __init__(self, low: float, high: float, most: int = 6) -> None:
        if high <= low:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        self.low, self.high, self.most = low, high, most

    def __call__(self, value: float) -> float:
        """From 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers."""
        rough = (self.high - self.low) / self.most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        values = [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(value, f"{value:,.{digits}f}" if digits < 5 else f"{value:.0e}") for value in values]


class Log:
    """Even factors, between numbers above 0."""

    def __init__(self, low: float, high: float) -> None:
        if high <= low:
            low, high = low / 2, high * 2
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        """From 0 to 1."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Powers of ten; over less than two of them also 2 and 5 times these."""
        steps = (1,) if self.high / self.low >= 100 else (1, 2, 5)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        inside = [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]
        skip = max(1, math.ceil(len(inside) / 6))
        return [(value, f"{value:g}") for value in inside[::skip]]


class Steps:
    """A place for each of several values."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __call__(self, value: float) -> float:
        """The middle of the place of this number, from 0."""
        return (value + 0.5) / len(self.names)

    def ticks(self) -> list[tuple[float, str]]:
        """The names."""
        return [(number, name) for number, name in enumerate(self.names)]


class Drawing:
    """A figure with at most two axes; grows by each call, ``str`` gives it whole.

    Args:
        title: For those who do not see it.
        width: In pixels of the page, at its natural size.
        height: Likewise.
        margins: Left, right, top and bottom of the area that the scales span.
    """

    def __init__(self, title: str, width: int = 560, height: int = 300, margins: tuple[int, int, int, int] = (58, 14, 12, 46)) -> None:
        self.title, self.width, self.height = title, width, height
        self.left, right, self.top, bottom = margins
        self.right, self.bottom = width - right, height - bottom
        self._parts: list[str] = []

    def x(self, share: float) -> float:
        """Pixel of a place on the lower axis."""
        return self.left + INNER + share * (self.right - self.left - 2 * INNER)

    def y(self, share: float) -> float:
        """Pixel of a place on the upright axis."""
        return self.bottom - INNER - share * (self.bottom - self.top - 2 * INNER)

    def axes(
        self, across: Scale | None, upright: Scale | None, across_label: str = "", upright_label: str = "", *, slanted: bool = False
    ) -> None:
        """Axes with ticks, a light grid and what they measure; ``slanted`` texts below take less width."""
        for value, text in upright.ticks() if upright else ():
            y = self.y(upright(value))  # type: ignore[misc]
            self.line(self.left, y, self.right, y, "grid")
            self.text(self.left - 8, y + 4, text, "tick end")
        for value, text in across.ticks() if across else ():
            x = self.x(across(value))  # type: ignore[misc]
            self.line(x, self.bottom, x, self.bottom + 4, "axis")
            if slanted:
                self.add(
                    f'<text class="tick end" transform="translate({x + 4:.1f} {self.bottom + 14}) rotate(-35)">{escape(text[:16])}</text>'
                )
            else:
                self.text(x, self.bottom + 18, text, "tick mid")
        self.line(self.left, self.bottom, self.right, self.bottom, "axis")
        self.text((self.left + self.right) / 2, self.height - 6, across_label, "label mid")
        if upright_label:
            middle = (self.top + self.bottom) / 2
            self.add(f'<text class="label mid" transform="translate(13 {middle:.1f}) rotate(-90)">{escape(upright_label)}</text>')

    def add(self, part: str) -> None:
        """SVG as it is; texts in it are escaped."""
        self._parts.append(part)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self.add(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "tick") -> None:
        """A line of text: ``tick`` or ``label``, with ``mid`` or ``end`` where it is not to begin at this place."""
        if text:
            self.add(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>')

    def path(self, points: Sequence[tuple[float, float]], kind: str, tip: str = "") -> None:
        """A line through pixels."""
        if points:
            places = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            self.add(f'<path class="{kind}" d="M{places}">{_tip(tip)}</path>')

    def dot(self, x: float, y: float, kind: str, tip: str = "", radius: float = 3.5) -> None:
        """A disc."""
        self.add(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{_tip(tip)}</circle>')

    def cross(self, x: float, y: float, kind: str, tip: str = "", size: float = 3.5) -> None:
        """Two crossing strokes."""
        strokes = f"M{x - size:.1f} {y - size:.1f}l{2 * size:g} {2 * size:g}m0 {-2 * size:g}l{-2 * size:g} {2 * size:g}"
        self.add(f'<path class="{kind}" d="{strokes}">{_tip(tip)}</path>')

    def star(self, x: float, y: float, kind: str, tip: str = "", size: float = 7) -> None:
        """For the best one."""
        corners = [(size if n % 2 == 0 else size * 0.45, math.pi * (n / 5 - 0.5)) for n in range(10)]
        places = " ".join(f"{x + r * math.cos(a):.1f},{y + r * math.sin(a):.1f}" for r, a in corners)
        self.add(f'<polygon class="{kind}" points="{places}">{_tip(tip)}</polygon>')

    def bar(self, x1: float, y: float, x2: float, height: float, kind: str, tip: str = "") -> None:
        """A rectangle from the left to the right, at least a pixel wide."""
        left, right = sorted((x1, x2))
        self.add(
            f'<rect class="{kind}" x="{left:.1f}" y="{y:.1f}" width="{max(right - left, 1):.1f}" height="{height:.1f}">{_tip(tip)}</rect>'
        )

    def __str__(self) -> str:
        body = "".join(self._parts)
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        return f'<svg {size} role="img" aria-label="{escape(self.title)}">{body}</svg>'


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def dice_scale(values: Sequence[float]) -> Linear:
    """An upright axis for scores from 0 to 1, as tight as they allow."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = max(high - low, 0.02) * 0.05
    return Linear(max(0.0, low - room), min(1.0, high + room))


def scale_of(values: Sequence[float], *, log: bool = False) -> Linear | Log:
    """An axis for these values; a logarithmic one where they are asked for so and above 0, or span more than a factor of 30."""
    low, high = min(values), max(values)
    if low > 0 and (log or high > 30 * low):
        return Log(low, high)
    return Linear(low, high)


def tip(*parts: tuple[str, float | str | None]) -> str:
    """Names and values in a line."""
    return ", ".join(f"{name} {figure(value) if isinstance(value, float) else value}" for name, value in parts if value is not None)
