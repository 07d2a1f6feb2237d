"""Paired statistics against formulas written out here: signs enumerated, Holm by hand, coverage by simulation."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from guidino_tune.analysis import comparison
from guidino_tune.analysis.statistics import Comparison, compare, interval, read_scores, signed_rank, summarise


def enumerated(differences: list[float]) -> float:
    """Two-sided p by all signs: zeros keep their rank and have no sign (Pratt)."""
    size = np.abs(differences)
    ranks = [(np.sum(size < s) + np.sum(size <= s) + 1) / 2 for s in size]  # mid-ranks
    moving = [rank for rank, d in zip(ranks, differences, strict=True) if d != 0]
    observed = abs(sum(math.copysign(rank, d) for rank, d in zip(ranks, differences, strict=True) if d != 0))
    sums = [abs(sum(s * r for s, r in zip(signs, moving, strict=True))) for signs in itertools.product((-1, 1), repeat=len(moving))]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


def scores(configuration: str, dice: np.ndarray, *, seed: int = 0, groups: list[str] | None = None) -> pd.DataFrame:
    cases = [f"{number:04d}" for number in range(len(dice))]
    return pd.DataFrame({"configuration": configuration, "seed": seed, "case": cases, "group": groups or cases, "dice": dice, "hd95": 1.0})


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        [0.1, -0.2, 0.3, 0.4, -0.5, 0.6, 0.75],
        [0.1, 0.1, -0.1, 0.3, 0.3, 0.4, -0.2, 0.6],  # ties
        [0.0, -0.1, -0.2, 0.3, 0.0, 0.4, 0.5, 0.6],  # zeros, which push the other ranks up
    ],
)
def test_the_signed_rank_p_is_that_of_all_signs(differences: list[float]) -> None:
    assert signed_rank(np.array(differences)) == pytest.approx(enumerated(differences), abs=1e-12)


def test_zeros_alone_give_no_evidence() -> None:
    assert signed_rank(np.zeros(7)) == 1.0
    assert signed_rank(np.zeros(0)) == 1.0


def test_the_smallest_p_of_five_differences_decides_nothing() -> None:
    assert signed_rank(np.arange(1.0, 6.0)) == 2 / 2**5 > 0.05 > 2 / 2**6 == signed_rank(np.arange(1.0, 7.0))


def test_holm_is_the_one_by_hand() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(0.5, 0.9, 12)
    table = pd.concat(
        [
            scores("a", base),
            *(scores(name, base - shift + rng.normal(0, 0.02, 12)) for name, shift in (("b", 0.01), ("c", 0.04), ("d", 0.005))),
        ]
    )
    found = compare(table, "a", ["b", "c", "d"])
    ordered = sorted(found, key=lambda c: c.p)
    running = 0.0
    for factor, one in zip((3, 2, 1), ordered, strict=True):  # each p times the number of hypotheses left, never smaller than before
        running = max(running, min(1.0, factor * one.p))
        assert one.p_holm == pytest.approx(running)
    assert len({c.p for c in found}) == 3
    assert [c.second for c in found] == ["b", "c", "d"]


def test_a_winner_picked_on_these_cases_is_corrected_for_all_pairs() -> None:
    rng = np.random.default_rng(2)
    base = rng.uniform(0.5, 0.9, 12)
    dice = {name: base - shift + rng.normal(0, 0.02, 12) for name, shift in (("a", 0.0), ("b", 0.01), ("c", 0.03), ("d", 0.02))}
    table = pd.concat([scores(name, values) for name, values in dice.items()])
    found = comparison.analyse(table)
    winner = found.summaries[0].name
    family = {frozenset(pair): enumerated(dice[pair[0]] - dice[pair[1]]) for pair in itertools.combinations(dice, 2)}
    running, expected = 0.0, {}
    for factor, (pair, p) in zip(range(6, 0, -1), sorted(family.items(), key=lambda item: item[1]), strict=True):
        running = max(running, min(1.0, factor * p))
        expected[pair] = running
    for one in found.comparisons:
        assert one.p_holm == pytest.approx(expected[frozenset({winner, one.second})])
    fixed = comparison.analyse(table, winner)  # chosen elsewhere: three comparisons
    assert sum(c.p_holm for c in fixed.comparisons) < sum(c.p_holm for c in found.comparisons)


def test_differences_are_paired_by_case_and_averaged_over_seeds() -> None:
    one = pd.concat([scores("a", np.array([0.5, 0.7, 0.9])), scores("a", np.array([0.7, 0.7, 0.5]), seed=1)])  # means .6 .7 .7
    two = scores("b", np.array([0.5, 0.5, 0.6])).sample(frac=1, random_state=0)  # in another order
    (found,) = compare(pd.concat([one, two]), "a", ["b"])
    assert found.difference == pytest.approx((0.1 + 0.2 + 0.1) / 3)
    assert (found.cases, found.groups, found.differing) == (3, 3, 3)
    assert found.verdict == "too few"
    assert "only 3 of 3 independent cases differ, and it needs 6" in found.sentence()
    with pytest.raises(ValueError, match="same cases"):
        compare(pd.concat([one, two[:2]]), "a", ["b"])
    with pytest.raises(ValueError, match="no scores of 'c'"):
        compare(one, "a", ["c"])


def test_rounding_makes_no_difference_of_equal_scores() -> None:
    values = np.linspace(0.3, 0.9, 9)
    seeds = [values, values + 0.1, values / 3]
    table = pd.concat([scores("a", v, seed=s) for s, v in enumerate(seeds)] + [scores("b", v, seed=s) for s, v in enumerate(seeds[::-1])])
    (found,) = compare(table, "a", ["b"])
    assert (found.difference, found.p_holm, found.differing, found.verdict) == (0, 1, 0, "same")
    assert "scored the same on every case" in found.sentence()
    assert [summary.name for summary in summarise(table)] == ["a", "b"]  # of equals the first


def test_a_clear_lead_is_told_and_a_doubtful_one_is_not() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.4, 0.9, 40)
    table = pd.concat(
        [scores("a", base), scores("b", base - 0.03 + rng.normal(0, 0.02, 40)), scores("c", base + rng.normal(0, 0.05, 40) - 0.002)]
    )
    clear, doubtful = compare(table, "a", ["b", "c"])
    assert clear.sentence().startswith("a is better than b as these models were trained (difference 0.0")
    assert clear.sentence().endswith("but of one seed nothing is known of others: other trainings may turn it round.")
    assert clear.low < 0.03 < clear.high
    assert doubtful.sentence().startswith("a and c cannot be told apart (difference")
    assert "after Holm" in doubtful.sentence()
    (mirrored,) = compare(table, "b", ["a"])
    assert mirrored.verdict == "worse"
    assert mirrored.difference == pytest.approx(-clear.difference)


def test_a_mean_that_a_few_cases_make_is_not_called_better() -> None:
    """Most cases speak against the one whose mean is higher: rank test and mean disagree."""
    differences = np.array([0.9, 0.8, 0.85] + [-0.01 - 0.0001 * i for i in range(30)])
    (found,) = compare(pd.concat([scores("a", 0.05 + differences.clip(0)), scores("b", 0.05 - differences.clip(None, 0))]), "a", ["b"])
    assert found.difference > 0.05
    assert found.p_holm < 0.05
    assert found.verdict == "unclear"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        values = rng.gamma(2.0, 1.0, 40)  # skewed, mean 2
        low, high = interval(values, np.arange(40), resamples=499)
        hits += low <= 2.0 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_patients_are_drawn_whole() -> None:
    """Four images of each patient say little more than one: an interval over images would be half as wide, and wrong."""
    rng = np.random.default_rng(4)
    hits, narrow = 0, 0
    for _ in range(200):
        effect = rng.normal(0, 1, 40)
        values, patients = np.repeat(effect, 4) + rng.normal(0, 0.1, 160), np.repeat(np.arange(40), 4)
        low, high = interval(values, patients, resamples=299)
        hits += low <= 0 <= high
        alone = interval(values, np.arange(160), resamples=299)
        narrow += alone[0] <= 0 <= alone[1]
    assert 0.88 <= hits / 200 <= 0.99
    assert narrow / 200 <= 0.78
    values, patients = rng.normal(0, 1, 12), np.repeat(np.arange(6), 2)
    assert interval(values, patients) == pytest.approx(interval(values.reshape(6, 2).mean(axis=1), np.arange(6)))


def test_the_rank_test_counts_patients() -> None:
    rng = np.random.default_rng(5)
    groups = [f"p{number // 4}" for number in range(20)]
    base = rng.uniform(0.5, 0.8, 20)
    gain = np.round(rng.normal(0.1, 0.02, 20), 3)
    (found,) = compare(pd.concat([scores("a", base + gain, groups=groups), scores("b", base, groups=groups)]), "a", ["b"])
    assert (found.cases, found.groups) == (20, 5)
    assert found.verdict == "too few"
    assert found.p == 2 / 2**5
    assert (found.low, found.high) == pytest.approx(interval(gain.reshape(5, 4).mean(axis=1), np.arange(5)))


def test_a_patient_with_many_images_counts_for_each() -> None:
    """The mean over the drawn images: it cannot leave the range of the values, as it would if numbers of images were drawn apart."""
    patients = np.repeat(np.arange(8), [1, 1, 2, 3, 5, 8, 13, 21])
    values = 0.5 + 0.01 * np.sin(np.arange(len(patients)))
    low, high = interval(values, patients)
    assert 0.49 <= low < values.mean() < high <= 0.51


def test_an_interval_of_equal_values_is_their_value_and_of_one_group_unknown() -> None:
    assert interval(np.full(9, 0.25), np.arange(9)) == (0.25, 0.25)
    assert all(math.isnan(end) for end in interval(np.array([0.1, 0.4]), np.array([1, 1])))
    low, high = interval(np.array([0.0] * 8 + [1.0]), np.arange(9))
    assert 0 <= low < 1 / 9 < high <= 1
    assert interval(np.array([0.1, 0.5, 0.6]), np.arange(3)) == interval(np.array([0.1, 0.5, 0.6]), np.arange(3))


def test_a_summary_has_mean_and_deviation_of_the_seeds() -> None:
    table = pd.concat([scores("a", np.array([0.5, 0.7])), scores("a", np.array([0.7, 0.9]), seed=3), scores("b", np.array([0.95, 0.95]))])
    best, other = summarise(table)
    assert (best.name, best.sd) == ("b", None)
    assert other.seeds == {0: pytest.approx(0.6), 3: pytest.approx(0.8)}
    assert other.mean == pytest.approx(0.7)
    assert other.sd == pytest.approx(math.sqrt(0.02))
    assert other.scores == {"dice": pytest.approx(0.7), "hd95": 1.0}


def test_files_are_joined_with_their_names_as_text(tmp_path: Path) -> None:
    for name in ("one", "two", "short"):
        lines = ["case,dice,hd95,protocol", "0001,0.5,3,resized", *(["NA,0.25,4,resized"] if name != "short" else [])]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    files = {("a", 0): tmp_path / "one.csv", ("a", 1): tmp_path / "two.csv"}
    table = read_scores(files, {"0001": "patient"})
    assert table[["seed", "case", "group", "dice"]].to_numpy().tolist() == [
        [0, "0001", "patient", 0.5], [0, "NA", "NA", 0.25], [1, "0001", "patient", 0.5], [1, "NA", "NA", 0.25],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="same cases"):
        read_scores({**files, ("b", 0): tmp_path / "short.csv"}, {})


def test_the_page_says_first_whether_the_best_can_be_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    base = rng.uniform(0.4, 0.9, 30)
    table = pd.concat(
        [scores(n, base + rng.normal(shift, 0.03, 30), seed=s) for n, shift in (("x", 0.0), ("y", 0.002), ("z", -0.1)) for s in (0, 1)]
    )
    validation = comparison.analyse(table)
    winner = validation.summaries[0].name
    test = comparison.analyse(table[table["configuration"].isin([winner, "z"])], winner)
    page = comparison.markdown("T", {"x": "the first"}, validation, test, ["budget: 2 epochs"], ["now: why", "then: again"], "f.png")
    second = validation.summaries[1].name
    assert page.index(f"Winner on validation: {winner}") < page.index(f"{winner} and {second} cannot be told apart") < page.index("## ")
    assert f"{winner} is better than z" in page
    assert f"On the sealed test: {winner} is better than z" in page
    assert "opened 2 times, as far" in page
    assert len(comparison.csv_text(validation, test).splitlines()) == 1 + 180 + 120
    comparison.draw(validation, tmp_path / "reports" / "f.png", "T")
    with Image.open(tmp_path / "reports" / "f.png") as picture:
        assert picture.width > 600
    alone = comparison.analyse(table[table["configuration"] == "x"])
    assert "nothing to compare it with" in comparison.markdown("T", {}, alone, None, [], [], "f.png")
    patients = comparison.analyse(scores("x", base, groups=[f"p{n // 2}" for n in range(30)]))
    assert patients.cases == "30 cases of 15 patients"


def test_seeds_that_scatter_more_than_the_difference_are_told() -> None:
    """All cases agree, but one seed of the better configuration is worse than the other one's."""
    rng = np.random.default_rng(7)
    base = rng.uniform(0.3, 0.5, 30)
    lucky = [scores("a", base + gain, seed=seed) for seed, gain in enumerate((0.3, -0.02, 0.05))]
    steady = [scores("b", base + rng.normal(0, 0.001, 30), seed=seed) for seed in range(3)]
    (found,) = compare(pd.concat([*lucky, *steady]), "a", ["b"])
    means = [part["dice"].mean() for part in (*lucky, *steady)]
    assert found.seed_error == pytest.approx(math.sqrt(np.var(means[:3], ddof=1) / 3 + np.var(means[3:], ddof=1) / 3))
    assert found.verdict == "better"
    assert f"but the seeds scatter (standard error {found.seed_error:.4f})" in found.sentence()
    (sure,) = compare(pd.concat([*(scores("a", base + 0.1 + seed / 100, seed=seed) for seed in range(3)), *steady]), "a", ["b"])
    assert sure.sentence().startswith("a is better than b (difference")


def test_few_seeds_ask_for_more_than_two_standard_errors() -> None:
    """Against SciPy's own test: of three seeds each, two standard errors are left out by chance in every sixth comparison."""
    base = np.linspace(0.3, 0.5, 30)
    one, two = (0.10, 0.12, 0.17), (0.05, 0.07, 0.09)
    parts = [scores(name, base + gain, seed=seed) for name, gains in (("a", one), ("b", two)) for seed, gain in enumerate(gains)]
    (found,) = compare(pd.concat(parts), "a", ["b"])
    known = stats.ttest_ind(one, two, equal_var=False)
    assert found.seed_freedom == pytest.approx(known.df)
    assert found.difference / found.seed_error == pytest.approx(known.statistic)
    assert found.difference > 2 * found.seed_error
    assert found.seeds_doubt == (known.pvalue > 0.05) == True  # noqa: E712


def test_a_worse_winner_on_the_test_is_told() -> None:
    found = Comparison("a", "b", -0.05, -0.08, -0.02, 0.001, 0.001, 40, 40, 40, -1, 0.01, 4.0)
    assert found.sentence() == "a is worse than b (difference -0.0500, 95% interval -0.0800 to -0.0200, p 0.001 after Holm)."
