"""The weights of the best trials stay on the disk, those of the others do not."""

from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from test_study_driver import Run, result
from training_helpers import search_space

from guidino_tune.config import Study
from guidino_tune.errors import UserError
from guidino_tune.space.space import Space
from guidino_tune.study import store
from guidino_tune.study.driver import Driver
from guidino_tune.study.kept_weights import KeptWeights
from guidino_tune.study.store import BEGUN_BY
from guidino_tune.training.checkpoints import WEIGHTS
from guidino_tune.training.folder import EXPERIMENT, HISTORY
from guidino_tune.training.model_folder import find_weights

DICE = [0.3, 0.9, 0.1, 0.8, 0.7]


def space(**study: object) -> Space:
    return search_space(first_trials=[], study={"trials": len(DICE), "sampler": "random", "pruner": "none", **study})


def train(run: Run, dice: list[float], begin: int = 0) -> None:
    """Each trial writes best weights, as its process would, and tells its last epoch."""
    for number, value in enumerate(dice, begin):
        config = run.driver.ask("a")
        assert config["number"] == number
        best = run.folder.trial(number).best
        best.mkdir(parents=True)
        (best / WEIGHTS).write_bytes(b"weights")
        run.driver.report("a", result(config["experiment"]["training"]["epochs"], value))
        run.driver.tell("a", crashed=False)


def kept(run: Run) -> list[int]:
    return [t.number for t in run.study.get_trials() if run.folder.trial(t.number).best.exists()]


@pytest.mark.parametrize(("keep", "expected"), [(1, [1]), (2, [1, 3]), (20, [0, 1, 2, 3, 4]), ("all", [0, 1, 2, 3, 4])])
def test_the_best_keep_their_weights(keep: int | str, expected: list[int], tmp_path: Path) -> None:
    run = Run(tmp_path, space(keep_weights=keep))
    train(run, DICE)
    assert kept(run) == expected


def test_a_study_that_goes_on_knows_what_is_kept_and_may_keep_another_number(tmp_path: Path) -> None:
    first = Run(tmp_path, space(keep_weights=2))
    train(first, DICE[:3])
    assert kept(first) == [0, 1]
    second = Run(tmp_path, space(keep_weights=1))
    train(second, DICE[3:], begin=3)
    assert kept(second) == [0, 1]  # what the other number leaves over goes with the end of the search
    assert second.driver.kept.others(second.study.get_trials()) == {0, 2, 3, 4}


def test_what_a_dead_driver_left_is_found(tmp_path: Path) -> None:
    """It told a trial's end, and died before it removed the weights."""
    run = Run(tmp_path, space(keep_weights=1))
    train(run, DICE)
    assert KeptWeights(run.study, run.space.study).others(run.study.get_trials()) == {0, 2, 3, 4}
    assert KeptWeights(run.study, Study(keep_weights="all")).others(run.study.get_trials()) == set()


@pytest.mark.parametrize(("keep", "left"), [(20, False), ("all", True)])
def test_a_trial_that_was_stopped_early_keeps_no_weights(keep: int | str, left: bool, tmp_path: Path) -> None:
    run = Run(tmp_path, space(keep_weights=keep, constraints={"memory": 1.0}))
    config = run.driver.ask("a")
    run.folder.trial(0).best.mkdir(parents=True)
    (record,) = result(1, 0.5)
    assert config["number"] == 0
    assert not run.driver.report("a", [type(record)(1, {**record.metrics, "memory": 2.0}, record.time)])
    run.driver.tell("a", crashed=False)
    assert run.trial(0).state == TrialState.PRUNED
    assert run.folder.trial(0).best.exists() == left


@pytest.mark.parametrize(("keep", "left"), [(20, [0]), ("all", [0, 1])])
def test_trials_that_waited_to_the_end_keep_none(keep: int | str, left: list[int], tmp_path: Path) -> None:
    run = Run(tmp_path, space(keep_weights=keep, pruner="promotion", reduction_factor=2, trials=2))
    for key in ("a", "b"):
        config = run.driver.ask(key)
        run.folder.trial(config["number"]).best.mkdir(parents=True)
    for key, dice in (("a", 0.9), ("b", 0.1)):
        assert not run.driver.report(key, result(1, dice))
        run.driver.tell(key, crashed=False)
    assert kept(run) == [0, 1]  # they wait, and may go on
    while config := run.driver.ask("c"):
        assert config["number"] == 0
        at = config["reported"]
        while run.driver.report("c", result(at := at + 1, 0.9)):
            pass
        run.driver.tell("c", crashed=False)
    assert [t.state for t in run.study.get_trials()] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert kept(run) == left


def test_while_a_worker_group_ends_its_folder_is_left_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, space(keep_weights=1))
    run.driver = Driver(run.study, run.space, run.folder, lambda *_: None, {"executor": "train"})
    train(run, [0.9, 0.5, 0.95])
    assert kept(run) == [1, 2]  # trial 1 goes when the search ends: it was never kept, and its process may still have been there


def trials_of(values: list[tuple[float, ...]]) -> list[FrozenTrial]:
    return [
        create_trial(
            state=TrialState.COMPLETE, values=list(v), params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)},
            intermediate_values={1: v[0]},
        )
        for v in values
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12), st.integers(1, 4), st.booleans())
def test_kept_are_the_best_and_the_front(pairs: list[tuple[int, int]], most: int, several: bool) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"] if several else ["maximize"])
    study.set_user_attr(BEGUN_BY, 1)
    values = [(float(a), float(b)) if several else (float(a),) for a, b in pairs]
    weights, there = KeptWeights(study, Study(keep_weights=most)), set()
    for trial in trials_of(values):
        study.add_trial(trial)
        newest = study.get_trials(deepcopy=False)[-1]
        there.add(newest.number)
        there -= weights.closed(newest)
    order = sorted(range(len(values)), key=lambda n: (-values[n][0], *(values[n] if several else ()), n))
    expected = set(order[:most])
    if several:
        expected |= {n for n, (a, b) in enumerate(values) if not any(x >= a and y <= b and (x, y) != (a, b) for x, y in values)}
    assert there <= expected | set(order[:most])
    # One that fell out and would be back on the front later cannot be: points are only ever added.
    assert there == expected
    assert KeptWeights(study, Study(keep_weights=most)).others(study.get_trials()) == set(range(len(values))) - expected


def test_a_study_from_before_there_was_such_a_setting_keeps_all_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store, "BEGUN_BY", "unheard of")
        run = Run(tmp_path, space())
    text = run.folder.definition.read_text()
    assert "keep_weights" in text
    run.folder.definition.write_text("".join(line for line in text.splitlines(True) if "keep_weights" not in line))
    again = Run(tmp_path, space(keep_weights=1))
    train(again, DICE)
    assert kept(again) == [0, 1, 2, 3, 4]
    assert again.driver.kept.others(again.study.get_trials()) == set()


def test_the_message_for_a_trial_without_weights_says_why(tmp_path: Path) -> None:
    for name in (EXPERIMENT, HISTORY):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="no weights were kept"):
        find_weights(tmp_path)


@pytest.mark.parametrize("value", [0, -1, "some", True, 1.5])
def test_other_numbers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a number of trials from 1 is needed, or all"):
        Study(keep_weights=value)  # type: ignore[arg-type]
