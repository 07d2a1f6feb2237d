"""The choice of an ensemble's members: against brute force, and what it claims to gain on cases that had no part in it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidino_tune.analysis.selection import Members, best_of, greedy, held_out, ranked, weights_of

CASES = 40
EVERYWHERE = np.arange(CASES)


class Models:
    """Models that give a number for each of 400 questions of a case, the greater the surer of what is right, with errors of their own."""

    def __init__(self, errors: list[float], seed: int = 0, *, same: bool = False) -> None:
        rng = np.random.default_rng(seed)
        drawn = rng.normal(size=(1 if same else len(errors), CASES, 400))
        self.said = 1 / (1 + np.exp(-(1 + np.array(errors)[:, None, None] * drawn)))

    def __call__(self, members: Members) -> np.ndarray:
        return (self.said[list(members)].mean(0) > 0.5).mean(-1)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.5, 4), min_size=2, max_size=5), st.integers(1, 3), st.integers(0, 99))
def test_each_step_adds_the_member_that_improves_the_mean_most(errors: list[float], most: int, seed: int) -> None:
    dice = Models(errors, seed)
    steps = greedy(dice, len(errors), most, EVERYWHERE)
    assert len(steps) == 2 * most
    before: tuple[int, ...] = ()
    for step in steps:
        allowed = [m for m in range(len(errors)) if len(set(before) | {m}) <= most]
        scores = {m: dice(tuple(sorted((*before, m)))).mean() for m in allowed}
        (added,) = [m for m in set(step.members) if step.members.count(m) != before.count(m)]
        assert scores[added] == pytest.approx(max(scores.values()))
        assert step.dice == pytest.approx(scores[added])
        before = step.members
    best = best_of(steps)
    assert best.dice >= max(dice((m,)).mean() for m in range(len(errors))) - 1e-12
    assert len(weights_of(best.members)) <= most


def test_of_equals_the_first_and_the_fewest_are_taken() -> None:
    steps = greedy(Models([2] * 4, same=True), 4, 3, EVERYWHERE)
    assert best_of(steps).members == (0,)
    assert ranked(Models([3, 1, 2]), 3, EVERYWHERE) == [1, 2, 0]


def test_members_that_err_apart_gain_on_cases_that_had_no_part_in_the_choice() -> None:
    gains = held_out(Models([2] * 6), 6, 5, EVERYWHERE)
    assert gains["greedy"].low > 0.05
    assert gains["best"].low > 0.05
    alike = held_out(Models([2] * 6, same=True), 6, 5, EVERYWHERE)
    assert (alike["greedy"].mean, alike["best"].mean) == (0, 0)


def test_luck_of_the_choice_is_not_counted_as_gain() -> None:
    """Models that score by chance alone: on the cases of the choice the best mean looks better than one model, on others it is not."""
    inside, outside = [], []
    for seed in range(12):
        luck = np.random.default_rng(seed)
        means = [members for n in range(1, 5) for members in itertools.combinations_with_replacement(range(9), n)]
        dice = {members: luck.normal(0.8, 0.05, CASES) for members in means}.__getitem__
        inside.append(best_of(greedy(dice, 9, 2, EVERYWHERE)).dice - max(dice((m,)).mean() for m in range(9)))
        outside.append(held_out(dice, 9, 2, EVERYWHERE)["greedy"].mean)
    assert np.mean(inside) > 0.002
    assert abs(np.mean(outside)) < np.mean(inside) / 2


def test_whole_groups_are_drawn_and_too_few_say_nothing() -> None:
    dice = Models([2] * 4)
    assert held_out(dice, 4, 2, np.repeat([0, 1, 2], [20, 10, 10])) == {}
    grouped = held_out(dice, 4, 2, np.arange(CASES) // 10)
    assert grouped["greedy"].low <= grouped["greedy"].mean <= grouped["greedy"].high
    # One case per group is divided otherwise, and has another interval.
    assert grouped != held_out(dice, 4, 2, EVERYWHERE)
