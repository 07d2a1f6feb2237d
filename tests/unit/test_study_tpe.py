"""The estimator behind TPE: places of values, densities over a space with conditions, and what is proposed."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from space_helpers import GUIDE, search_space

from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, load_space, read_space
from guidino_tune.study.tpe import Density, Places, propose


def space_of(**more: dict[str, object]) -> Space:
    """A choice, a number that is only there with one of its values, and one that always is."""
    return search_space(
        experiment={"guide": GUIDE},
        space={
            "guide.lora.rank": {"choices": [0, 4]},
            "guide.lora.alpha": {"type": "float", "low": 1, "high": 64, "log": True, "when": {"guide.lora.rank": {"gt": 0}}},
            "loss.lambda_guide": {"type": "float", "low": 0, "high": 1},
            **more,
        },
        first_trials=[],
    )


def drawn(space: Space, number: int) -> list[Values]:
    generator = random.Random(0)
    return [space.walk(lambda path, parameter: parameter.draw(generator))[0] for _ in range(number)]


PARAMETERS = st.one_of(
    st.tuples(st.floats(-1e3, 1e3), st.floats(0.1, 1e3)).map(lambda x: {"type": "float", "low": x[0], "high": x[0] + x[1]}),
    st.tuples(st.floats(1e-5, 1e2), st.floats(1.5, 1e4)).map(lambda x: {"type": "float", "low": x[0], "high": x[0] * x[1], "log": True}),
    st.tuples(st.integers(-50, 50), st.integers(1, 2000)).map(lambda x: {"type": "int", "low": x[0], "high": x[0] + x[1]}),
    st.tuples(st.integers(1, 50), st.integers(1, 2000)).map(lambda x: {"type": "int", "low": x[0], "high": x[0] + x[1], "log": True}),
    st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)).map(
        lambda x: {"type": "int", "low": x[0], "high": x[0] + x[1] * x[2], "step": x[1]}
    ),
    st.lists(st.one_of(st.booleans(), st.integers(2, 5), st.text(max_size=3)), min_size=1, unique_by=repr).map(lambda x: {"choices": x}),
)


@settings(max_examples=60, deadline=None)
@given(parameter=PARAMETERS, seed=st.integers(0, 99))
def test_a_value_has_its_place_and_every_place_a_value(parameter: dict[str, object], seed: int) -> None:
    space = search_space(space={"loss.lambda_guide": parameter}, first_trials=[])
    places, declared = Places(space), space.parameters["loss.lambda_guide"]
    column = places.columns["loss.lambda_guide"]
    value = declared.draw(random.Random(seed))
    row = places.row({"loss.lambda_guide": value})
    back = places.value("loss.lambda_guide", row[column])
    assert back == pytest.approx(value) if declared.type == "float" else (back == value and type(back) is type(value))
    for at in (0.0, random.Random(seed).random(), 1.0):
        place = at if not declared.choices else int(at * (len(declared.choices) - 1))
        assert declared.contains(places.value("loss.lambda_guide", place))


def test_what_the_space_no_longer_has_is_not_active() -> None:
    places = Places(space_of())
    row = places.row({"guide.lora.rank": 8, "training.momentum": 0.9, "loss.lambda_guide": 2.0})
    at = places.columns
    assert math.isnan(row[at["guide.lora.rank"]])
    assert math.isnan(row[at["guide.lora.alpha"]])
    assert row[at["loss.lambda_guide"]] == 1


def test_what_is_active_is_what_the_space_would_ask_for() -> None:
    """In a space of kinds and one of recipes, where it is remembered by the values that decide it, as if each were asked for anew."""
    kinds = {"segmenter.kind": {"choices": ["unet", "segguidino"]}, "segmenter.base_width": {"choices": [4, 8]}}
    rate = {"training.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
    made = {kind: {"data": {"kind": "demo"}, "segmenter": {"kind": kind}} for kind in ("unet", "segguidino")}
    recipes = {"recipe": {"choices": list(made)}, "segmenter.base_width": {"choices": [4, 8]}}
    few = {"experiment": made["unet"], "space": {**kinds, **rate}}
    of_recipes = {"experiment": made["unet"], "recipes": made, "space": {**recipes, **rate}}
    for space in (load_space("kvasir"), *(read_space(values, source="a test") for values in (few, of_recipes))):
        places = Places(space)
        seen = set[frozenset[str]]()
        for row in Density(np.empty((0, len(places.columns))), places.choices).draw(300, np.random.default_rng(0)):
            values, _ = space.walk(lambda path, _, row=row, of=places: of.value(path, row[of.columns[path]]))  # type: ignore[misc]
            active = places.active(row)
            assert {path for path, column in places.columns.items() if not np.isnan(active[column])} == values.keys()
            seen.add(frozenset(values))
        assert len(seen) > 1


def test_the_density_is_one_over_all_branches_together() -> None:
    """Its integral: without adapters over one number, with them over two."""
    space = space_of()
    places = Places(space)
    density = Density(np.array([places.row(v) for v in drawn(space, 9)]), places.choices)
    at, grid = places.columns, (np.arange(100) + 0.5) / 100
    total = 0.0
    for rank in (0, 1):
        rows = np.full((100 if rank == 0 else 100 * 100, len(at)), np.nan)
        rows[:, at["guide.lora.rank"]] = rank
        other = [column for path, column in at.items() if not path.startswith("guide.lora")]
        assert at["loss.lambda_guide"] in other
        rows[:, at["loss.lambda_guide"]] = np.tile(grid, len(rows) // 100)
        if rank:
            rows[:, at["guide.lora.alpha"]] = np.repeat(grid, 100)
        total += np.exp(density.logarithm(rows)).sum() / len(rows)
    assert total == pytest.approx(1, abs=1e-3)


def test_a_kernel_is_a_normal_that_is_reflected_at_the_ends() -> None:
    density, at = Density(np.array([[0.1], [0.15], [0.6]]), np.array([0])), np.linspace(0, 1, 7)
    expected = np.ones(7) / 4  # the kernel over the whole space
    for centre in (0.1, 0.15, 0.6):
        expected += sum(stats.norm.pdf(x, centre, 0.25) for x in (at, -at, 2 - at)) / 4
    assert density.logarithm(at[:, None]) == pytest.approx(np.log(expected))
    many = Density(np.full((3000, 1), 0.5), np.array([0])).logarithm(np.array([[0.5]]))  # Scott's rule
    assert np.exp(many[0]) == pytest.approx(stats.norm.pdf(0, 0, 0.2 * 3000 ** (-1 / 5)), rel=1e-3)


def test_choices_keep_a_share_for_what_was_not_chosen_yet() -> None:
    density = Density(np.array([[0.0], [0.0], [2.0]]), np.array([4]))
    # As Optuna: a quarter of a choice is added to each choice of each trial; the whole space has all four alike.
    expected = [
        (2 * 1.25 + 0.25) / 2 / 4 + 1 / 16,
        3 * 0.25 / 2 / 4 + 1 / 16,
        (1.25 + 2 * 0.25) / 2 / 4 + 1 / 16,
        3 * 0.25 / 2 / 4 + 1 / 16,
    ]
    assert np.exp(density.logarithm(np.arange(4.0)[:, None])) == pytest.approx(expected)


def test_it_draws_what_it_says() -> None:
    """Means of a number in tenths of its range, and of a choice, against the density."""
    space = space_of()
    places = Places(space)
    density = Density(np.array([places.row(v) for v in drawn(space, 6)]), places.choices)
    rows = density.draw(20_000, np.random.default_rng(0))
    at = places.columns
    shown = np.array([places.active(row) for row in rows[:4000]])
    assert np.array_equal(np.isnan(shown[:, at["guide.lora.alpha"]]), shown[:, at["guide.lora.rank"]] == 0)
    share = np.histogram(rows[:, at["loss.lambda_guide"]], 10, (0, 1))[0] / len(rows)
    fine, one = (np.arange(200) + 0.5) / 200, np.full((200, len(at)), np.nan)
    one[:, at["loss.lambda_guide"]] = fine
    expected = np.exp(density.logarithm(one)).reshape(10, 20).mean(1) / 10
    assert share == pytest.approx(expected, abs=0.012)


def test_a_proposal_is_like_the_good_ones_and_unlike_the_others() -> None:
    space = space_of()
    places = Places(space)
    good = [places.row({"guide.lora.rank": 4, "guide.lora.alpha": a, "loss.lambda_guide": 0.8}) for a in (8, 9, 10, 11)]
    bad = [places.row({"guide.lora.rank": 0, "loss.lambda_guide": n / 20}) for n in range(12)]
    found = [propose(places, good, bad, np.random.default_rng(seed)) for seed in range(40)]
    assert np.mean([v["guide.lora.rank"] == 4 for v in found]) > 0.9
    assert np.mean([5 < float(v["guide.lora.alpha"] or 0) < 16 for v in found]) > 0.7
    assert np.mean([float(v["loss.lambda_guide"] or 0) > 0.6 for v in found]) > 0.9
