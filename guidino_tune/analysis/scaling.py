"""Does a larger backbone, or a larger image, help? Dice against cost, as a figure, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Point:
    """One backbone at one image size.

    Attributes:
        backbone: Its name.
        image_size: In pixels.
        gigaflops: Of one forward pass of one image, backbone included; 2 per multiplication and addition.
        parameters: Of the whole network.
        seconds: Of one training epoch on this machine (median); ``None`` when not known.
        dice: Of each seed, in [0, 1].
    """

    backbone: str
    image_size: int
    gigaflops: float
    parameters: int
    seconds: float | None
    dice: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean Dice over the seeds."""
        return statistics.fmean(self.dice)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; one seed has none."""
        return statistics.stdev(self.dice) if len(self.dice) > 1 else None


def verdict(points: Sequence[Point]) -> str:
    """One sentence: does the most expensive combination beat the cheapest by more than the seeds scatter?"""
    if len(points) < 2:
        return "One combination only: nothing to compare."
    cheap, dear = min(points, key=lambda p: p.gigaflops), max(points, key=lambda p: p.gigaflops)
    best = max(points, key=lambda p: p.mean)
    gain = dear.mean - cheap.mean
    rates = f"from {_name(cheap)} ({cheap.gigaflops:.1f} GFLOPs) to {_name(dear)} ({dear.gigaflops:.1f} GFLOPs) Dice changes by {gain:+.4f}"
    if cheap.sd is None or dear.sd is None:
        answer = "With one seed each, no difference can be told from chance"
    else:
        noise = (cheap.sd**2 / len(cheap.dice) + dear.sd**2 / len(dear.dice)) ** 0.5
        clear = abs(gain) > 2 * noise
        direction = "helps" if gain > 0 else "harms"
        answer = f"Bigger {direction} here" if clear else "Bigger is not clearly better here"
        rates += f", with a standard error of {noise:.4f}"
    return f"{answer}: {rates}; the best is {_name(best)} with {best.mean:.4f}."


def draw(points: Sequence[Point], file: Path, title: str) -> None:
    """A PNG: Dice against GFLOPs (logarithmic), one line per image size, bars of one standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    markers = "osD^vP*X"
    for index, size in enumerate(sorted({p.image_size for p in points})):
        line = sorted((p for p in points if p.image_size == size), key=lambda p: p.gigaflops)
        axes.errorbar(
            [p.gigaflops for p in line], [p.mean for p in line], yerr=[p.sd or 0.0 for p in line],
            marker=markers[index % len(markers)], capsize=3, linewidth=1.2, label=f"{size} px",
        )  # fmt: skip
        for point in line:
            axes.annotate(point.backbone, (point.gigaflops, point.mean), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.15)  # room for the names
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.set_ylim(max(0.0, axes.get_ylim()[0]), min(1.0, axes.get_ylim()[1]))
    axes.set_xlabel("GFLOPs per image (forward)")
    axes.set_ylabel("Dice on the test cases")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(title="image size", fontsize=8, title_fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}")
    figure.savefig(draft, format="png")
    draft.replace(file)


def markdown(points: Sequence[Point], title: str, remarks: Sequence[str], figure: str) -> str:
    """A Markdown page: the answer, the figure and the numbers."""
    lines = ["| backbone | image size | seeds | Dice | GFLOPs | parameters | s per epoch |", "|---|--:|--:|--:|--:|--:|--:|"]
    for p in _ordered(points):
        dice = f"{p.mean:.4f}" + ("" if p.sd is None else f" ± {p.sd:.4f}")
        seconds = "-" if p.seconds is None else f"{p.seconds:.1f}"
        lines.append(f"| {p.backbone} | {p.image_size} | {len(p.dice)} | {dice} | {p.gigaflops:.2f} | {p.parameters:,} | {seconds} |")
    return "\n".join(
        [f"# {title}", "", verdict(points), "", f"![Dice against cost]({figure})", "", *(f"- {r}" for r in remarks), "", *lines, ""]
    )


HEADINGS = ("backbone", "image_size", "seeds", "dice_mean", "dice_sd", "gigaflops", "parameters", "seconds_per_epoch")
"""Of ``rows``."""


def rows(points: Sequence[Point]) -> list[list[object]]:
    """One row per combination; what is not known is ``None``."""
    return [[p.backbone, p.image_size, len(p.dice), p.mean, p.sd, float(p.gigaflops), p.parameters, p.seconds] for p in _ordered(points)]


def csv_text(points: Sequence[Point], protocol: str) -> str:
    """One line per combination."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEADINGS, "protocol"])
    for row in rows(points):
        writer.writerow([*("" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in row), protocol])
    return text.getvalue()


def _ordered(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda p: (p.image_size, p.gigaflops))


def _name(point: Point) -> str:
    return f"{point.backbone} at {point.image_size} px"
