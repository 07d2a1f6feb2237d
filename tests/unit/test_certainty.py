"""How sure a search is: against independent formulas, and on data whose answer is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import kendalltau
from synthetic_curves import Formula, synthetic_space

from guidino_tune.analysis.certainty import FEWEST, expected_gain, importance, mean_best, rung_agreement
from guidino_tune.simulation.executor import simulate
from guidino_tune.space.space import override
from guidino_tune.workflows.certainty import SAMPLE, Certainty


def test_the_mean_best_is_that_of_every_choice() -> None:
    values = np.random.default_rng(0).normal(size=7)
    for k in range(1, 8):
        assert mean_best(values, k) == pytest.approx(np.mean([max(chosen) for chosen in itertools.combinations(values, k)]))


def test_the_gain_of_more_trials_is_that_of_an_exponential_tail() -> None:
    """There the mean best of n is known: 1 + 1/2 + ... + 1/n."""
    random = np.random.default_rng(0)
    told = [expected_gain(random.exponential(size=60), 60).value for _ in range(60)]  # type: ignore[union-attr]
    assert np.mean(told) == pytest.approx(sum(1 / k for k in range(61, 121)), abs=0.15)
    assert expected_gain([0.5] * (FEWEST - 1), 10) is None


def test_agreement_is_one_without_noise_and_nothing_without_a_relation() -> None:
    random = np.random.default_rng(1)
    ends = random.random(40)
    curves = [{1: float(random.random()), 3: end / 2, 9: float(end)} for end in ends]
    found = rung_agreement(curves, (1, 3, 9))
    assert list(found) == [1, 3]
    assert (found[3].value, found[3].low) == pytest.approx((1, 1))
    assert found[1].low < 0 < found[1].high
    assert rung_agreement([{1: 0.1}] * 50, (1, 9)) == {}


def test_importance_is_the_share_of_variance_and_none_is_found_in_noise() -> None:
    """Of y = 2a + b with a and b uniform, a has four fifths of the variance; shuffled, it costs twice that (a' differs from a)."""
    random = np.random.default_rng(0)
    inputs = random.random((400, 3))
    dice = 2 * inputs[:, 0] + inputs[:, 1]
    groups = {"a": [0], "b": [1], "c": [2]}
    found = importance(inputs, groups, dice, resamples=4)
    assert list(found)[:2] == ["a", "b"]
    assert found["a"].value / found["b"].value == pytest.approx(4, rel=0.4)
    assert abs(found["c"].value) < 0.02
    assert importance(inputs[:40], groups, random.random(40)) == {}


def test_a_search_tells_what_its_own_trials_say() -> None:
    space = override(synthetic_space(27), {"study.sampler": "random", "study.pruner": "asha"})
    _, study = simulate(space, Formula(epochs=27), workers=4, epochs=900)
    certainty = Certainty(study, space)
    best = {t.number: max(v for e, v in t.intermediate_values.items() if e <= 3) for t in study.trials if 3 in t.intermediate_values}
    whole = [t for t in study.trials if len(t.intermediate_values) == 27]
    tau = kendalltau([best[t.number] for t in whole], [max(t.intermediate_values.values()) for t in whole]).statistic
    assert certainty.agreement[3].value == pytest.approx(tau)
    shares = certainty.importance(3)
    assert next(iter(shares)) in ("segmenter.kind", "training.lr")
    assert shares["training.lr"].low > 0
    assert shares["training.lr"].trials > len([t for t in study.trials if 27 in t.intermediate_values])
    lines = certainty.sentences()
    assert (lines[0].split()[0], lines[1].split()[0], lines[-1].split()[0]) == ("Early", "What", "As")
    # The rank of an adapter goes with its learning rate, which only adapters have.
    assert set(certainty._groups["training.lora_lr"]) < set(certainty._groups["guide.lora.rank"])


def test_of_thousands_of_trials_the_same_four_hundred_are_looked_at() -> None:
    """At the end of a search as in its report; drawn, for trials that come in turns would be of one kind when every fifth is taken."""
    space = override(synthetic_space(27), {"study.sampler": "random", "study.pruner": "asha"})
    _, study = simulate(space, Formula(epochs=27), workers=4, epochs=5000)
    certainty = Certainty(study, space)
    reached = len([t for t in study.trials if 3 in t.intermediate_values])
    assert reached > 1.5 * SAMPLE
    told = next(line for line in certainty.sentences() if "until epoch 3 " in line)
    assert f"(share of its variance, {SAMPLE} of {reached} trials)" in told
    assert {estimate.trials for estimate in certainty.importance(3).values()} == {SAMPLE}
    again = Certainty(study, space).importance(3)
    assert again == certainty.importance(3)
    assert f"training.lr {again['training.lr']}" in told
    whole = certainty.importance(3, None)
    assert whole["training.lr"].trials == reached
    assert abs(whole["training.lr"].value - again["training.lr"].value) < 0.3
