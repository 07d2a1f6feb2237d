"""What of a trial's first epochs tells its end best: the newest Dice, the best so far, a moving average of it, or an extrapolation.

python tests/benchmarks/rung_signals.py recorded/kvasir recorded/isic2017 recorded/ddti

Kendall's tau with the best Dice of the whole training, over the curves of a table that were trained whole, and its difference to that of
the newest Dice (the same curves drawn anew with replacement for both, 95 %). A tenth of the curves is called the best: which share of it is
in the upper third at that epoch? Last, where configurations have a second seed: the tau of one seed's epoch with the end of the other,
which no luck of a seed makes higher.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy.stats import kendalltau

from guidino_tune.simulation.curves import CurveTable
from guidino_tune.workflows.simulate import open_table


def moving_average(dice: np.ndarray, share: float) -> np.ndarray:
    """Exponential, of (curves, epochs) Dice; the newest epoch counts with this share."""
    smooth = dice.copy()
    for epoch in range(1, dice.shape[1]):
        smooth[:, epoch] = share * dice[:, epoch] + (1 - share) * smooth[:, epoch - 1]
    return smooth


def extrapolated(dice: np.ndarray) -> np.ndarray:
    """What a straight line over the logarithm of the epochs says of the last one; later epochs weigh more. At first the Dice itself."""
    told, last = dice.copy(), dice.shape[1]
    for epoch in range(3, last + 1):
        at = np.log(np.arange(1, epoch + 1))
        slope, start = np.polyfit(at, dice[:, :epoch].T, 1, w=np.arange(1, epoch + 1) / epoch)
        told[:, epoch - 1] = slope * np.log(last) + start
    return told


SIGNALS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "newest": lambda dice: dice,
    "best so far": lambda dice: np.maximum.accumulate(dice, axis=1),
    "average, half": lambda dice: moving_average(dice, 0.5),
    "average, 0.3": lambda dice: moving_average(dice, 0.3),
    "line over log": extrapolated,
}
"""From (curves, epochs) Dice to what is compared after each epoch."""


def agreement(signal: np.ndarray, end: np.ndarray) -> float:
    """Kendall's tau of one epoch with the end."""
    return float(kendalltau(signal, end, method="asymptotic").statistic)


def kept(signal: np.ndarray, end: np.ndarray) -> float:
    """Share of the best tenth at the end that is in the upper third at one epoch."""
    best, upper = (set(np.argsort(-values)[: max(1, len(values) // part)]) for values, part in ((end, 10), (signal, 3)))
    return len(best & upper) / len(best)


def pairs(table: CurveTable) -> tuple[np.ndarray, np.ndarray]:
    """(configurations, epochs) Dice of the first and the second seed of the configurations that have two."""
    seeds: dict[int, list[np.ndarray]] = {}
    for curve in table.curves:
        if not curve.failed and len(curve.dice) == table.epochs:
            seeds.setdefault(curve.configuration, []).append(curve.filled())
    both = [two[:2] for two in seeds.values() if len(two) > 1]
    return np.array([one for one, _ in both]), np.array([other for _, other in both])


def across(of: Callable[[np.ndarray], np.ndarray], one: np.ndarray, other: np.ndarray, epoch: int) -> float:
    """Mean tau of a signal of one seed with the end of the other."""
    return float(np.mean([agreement(of(a)[:, epoch - 1], b.max(1)) for a, b in ((one, other), (other, one))]))


def report(name: str, table: CurveTable, epochs: list[int], resamples: int) -> None:
    """Prints a Markdown table."""
    dice = np.array([c.filled() for c in table.curves if not c.failed and len(c.dice) == table.epochs])
    end, random = dice.max(1), np.random.default_rng(0)
    first, second = pairs(table)
    draws = random.integers(len(dice), size=(resamples, len(dice)))
    print(
        f"\n{name}: {len(dice)} whole curves of {table.epochs} epochs, {len(first)} configurations twice\n\n| signal | "
        + " | ".join(f"epoch {e}" for e in epochs)
        + " |"
    )
    print("|---|" + "--:|" * len(epochs))
    for signal, of in SIGNALS.items():
        cells = []
        for epoch in epochs:
            told, newest = of(dice)[:, epoch - 1], dice[:, epoch - 1]
            gains = [agreement(told[d], end[d]) - agreement(newest[d], end[d]) for d in draws] if signal != "newest" else []
            gain = (
                " ({:+.2f} [{:+.2f}, {:+.2f}])".format(*map(float, (np.mean(gains), *np.percentile(gains, [2.5, 97.5])))) if gains else ""
            )
            other = f", other seed {across(of, first, second, epoch):.2f}" if len(first) else ""
            cells.append(f"{agreement(told, end):.2f}{gain}, keeps {kept(told, end):.0%}{other}")
        print(f"| {signal} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("tables", nargs="+", help="recorded/NAME or a Parquet file")
    made.add_argument("--epochs", default="1,3,9", help="at which to look")
    made.add_argument("--resamples", type=int, default=400)
    asked = made.parse_args()
    for name in asked.tables:
        report(name, open_table(name), [int(e) for e in asked.epochs.split(",")], asked.resamples)


if __name__ == "__main__":
    main()
