"""Which of several configurations is best, and can it be told from the others? Paired comparisons over cases; nothing here trains.

A table of scores has one row for each configuration, seed and case, with the columns ``configuration``, ``seed``, ``case``, ``group``
(the patient; the case itself where none is known), ``dice`` and other scores.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95
"""Of every interval. Two are told apart where Holm's p is below 1 minus this, the interval leaves out zero, and both point the same way."""

FEWEST = 6
"""With five differing cases the smallest two-sided p of the signed-rank test is 2 / 2**5 = 0.0625: it can never decide."""

RESAMPLES = 9999
"""Of a bootstrap interval."""

DIGITS = 9
"""Scores are compared after rounding: a mean over seeds must not differ from its equal by the order of a sum."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One configuration.

    Attributes:
        name: Of the configuration.
        seeds: Mean Dice over the cases, by seed.
        mean: Mean over the seeds.
        low: Lower end of the interval of the mean over cases; NaN with a single group.
        high: Its upper end.
        scores: Mean of every score over seeds and cases, by its name.
    """

    name: str
    seeds: Mapping[int, float]
    mean: float
    low: float
    high: float
    scores: Mapping[str, float]

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; one seed has none."""
        return float(np.std(list(self.seeds.values()), ddof=1)) if len(self.seeds) > 1 else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two configurations on the same cases, by the Dice of each case averaged over the seeds.

    Attributes:
        first: Name of the one.
        second: Name of the other.
        difference: Mean over the cases of first minus second.
        low: Lower end of its interval; NaN with a single group.
        high: Upper end.
        p: Two-sided, of Wilcoxon's signed-rank test; 1 where all differences are zero.
        p_holm: The same after Holm's correction; see ``compare``.
        cases: How many.
        groups: How many independent ones: patients, or the cases themselves.
        differing: Groups with a difference other than zero.
        direction: Sign of the signed-rank sum: 1 where the ranks speak for the first, -1 for the second. A few large differences may
            give the mean another sign.
        seed_error: Standard error of the difference that comes from the seeds, by Welch's formula; NaN where one of both has one seed.
        seed_freedom: Its degrees of freedom, by the same formula; infinite where no seed differs from another.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    cases: int
    groups: int
    differing: int
    direction: int
    seed_error: float
    seed_freedom: float

    @property
    def seeds_doubt(self) -> bool:
        """True when trainings with other seeds may well turn the difference round (Welch's t test): cases tell nothing about that."""
        return not abs(self.difference) > float(stats.t.ppf((1 + CONFIDENCE) / 2, self.seed_freedom)) * self.seed_error

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` (the first than the second), ``same``, ``too few`` or ``unclear``."""
        if self.differing == 0:
            return "same"
        if self.differing < FEWEST:
            return "too few"
        clear = self.p_holm < 1 - CONFIDENCE
        if clear and self.low > 0 and self.direction > 0:
            return "better"
        return "worse" if clear and self.high < 0 and self.direction < 0 else "unclear"

    def sentence(self) -> str:
        """The verdict with its numbers."""
        numbers = (
            f"difference {self.difference:.4f}, {CONFIDENCE:.0%} interval {self.low:.4f} to {self.high:.4f}, p {self.p_holm:.2g} after Holm"
        )
        match self.verdict:
            case "same":
                return f"{self.first} and {self.second} scored the same on every case: no test can decide between them."
            case "too few":
                number = f"only {self.differing} of {self.groups} independent cases differ"
                return f"The test cannot decide between {self.first} and {self.second}: {number}, and it needs {FEWEST} ({numbers})."
            case "unclear":
                return f"{self.first} and {self.second} cannot be told apart ({numbers})."
        verdict = f"{self.first} is {self.verdict} than {self.second}"
        if not self.seeds_doubt:
            return f"{verdict} ({numbers})."
        why = "of one seed nothing is known of others"
        if not math.isnan(self.seed_error):
            why = f"the seeds scatter (standard error {self.seed_error:.4f})"
        return f"{verdict} as these models were trained ({numbers}); but {why}: other trainings may turn it round."


def read_scores(files: Mapping[tuple[str, int], Path], groups: Mapping[str, str]) -> pd.DataFrame:
    """Joins the files of single measurements.

    Args:
        files: Scores of each case (CSV with ``case``, ``dice``, ...), by configuration and seed.
        groups: Group by case; a case that is not in it is a group of its own.

    Returns:
        The table of scores.

    Raises:
        ValueError: There is no file, or the files are not about the same cases.
    """
    parts = []
    for (configuration, seed), file in files.items():
        # A case may be called 0001 or NA.
        part = pd.read_csv(file, dtype={"case": str}, keep_default_na=False)
        parts.append(part.assign(configuration=configuration, seed=seed, group=part["case"].map(lambda case: groups.get(case, case))))
    if len({frozenset(part["case"]) for part in parts}) != 1:
        raise ValueError(f"{len(parts)} files of scores are not about the same cases")
    first = ["configuration", "seed", "case", "group"]
    table = pd.concat(parts, ignore_index=True)
    return table[[*first, *(column for column in table.columns if column not in first)]]


def summarise(table: pd.DataFrame) -> list[Summary]:
    """Every configuration of a table of scores, in the order of its mean Dice, best first; of equals the one that comes first."""
    found = []
    for name in table["configuration"].unique():
        rows = table[table["configuration"] == name]
        cases = _by_case(table, name)
        low, high = interval(cases.to_numpy(), _groups(table, cases))
        scores = rows.select_dtypes("number").drop(columns="seed").mean()
        seeds = rows.groupby("seed")["dice"].mean()
        found.append(
            Summary(
                name=str(name),
                seeds={int(str(seed)): float(value) for seed, value in seeds.items()},
                mean=float(seeds.mean()),
                low=low,
                high=high,
                scores={str(score): float(value) for score, value in scores.items()},
            )
        )
    return sorted(found, key=lambda summary: -round(summary.mean, DIGITS))


def compare(table: pd.DataFrame, first: str, others: Sequence[str], *, picked: bool = False) -> list[Comparison]:
    """Compares one configuration with others, with Holm's correction over all of these comparisons.

    A configuration that was picked as the best on these very cases might have been any of them: then the correction is over all pairs,
    the others among themselves too, of which only those with the first are returned.

    Args:
        table: Of scores.
        first: The configuration that is compared, such as the winner.
        others: With which.
        picked: Whether the first was chosen by these scores.

    Returns:
        In the order of ``others``.

    Raises:
        ValueError: A configuration is not in the table.
    """
    one = _by_case(table, first)
    groups = _groups(table, one)
    found = []
    for name in others:
        differences, means = _differences(table, first, name)
        low, high = interval(differences, groups)
        found.append((name, differences, means, low, high, signed_rank(means)))
    pairs = itertools.combinations(others, 2) if picked else ()
    family = [*(p for *_, p in found), *(signed_rank(_differences(table, a, b)[1]) for a, b in pairs)]
    corrected = multipletests(family, method="holm")[1][: len(found)] if found else []
    spread = {name: _seed_variance(table, name) for name in (first, *others)}
    return [
        Comparison(
            first=first,
            second=name,
            difference=float(differences.mean()),
            low=low,
            high=high,
            p=p,
            p_holm=float(holm),
            cases=len(differences),
            groups=len(means),
            differing=int(np.count_nonzero(means)),
            seed_error=math.sqrt(spread[first][0] + spread[name][0]),
            seed_freedom=_welch(spread[first], spread[name]),
            direction=int(np.sign(np.sum(np.sign(means) * stats.rankdata(np.abs(means))))),
        )
        for (name, differences, means, low, high, p), holm in zip(found, corrected, strict=True)
    ]


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test that differences are symmetric about zero.

    Zeros take part in the ranking and have no sign (Pratt 1959). The p is exact up to 50 differences without ties and zeros, and up to 13
    with them; above it is that of the normal approximation.

    Args:
        differences: (N,), independent.

    Returns:
        In (0, 1]; 1 where all are zero or there are none.
    """
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt", method="auto").pvalue)


def interval(values: np.ndarray, groups: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean over cases, with whole groups drawn; repeats exactly.

    The bias-corrected and accelerated one (Efron 1987), or that of percentiles where the correction is not defined.

    Args:
        values: (N,), of each case.
        groups: (N,), the group of each case: what is independent.
        resamples: How many.
        seed: Of the drawing.

    Returns:
        Both ends; NaN where there is one group only, from which nothing can be said about others.
    """
    sums, sizes = (np.array([part(values[groups == group]) for group in np.unique(groups)], float) for part in (np.sum, np.size))
    if len(sums) < 2:
        return math.nan, math.nan
    if np.ptp(sums / sizes) == 0:
        return float(values.mean()), float(values.mean())
    ends = (math.nan, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of degenerate data: the answer is then not finite
        for method in ("BCa", "percentile"):
            found = stats.bootstrap(
                (sums, sizes), _mean, n_resamples=resamples, batch=500, vectorized=True, paired=True, confidence_level=CONFIDENCE,
                method=method, rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
            ends = float(found.low), float(found.high)
            if all(map(math.isfinite, ends)):
                break
    return ends


def _mean(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(sums.sum(axis=axis) / sizes.sum(axis=axis))


def _by_case(table: pd.DataFrame, configuration: str) -> pd.Series[float]:
    """Dice of each case, averaged over the seeds, sorted by case."""
    rows = table[table["configuration"] == configuration]
    if rows.empty:
        raise ValueError(f"no scores of {configuration!r}")
    return rows.groupby("case", sort=True)["dice"].mean()


def _differences(table: pd.DataFrame, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Of every case, and the mean of every group."""
    one = _by_case(table, first)
    differences = np.round((one - _by_case(table, second)).to_numpy(), DIGITS)
    if np.isnan(differences).any():
        raise ValueError(f"{first} and {second} were not measured on the same cases")
    groups = _groups(table, one)
    return differences, np.round([differences[groups == group].mean() for group in np.unique(groups)], DIGITS)


def _seed_variance(table: pd.DataFrame, configuration: str) -> tuple[float, int]:
    """Squared standard error of a configuration's mean over its seeds, NaN for one seed; and the number of seeds."""
    means = table[table["configuration"] == configuration].groupby("seed")["dice"].mean()
    return float(means.sem()) ** 2, len(means)


def _welch(one: tuple[float, int], other: tuple[float, int]) -> float:
    """Degrees of freedom of the difference of two means (Welch 1947)."""
    (a, n), (b, m) = one, other
    if a + b == 0:
        return math.inf
    return (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1)) if min(n, m) > 1 else math.nan


def mean_sd(values: Collection[float]) -> str:
    """Mean and sample standard deviation; a single value has none."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _groups(table: pd.DataFrame, cases: pd.Series[float]) -> np.ndarray:
    known = dict(zip(table["case"], table["group"], strict=True))
    return np.array([known[case] for case in cases.index])
