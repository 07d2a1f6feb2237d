"""A search on recorded curves: clock, repeatability, tables, surrogate, messages."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from synthetic_curves import Formula, synthetic_space, synthetic_table

from guidino_tune.analysis.searches import Search, epochs_ratio, mean_interval
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.errors import UserError
from guidino_tune.simulate import main
from guidino_tune.simulation.curves import Curve, CurveTable, read_table, write_table
from guidino_tune.simulation.executor import FINALISTS, NOWHERE, SEEDS, after_comparison, new_study, simulate
from guidino_tune.simulation.sources import Forest, Rows, Surrogate
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import override
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder
from guidino_tune.study.trials import tried
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.compare import compare_study
from guidino_tune.workflows.simulate import SHIPPED


def shown(study: optuna.Study) -> list[Any]:
    return [(t.number, t.state.name, t.params, t.intermediate_values) for t in study.get_trials(deepcopy=False)]


class Fixed(Formula):
    """The paper's configuration takes 2 s an epoch, every other one 3 s; each is as good as the other."""

    def curve(self, values: Any, seed: int) -> Curve:
        first = values["loss.lambda_guide"] == 0.1
        return Curve(0, seed, values, np.array([0.1, 0.2]), np.full(2, 2.0 if first else 3.0))


def test_the_clock_is_that_of_a_schedule_by_hand() -> None:
    space = synthetic_space(2, sampler="random", pruner="none")
    result, study = simulate(space, Fixed(epochs=2), workers=2, epochs=6)
    # Worker 1: 0-2-4 (trial 0), 4-7-10 (trial 2); worker 2: 0-3-6 (trial 1), 6-9 (trial 3). Six epochs: at 2, 3, 4, 6, 7 and 9 s.
    assert (result.total_epochs, result.total_seconds, result.trials) == (6, 9.0, 4)
    # At 9 s, trial 2 has spent 3 s and begun 3 more; trial 3 is told its first epoch, and goes on with the second.
    assert result.worker_seconds == 4 + 6 + 6 + 6
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]
    assert result.epochs[:2] == (1, 3)  # the first epoch leads, then the first complete trial


def test_the_same_seed_gives_the_same_study_and_another_seed_another() -> None:
    table = Rows(synthetic_table(40, epochs=9))
    runs = [shown(simulate(synthetic_space(9, seed=seed), table, workers=3, epochs=90, losses=20.0)[1]) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_study_in_a_journal_is_decided_as_one_in_memory(tmp_path: Path) -> None:
    asked = dict[str, int]()

    class Watched(Driver):
        def ask(self, key: str) -> dict[str, Any] | None:
            asked[key] = asked.get(key, 0) + 1
            return super().ask(key)

    space, search = synthetic_space(9), functools.partial(simulate, source=Formula(epochs=9), workers=8, epochs=300, losses=20.0)
    studies = [search(space)[1], search(space, journal=tmp_path / "journal", make_driver=Watched)[1]]
    assert shown(studies[0]) == shown(studies[1])
    assert len(asked) >= len(studies[0].trials)


def test_a_simulated_study_is_that_of_a_plain_loop_of_the_driver() -> None:
    formula, space = Formula(epochs=9), synthetic_space(9, trials=12, seed=4, startup_trials=4, pruner="asha")
    budget = 200
    study = new_study(space, formula)
    driver = Driver(study, space, StudyFolder(NOWHERE), lambda number, experiment, record: None)
    epochs = 0
    while driver.remaining:
        assert driver.ask("one")
        curve = formula.curve(driver.running["one"].params, 4)
        for epoch, dice in enumerate(curve.dice, 1):
            epochs += 1
            if not driver.report("one", [EpochRecord(epoch, {OBJECTIVE: float(dice)}, 0.0)]):
                break
        else:
            driver.fail("one", "diverged", f"recorded as {curve.state}")
            epochs += 1
        driver.tell("one", crashed=False)
    assert epochs < budget
    assert shown(simulate(space, formula, workers=1, epochs=epochs)[1])[:12] == shown(study)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = synthetic_table(30, epochs=9, stopped=3)
    write_table(table, tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert (read.space.to_dict(), read.origin) == (table.space.to_dict(), table.origin)
    assert {c.state for c in read.curves} == {"complete", "stopped", "diverged"}
    for old, new in zip(table.curves, read.curves, strict=True):
        assert (old.configuration, old.seed, old.parameters, old.state) == (new.configuration, new.seed, new.parameters, new.state)
        np.testing.assert_array_equal(old.dice, new.dice)
        np.testing.assert_array_equal(old.seconds, new.seconds)


def test_exact_proposals_are_recorded_rows_each_once_while_there_are_others() -> None:
    table = synthetic_table(40, epochs=9, repeat=0)
    space = replace(synthetic_space(9, sampler="random"), first_trials=())
    _, study = simulate(space, Rows(table), workers=2, epochs=80)
    rows = [c.parameters for c in table.curves]
    params = [t.params for t in study.trials]
    assert all(p in rows for p in params)
    used = {repr(sorted(p.items())) for p in params}
    assert len(used) == len(params) < 40


def test_a_search_over_exact_rows_trains_each_of_them_and_nothing_else_and_then_ends() -> None:
    """One branch has a single row, which proposals use up at once; the random redraws, too, are rows."""
    table = synthetic_table(40, epochs=9, repeat=0)
    without = [c for c in table.curves if not c.parameters["guide.lora.rank"]]
    rows = Rows(CurveTable(table.space, (*[c for c in table.curves if c not in without][:20], without[0]), {}))
    for sampler in ("random", "tpe"):
        result, study = simulate(synthetic_space(9, sampler=sampler, startup_trials=5), rows, workers=2, epochs=10_000)
        params = [repr(sorted(t.params.items())) for t in tried(study)]
        assert sorted(params) == sorted(repr(sorted(values.items())) for values in rows.known)
        assert result.trials == 21
        assert all(t.state.is_finished() for t in study.trials)


def test_a_first_trial_over_exact_rows_is_a_row_even_where_it_leaves_values_open() -> None:
    rows = Rows(synthetic_table(40, epochs=9))
    space = replace(synthetic_space(9), first_trials=({"segmenter.kind": "ukan"}, {"segmenter.kind": "ukan"}))
    study = new_study(space, rows)
    fixed = [t.system_attrs["fixed_params"] for t in study.trials]
    assert fixed[0] != fixed[1]
    assert all(values in rows.known for values in fixed)


def test_a_forest_answers_as_scikit_learn_does() -> None:
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    rng = np.random.default_rng(0)
    inputs, asked = rng.random((80, 5)), rng.random((20, 5)).astype(np.float32)
    curves, kinds = inputs[:, :3] ** 2, rng.integers(0, 3, 80)
    regressor = ExtraTreesRegressor(20, random_state=0).fit(inputs, curves)
    classifier = ExtraTreesClassifier(20, random_state=0, min_samples_leaf=3).fit(inputs, kinds)
    for row in asked:
        np.testing.assert_allclose(Forest(regressor).mean(row), regressor.predict(row[None])[0], rtol=1e-12)
        np.testing.assert_allclose(Forest(classifier).mean(row), classifier.predict_proba(row[None])[0], rtol=1e-12)


def test_the_surrogate_tells_its_error_of_configurations_it_has_not_seen() -> None:
    table = synthetic_table(60, epochs=9, repeat=10, stopped=10)
    model, formula = Surrogate(table), Formula(epochs=9)
    unseen = [c.parameters for c in synthetic_table(90, epochs=9).curves[70:] if c.state == "complete"]
    real = float(np.mean([abs(model.quality(v) - formula.quality(v)) for v in unseen]))
    assert 0.5 * model.error < real < 2 * model.error
    assert f"{model.error:.4f}" in model.note
    assert "from 10 repetitions" in model.note or "from 9 repetitions" in model.note or "from 8 repetitions" in model.note


def test_simulated_trainings_are_as_good_and_as_unlucky_as_recorded_ones() -> None:
    """One in six collapses to a third: no training gains by as much as others lose, whatever model and repetitions say."""
    table, random = synthetic_table(160, epochs=9, repeat=60), np.random.default_rng(3)
    unlucky = [dataclasses.replace(c, dice=c.dice * (0.33 if random.random() < 1 / 6 else 1.0)) for c in table.curves]
    model = Surrogate(dataclasses.replace(table, curves=tuple(unlucky)))
    recorded = np.array([c.filled().max() for c in unlucky if not c.failed])
    new = [c.parameters for c in synthetic_table(500, epochs=9).curves[170:]]
    played = np.array([c.filled().max() for values in new if not (c := model.curve(values, 1)).failed])
    assert played.max() <= recorded.max() + 0.05
    assert np.mean(played < 0.3) == pytest.approx(np.mean(recorded < 0.3), abs=0.05)
    np.testing.assert_allclose(np.quantile(played, [0.25, 0.5, 0.75, 0.95]), np.quantile(recorded, [0.25, 0.5, 0.75, 0.95]), atol=0.05)
    pairs: dict[int, list[Curve]] = {}
    for curve in unlucky:
        pairs.setdefault(curve.configuration, []).append(curve)
    twice = [pair for pair in pairs.values() if len(pair) > 1 and not any(c.failed for c in pair)]
    differ = np.mean([abs(one.dice.max() - other.dice.max()) for one, other in twice])
    again = [
        abs(model.curve(p[0].parameters, s).dice.max() - model.curve(p[0].parameters, s + 100).dice.max()) for p in twice for s in range(40)
    ]
    assert np.mean(again) == pytest.approx(differ, rel=0.2)
    best = new[int(np.argmax([model.quality(values) for values in new]))]
    assert model.quality(best) == pytest.approx(np.mean([model.curve(best, seed).filled().max() for seed in range(400)]), abs=0.02)


def test_luck_can_be_made_less_and_none() -> None:
    table = synthetic_table(60, epochs=9, repeat=10)
    values = table.curves[0].parameters

    def difference(scale: float) -> float:
        model = Surrogate(table, scale)
        return float(model.curve(values, 1).dice.max() - model.curve(values, 2).dice.max())

    without = Surrogate(table, 0)
    assert without.curve(values, 1).dice.max() == pytest.approx(without.quality(values))  # calibrated, not as predicted
    assert difference(0) == 0 != difference(1)
    assert difference(0.25) == pytest.approx(difference(1) / 4)
    assert difference(2) == pytest.approx(2 * difference(1))


def test_wrong_input_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("configuration,epoch\n")
    with pytest.raises(UserError, match="is no Parquet file"):
        read_table(tmp_path / "text.parquet")
    table = synthetic_table(12, epochs=9, stopped=4)
    with pytest.raises(UserError, match="stopped before their last epoch"):
        Rows(table)
    with pytest.raises(UserError, match="too few for a model"):
        Surrogate(CurveTable(table.space, table.curves[:3], {}))


def test_the_command_compares_methods_on_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(synthetic_table(30, epochs=9), tmp_path / "t.parquet")
    asked = [str(tmp_path / "t.parquet"), "--seeds", "2", "--workers", "2", "--epochs", "40", "--output", str(tmp_path / "out")]
    assert main([*asked, "--methods", "random+asha,random+asha/min_epochs=9"]) == 0
    page = (tmp_path / "out" / "simulation.md").read_text()
    assert "| 2 | random+asha | 2 |" in page
    trials = [int(line.split("|")[8]) for line in page.splitlines() if line.startswith("| 2 |")]
    assert trials[0] > trials[1] == 6  # the second one stops nothing: forty epochs are four whole trials, and two that run
    assert "1.00 [" in page  # the reference against itself
    assert (tmp_path / "out" / "simulation.png").read_bytes()[:4] == b"\x89PNG"
    assert len((tmp_path / "out" / "simulation.csv").read_text().splitlines()) == 1 + 2 * 2 * 50
    assert main([*asked, "--methods", "random+asha", "--luck", "0.3"]) == 0
    assert "luck of a seed: 0.3 of what was recorded" in (tmp_path / "out" / "simulation.md").read_text()
    assert main([*asked, "--methods", "random+asha"]) == 0
    told = (tmp_path / "out" / "simulation.csv").read_text()
    assert main([*asked, "--methods", "random+asha", "--no-first-trials"]) == 0
    assert told != (tmp_path / "out" / "simulation.csv").read_text()
    assert "without the space's first trials" in (tmp_path / "out" / "simulation.md").read_text()
    assert main([*asked, "--luck", "0.3", "--curves", "exact"]) == 2
    assert main([*asked, "--methods", "tpe"]) == 2
    assert main([*asked, "--methods", "tpee+asha"]) == 2
    assert main([*asked, "--methods", "tpe+asha/min_epoch=3"]) == 2
    told = capsys.readouterr().err
    assert "recorded curves are played as they are" in told
    assert "'tpe' is no method" in told
    assert "did you mean 'tpe'" in told
    assert "did you mean 'study.min_epochs'" in told


def test_two_processes_find_what_one_does_on_a_surrogate(tmp_path: Path) -> None:
    write_table(synthetic_table(30, epochs=9, stopped=4), tmp_path / "t.parquet")
    asked = [str(tmp_path / "t.parquet"), "--methods", "random+asha", "--seeds", "2", "--workers", "2", "--epochs", "40"]
    for jobs in ("1", "2"):
        assert main([*asked, "--curves", "surrogate", "--jobs", jobs, "--output", str(tmp_path / jobs)]) == 0
    assert (tmp_path / "1" / "simulation.csv").read_bytes() == (tmp_path / "2" / "simulation.csv").read_bytes()


def test_a_comparison_with_new_seeds_does_not_choose_whom_luck_made_the_best() -> None:
    class Lucky:
        """One that was lucky in the search's own seed, and one that is good."""

        def curve(self, values: Values, seed: int) -> Curve:
            dice = 0.6 if values["training.lr"] == 1e-3 else 0.9 if seed < 1000 else 0.4
            return Curve(0, seed, values, np.array([dice, 0.0]), np.ones(2))

        def quality(self, values: Values) -> float:
            return float(values["training.lr"])  # type: ignore[arg-type]

        def first(self, trials: Sequence[Values], seed: int) -> Sequence[Values]:
            return trials

    lucky, good = {"training.lr": 1e-4}, {"training.lr": 1e-3}
    space = override(dataclasses.replace(synthetic_space(9), first_trials=()), {"study.seed": 7})
    of = functools.partial(after_comparison, Lucky())  # type: ignore[arg-type]
    assert of([lucky, good], space) == 1e-3
    assert of([lucky], space) == 1e-4
    assert of([], space) is None
    assert of([lucky], dataclasses.replace(space, first_trials=(good,))) == 1e-3  # the default takes part
    # As many trials and seeds as the command takes.
    defaults = inspect.signature(compare_study).parameters
    assert (defaults["top"].default, defaults["seeds"].default) == (FINALISTS, SEEDS)
    found, study = simulate(override(synthetic_space(9), {"study.pruner": "none"}), Formula(epochs=9), workers=2, epochs=90)
    assert found.compared in [Formula(epochs=9).quality(trial.params) for trial in study.trials]


def test_epochs_to_a_quality_are_counted_from_the_mean_of_the_seeds() -> None:
    def search(method: str, at: int) -> Search:
        return Search(method, 1, 0, (1, at), (1.0, float(at)), (0.5, 0.1), 2, 0.0, 400, 400.0, 0.1)

    slow, fast = [search("random+asha", 200)] * 3, [search("tpe+asha", 50)] * 3
    assert epochs_ratio(fast, slow) == (0.25, 0.25, 0.25)
    assert mean_interval([0.25] * 4) == (0.25, 0.25, 0.25)
    # Easy and hard tasks, by seed: drawn apart, a mean over hard ones never gets to that over easy ones.
    slow, fast = ([replace(one, regrets=(0.9, end)) for end in (0.1, 0.5)] for one in (slow[0], fast[0]))
    assert epochs_ratio(fast, slow, paired=True) == (0.25, 0.25, 0.25)
    assert epochs_ratio(fast, slow)[2] == float("inf")


@pytest.mark.parametrize("name", ["kvasir", "isic2017", "ddti"])
def test_tables_that_come_with_the_package_are_whole_and_name_no_place(name: str) -> None:
    table = read_table(SHIPPED / f"recorded/{name}.parquet")
    assert len(table.curves) >= 44
    assert all(len(curve.dice) == table.epochs == 27 for curve in table.curves)
    assert {table.space.base.data.root, *(recipe.data.root for recipe in table.space.recipes.values())} == {None}
    assert all(table.space.experiment(curve.parameters).hash for curve in table.curves)
