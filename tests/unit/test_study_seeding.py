"""The best configurations of earlier studies as first trials of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from study_helpers import drive, run_trial
from synthetic_curves import Formula, synthetic_space
from training_helpers import search_space

from guidino_tune.errors import UserError
from guidino_tune.simulation.executor import NOWHERE, simulate
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, read_space
from guidino_tune.study.seeding import MOST, SEEDED, choose_seeds, find_seeds, queue_seeds
from guidino_tune.study.store import StoredStudy, StudyFolder, open_study
from guidino_tune.study.trials import ranking

WIDTHS = {"choices": [2, 4, 8]}
RATES = {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}
OTHER = {"data": {"kind": "demo", "image_size": 64}}


def tried(folder: Path, space: Space, *trials: tuple[Values, float]) -> None:
    driver = drive(folder, space)
    for values, value in trials:
        driver.study.enqueue_trial(dict(values))
        run_trial(driver, [value] * 4)


def with_rates(width: int | None = None, **guide: object) -> Space:
    """A space over rates, and over widths unless one is fixed, of other data."""
    experiment = {**OTHER, **({"guide": guide} if guide else {}), "segmenter": {"kind": "unet", "base_width": width or 2}}
    values = search_space(first_trials=[], study={"pruner": "none", "trials": 40}).to_dict()
    values["experiment"] |= experiment
    values["space"] = {"training.lr": RATES} | ({} if width else {"segmenter.base_width": WIDTHS})
    return read_space(values, source="small.yaml")


def test_the_best_of_each_study_are_tried_in_turns_behind_the_spaces_own(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    rates = [1e-2, 2e-2, 3e-2, 4e-2, 5e-2, 6e-2, 7e-2]
    # The best one lies outside the new space, two have the same values, and one failed.
    tried(a, with_rates(), *(({"training.lr": r, "segmenter.base_width": 2}, r) for r in rates[:5]))
    tried(a, with_rates(), ({"training.lr": 9e-2, "segmenter.base_width": 8}, 0.9))
    tried(b, with_rates(4), *(({"training.lr": r}, r) for r in rates))  # there the width was fixed
    driver = drive(b, with_rates(4))
    driver.ask("t")
    driver.fail("t", "diverged", "oh")
    driver.tell("t", crashed=False)
    space = search_space(
        space={"training.lr": RATES, "segmenter.base_width": {"choices": [2, 4]}},
        first_trials=[{"training.lr": 1e-3}],
        study={"trials": 40},
    )
    seeds = find_seeds(space, [a, b])
    expected = [(r, w) for n in range(MOST) for r, w in ((rates[4 - n], 2), (rates[6 - n], 4))]
    assert [(s.values["training.lr"], s.values["segmenter.base_width"]) for s in seeds.trials] == expected
    assert "5 first trials are the best of study" in seeds.notes[0]
    assert "left out: trial 5: segmenter.base_width = 8 lies outside 2, 4" in seeds.notes[0]
    assert "left out" not in seeds.notes[1]
    driver = drive(tmp_path / "new", space)
    queue_seeds(driver.study, seeds)
    asked = [run_trial(driver) for _ in range(3)]
    assert [a["experiment"]["training"]["lr"] for a in asked if a] == [1e-3, rates[4], rates[6]]
    assert driver.study.trials[1].user_attrs[SEEDED].startswith("trial 4 of ")
    before = len(driver.study.trials)
    again = open_study(space, StudyFolder(tmp_path / "new"))
    tried(a, with_rates(), ({"training.lr": 8e-2, "segmenter.base_width": 2}, 0.8))  # the same command, and the other study went on
    queue_seeds(again, find_seeds(space, [a, b]))
    assert len(again.trials) == before
    assert sum(t.state == TrialState.WAITING for t in again.trials) == 1 + 2 * MOST - 3


def test_what_cannot_be_started_from_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such study"):
        find_seeds(with_rates(), [tmp_path / "nowhere"])
    listed = search_space(
        space={"training.lr": RATES, "segmenter.base_width": {"choices": [2]}},
        first_trials=[{"training.lr": 1e-3, "segmenter.base_width": 2}],
        study={"sampler": "listed", "pruner": "none"},
    )
    with pytest.raises(UserError, match="a list runs nothing but its trials"):
        find_seeds(listed, [tmp_path])


def test_values_that_the_earlier_experiment_did_not_have_are_left_to_the_sampler(tmp_path: Path) -> None:
    tried(tmp_path / "a", with_rates(4, kind="none"), ({"training.lr": 1e-2}, 0.5))
    prototypes = {"type": "int", "low": 2, "high": 8}
    space = search_space(space={"training.lr": RATES, "guide.tokenbook.num_prototypes": prototypes}, first_trials=[])
    (seed,) = find_seeds(space, [tmp_path / "a"]).trials
    assert seed.values == {"training.lr": 1e-2, "segmenter.base_width": 4}


def test_a_study_in_memory_gives_the_first_ones_of_any_order() -> None:
    space = synthetic_space(3)
    _, study = simulate(space, Formula(epochs=3), workers=4, epochs=60)
    stored, best = StoredStudy(StudyFolder(NOWHERE), study, space), [trial.params for trial in ranking(study)]
    assert len(best) > 3
    assert [seed.values for seed in choose_seeds(space, [stored], most=3).trials] == best[:3]
    worst_first = choose_seeds(space, [stored, stored], most=2, order=lambda study: ranking(study)[::-1])
    assert [seed.values for seed in worst_first.trials] == best[:-3:-1]
