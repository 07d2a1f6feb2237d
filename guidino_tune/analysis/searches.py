"""Simulated searches compared: regret against epochs and seconds, as Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESAMPLES = 2000
"""Of the seeds, for a bootstrap interval of 95 %."""


@dataclass(frozen=True, slots=True)
class Search:
    """One simulated search.

    Attributes:
        method: Such as ``tpe+asha``.
        workers: Side by side.
        seed: Of the study.
        epochs: At which another configuration became the leading one, ascending.
        seconds: Likewise, of the virtual clock.
        regrets: From then on: best known Dice minus that of the leading configuration.
        trials: That began.
        diverged: Share of them that failed through their configuration.
        total_epochs: That were trained.
        total_seconds: Of the virtual clock.
        compared: Regret of the configuration that ``compare`` would choose at the end, among the three best and the default.
    """

    method: str
    workers: int
    seed: int
    epochs: tuple[int, ...]
    seconds: tuple[float, ...]
    regrets: tuple[float, ...]
    trials: int
    diverged: float
    total_epochs: int
    total_seconds: float
    compared: float

    def regret(self, at: float, axis: str = "epochs") -> float:
        """Regret after so many ``epochs`` or ``seconds``; before the first result that of the first."""
        index = int(np.searchsorted(getattr(self, axis), at, side="right")) - 1
        return self.regrets[max(index, 0)] if self.regrets else float("nan")


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % bootstrap interval."""
    array = np.asarray(values, dtype=float)
    means = np.random.default_rng(0).choice(array, (RESAMPLES, len(array))).mean(1)
    return float(array.mean()), *map(float, np.quantile(means, (0.025, 0.975)))  # type: ignore[return-value]


def epochs_ratio(searches: Sequence[Search], reference: Sequence[Search], paired: bool = False) -> tuple[float, float, float]:
    """Epochs until the mean regret is what the reference has at its end, over those that the reference needs; with a 95 % interval.

    Both are read from the mean over seeds, and the seeds are drawn anew: of each on its own, or, ``paired``, the same of both, where what
    is searched differs from seed to seed. Infinite where it is not reached.
    """
    grid = np.unique(np.linspace(1, max(s.total_epochs for s in (*searches, *reference)), 400).astype(int))
    mine, theirs = (np.array([[s.regret(at) for at in grid] for s in group]) for group in (searches, reference))
    random = np.random.default_rng(0)

    def ratio(one: np.ndarray, other: np.ndarray) -> float:
        goal = other.mean(0)[-1] + 1e-12
        first = [np.flatnonzero(np.minimum.accumulate(curve.mean(0)) <= goal) for curve in (one, other)]
        return float(grid[first[0][0]] / grid[first[1][0]]) if len(first[0]) else float("inf")

    drawn = []
    for _ in range(500):
        rows = random.integers(len(mine), size=len(mine))
        drawn.append(ratio(mine[rows], theirs[rows if paired else random.integers(len(theirs), size=len(theirs))]))
    low, high = np.quantile(drawn, (0.025, 0.975), method="nearest")
    return ratio(mine, theirs), float(low), float(high)


def grouped(searches: Sequence[Search]) -> dict[tuple[int, str], list[Search]]:
    """By workers and method, in the order in which they were asked for."""
    groups: dict[tuple[int, str], list[Search]] = {}
    for search in sorted(searches, key=lambda s: (s.workers, s.seed)):
        groups.setdefault((search.workers, search.method), []).append(search)
    return groups


HEADINGS = (
    "workers", "method", "seeds", "regret_at_half", "regret", "regret_low", "regret_high", "compared", "compared_low", "compared_high",
    "simulated_hours", "trials", "diverged", "ratio", "ratio_low", "ratio_high",
)  # fmt: skip
"""Of ``method_rows``."""


def method_rows(searches: Sequence[Search], reference: str) -> list[list[Any]]:
    """A row for each method and number of workers; a ratio, see ``epochs_ratio``, is ``None`` where the reference was not simulated."""
    groups = grouped(searches)
    rows = []
    for (workers, method), group in groups.items():
        other = groups.get((workers, reference))
        numbers = (
            float(np.mean([s.regret(s.total_epochs / 2) for s in group])),
            *mean_interval([s.regret(s.total_epochs) for s in group]),
            *mean_interval([s.compared for s in group]),
            float(np.mean([s.total_seconds for s in group])) / 3600,
            float(np.mean([s.trials for s in group])),
            float(np.mean([s.diverged for s in group])),
        )
        rows.append([workers, method, len(group), *numbers, *(epochs_ratio(group, other) if other else (None, None, None))])
    return rows


def markdown(searches: Sequence[Search], reference: str, remarks: Sequence[str], figure: str) -> str:
    """A page: what was simulated, the table, the picture."""
    lines = [
        "| workers | method | seeds | regret at half | regret at the end [95 %] | after compare [95 %] | simulated hours | trials "
        f"| diverged | epochs to the quality of {reference}, ratio [95 %] |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for workers, method, seeds, half, *rest in method_rows(searches, reference):
        mean, low, high, *compared = rest[:6]
        hours, trials, diverged, *ratio = rest[6:]
        factor = "-" if ratio[0] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)
        lines.append(
            f"| {workers} | {method} | {seeds} | {half:.4f} | {mean:.4f} [{low:.4f}, {high:.4f}] "
            f"| {'{:.4f} [{:.4f}, {:.4f}]'.format(*compared)} | {hours:.2f} | {trials:.0f} | {diverged:.0%} | {factor} |"
        )
    return "\n".join(["# Simulated searches", "", *(f"- {r}" for r in remarks), "", *lines, "", f"![Regret]({figure})", ""])


def csv_text(searches: Sequence[Search], points: int = 50) -> str:
    """Mean regret and its interval at ``points`` numbers of epochs and of seconds, of each method and number of workers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["workers", "method", "axis", "at", "regret", "low", "high", "seeds"])
    for (workers, method), group in grouped(searches).items():
        for axis in ("epochs", "seconds"):
            for at in _grid(group, axis, points):
                row = mean_interval([s.regret(at, axis) for s in group])
                writer.writerow([workers, method, axis, f"{at:.6g}", *(f"{v:.6g}" for v in row), len(group)])
    return text.getvalue()


def draw(searches: Sequence[Search], file: Path) -> None:
    """A PNG: mean regret with its interval against epochs (left) and simulated seconds (right), a row for each number of workers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = grouped(searches)
    rows = sorted({workers for workers, _ in groups})
    figure = Figure(figsize=(10, 3.6 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(rows), 2, squeeze=False)
    for (workers, method), group in groups.items():
        for axes, axis in zip(all_axes[rows.index(workers)], ("epochs", "seconds"), strict=True):
            grid = _grid(group, axis, 50)
            mean, low, high = np.array([mean_interval([s.regret(at, axis) for s in group]) for at in grid]).T
            axes.plot(grid, mean, label=method, linewidth=1.4)
            axes.fill_between(grid, low, high, alpha=0.15)
            axes.set(xlabel=f"{axis}, {workers} worker(s)", ylabel="regret (Dice)")
            axes.grid(alpha=0.3)
    all_axes[0][0].legend(fontsize=8)
    draft = file.with_name(f".{file.name}")
    figure.savefig(draft, format="png")
    draft.replace(file)


def _grid(group: Sequence[Search], axis: str, points: int) -> np.ndarray:
    start = float(np.median([getattr(s, axis)[0] for s in group if s.regrets] or [0.0]))
    return np.linspace(start, min(getattr(s, f"total_{axis}") for s in group), points)
