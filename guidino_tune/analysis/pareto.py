"""The Pareto front of a study with several objectives, as a figure and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Point:
    """A trial that ran its whole budget within the constraints.

    Attributes:
        trial: Its number.
        name: Of its system.
        values: Of the objectives by name; the first one is drawn upwards.
        on_front: No other trial is better in one objective and as good in all others.
    """

    trial: int
    name: str
    values: Mapping[str, float]
    on_front: bool


def draw(points: Sequence[Point], labels: Mapping[str, str], file: Path, title: str) -> None:
    """A PNG: the first objective against each of the others, a panel each; trials on the front are joined and numbered.

    Args:
        points: At least one.
        labels: Of the axes, by objective, the vertical one first. An axis whose values span more than a factor of 30 is logarithmic.
        file: Where it is written.
        title: Above the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    upright, *others = labels
    figure = Figure(figsize=(1 + 5 * len(others), 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    front = [p for p in points if p.on_front]
    for place, other in enumerate(others, 1):
        axes = figure.add_subplot(1, len(others), place)
        behind = [p for p in points if not p.on_front]
        axes.scatter([p.values[other] for p in behind], [p.values[upright] for p in behind], s=16, color="0.7", label="other trials")
        line = sorted(front, key=lambda p: p.values[other])
        # In more than two dimensions the front is no line in any of its pictures.
        style = "o-" if len(others) == 1 else "o"
        axes.plot(
            [p.values[other] for p in line], [p.values[upright] for p in line], style, color="C0", linewidth=1.2, label="Pareto front"
        )
        for point in line:
            axes.annotate(
                str(point.trial), (point.values[other], point.values[upright]), textcoords="offset points", xytext=(5, 5), fontsize=8
            )
        low, high = min(p.values[other] for p in points), max(p.values[other] for p in points)
        if low > 0 and high > 30 * low:
            axes.set_xscale("log")
        axes.set_xlabel(labels[other])
        axes.set_ylabel(labels[upright])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}")
    figure.savefig(draft, format="png")
    draft.replace(file)


def csv_text(points: Sequence[Point]) -> str:
    """One line per trial: number, system, whether it is on the front, and the objectives in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "system", "on_front", *points[0].values])
    for p in points:
        writer.writerow([p.trial, p.name, str(p.on_front).lower(), *(repr(value) for value in p.values.values())])
    return text.getvalue()
