"""Which configurations are compared, what is kept of a measurement, and the record of openings; the trainings are in ``tests/ray``."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console
from test_training_model_folder import experiment_on, make_model
from training_helpers import make_label_data, search_space

from guidino_tune import paths
from guidino_tune.compare import main as compare
from guidino_tune.config import Protocol, Resources
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.openings import OPENINGS, copied_from, earlier_openings, openings, record_opening
from guidino_tune.data.sealed import open_test
from guidino_tune.errors import UserError
from guidino_tune.evaluate import main as evaluate
from guidino_tune.space.space import Space
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.measured import Measured, cases_file, read_measured, remember
from guidino_tune.workflows.compare import _at, _left_out, _Measuring, _report_name, _resources, _trainings, compare_study
from guidino_tune.workflows.finalists import finalists
from guidino_tune.workflows.listed import Training
from guidino_tune.workflows.retrain import take_split

LISTED: dict[str, Any] = {
    "space": {
        "training.lr": {"choices": [1e-3, 2e-3, 5e-3]},
        "training.seed": {"type": "int", "low": 0, "high": 9},
        "segmenter.base_width": {"choices": [2, 4]},
    },
    "first_trials": [{"training.lr": 1e-3}],
}


@pytest.fixture
def space() -> Space:
    return search_space(**LISTED)


def make_study(space: Space, results: list[tuple[float, int, float | None]]) -> optuna.Study:
    """A study with trials of these rates, seeds and values, in its place; without a value a trial was stopped early."""
    study = open_study(space, StudyFolder(paths.studies() / space.study.name))
    for rate, seed, value in results:
        params = {"training.lr": rate, "training.seed": seed, "segmenter.base_width": 2}
        distributions = {
            "training.lr": optuna.distributions.CategoricalDistribution([1e-3, 2e-3, 5e-3]),
            "training.seed": optuna.distributions.IntDistribution(0, 9),
            "segmenter.base_width": optuna.distributions.CategoricalDistribution([2, 4]),
        }
        state = TrialState.COMPLETE if value is not None else TrialState.PRUNED
        study.add_trial(
            optuna.trial.create_trial(
                state=state, value=value, params=params, distributions=distributions, intermediate_values={1: value or 0.1}
            )
        )
    return study


def numbers(study: optuna.Study) -> dict[tuple[float, int], int]:
    return {(t.params["training.lr"], t.params["training.seed"]): t.number for t in study.trials if t.params}


def test_the_best_are_taken_once_whatever_their_seed(space: Space) -> None:
    study = make_study(space, [(2e-3, 0, 0.7), (2e-3, 1, 0.9), (5e-3, 0, 0.8), (1e-3, 0, None)])
    number = numbers(study)
    found = finalists(study, space, top=3, against=["default"])
    # Two seeds of one configuration are one finalist; the early stopped trial has the default's values but is not one of the best.
    assert [c.name for c in found] == [f"trial {number[2e-3, 1]}", f"trial {number[5e-3, 0]}", "default"]
    assert [c.finalist for c in found] == [True, True, False]
    assert [c.reference for c in found] == [False, False, True]
    assert {c.experiment.training.seed for c in found} == {space.base.training.seed}
    assert found[2].experiment.training.lr == 1e-3  # the first of the first trials, on the base experiment
    assert "training.lr=0.001" in found[2].about
    assert len({c.experiment.hash for c in found}) == 3


def test_a_default_that_is_among_the_best_is_trained_once(space: Space) -> None:
    study = make_study(space, [(1e-3, 4, 0.9), (2e-3, 0, 0.8)])
    number = numbers(study)
    best, other = finalists(study, space, top=2, against=["default", str(number[2e-3, 0])])
    assert (best.name, best.reference, best.finalist) == (f"trial {number[1e-3, 4]} (default)", True, True)
    assert (other.name, other.reference) == (f"trial {number[2e-3, 0]}", True)


def test_another_trial_and_another_budget_can_be_asked_for(space: Space) -> None:
    study = make_study(space, [(1e-3, 0, 0.9), (2e-3, 0, None)])
    number = numbers(study)
    found = finalists(study, space, top=1, against=[str(number[2e-3, 0])], epochs=9)
    assert [(c.finalist, c.reference) for c in found] == [(True, False), (False, True)]
    assert "pruned" in found[1].about
    assert [c.experiment.training.epochs for c in found] == [9, 9]
    with pytest.raises(UserError, match="no trial '99'") as caught:
        finalists(study, space, top=1, against=["99"])
    assert "0 to" in caught.value.todo


def test_a_study_without_a_result_has_nothing_to_compare(space: Space, capsys: pytest.CaptureFixture[str]) -> None:
    make_study(space, [(1e-3, 0, None)])
    with pytest.raises(UserError, match="nothing to compare"):
        compare_study(SimpleNamespace(folder=paths.studies() / "small"))
    assert compare(["small"]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert compare(["other"]) == 2
    assert "studies: small" in capsys.readouterr().err
    assert not (paths.studies() / "small" / "compare").exists()


def test_trainings_lie_by_what_is_trained(space: Space, tmp_path: Path) -> None:
    study = make_study(space, [(2e-3, 0, 0.7), (5e-3, 0, 0.8)])
    home = StudyFolder(tmp_path)
    few = _trainings(finalists(study, space, top=1, against=["default"]), home, home, 2)
    many = _trainings(finalists(study, space, top=2, against=["default"]), home, home, 3)
    places = [{t.folder.path for by_seed in trainings.values() for t in by_seed.values()} for trainings in (few, many)]
    assert (len(places[0]), len(places[1])) == (4, 9)
    assert places[0] < places[1]  # more of both goes on with what is there
    assert all(t.experiment.training.seed == seed for by_seed in many.values() for seed, t in by_seed.items())
    longer = _trainings(finalists(study, space, top=2, against=["default"], epochs=50), home, home, 3)
    assert not places[1] & {t.folder.path for by_seed in longer.values() for t in by_seed.values()}
    moved = _at(space, "/elsewhere")
    assert moved.base.data.root == "/elsewhere"
    assert finalists(study, moved, top=1, against=[])[0].experiment.hash == finalists(study, space, top=1, against=[])[0].experiment.hash


def test_a_configuration_with_a_seed_that_failed_is_left_out(space: Space, tmp_path: Path) -> None:
    study, home = make_study(space, [(2e-3, 0, 0.7), (5e-3, 0, 0.8)]), StudyFolder(tmp_path)
    trainings = _trainings(finalists(study, space, top=2, against=[]), home, home, 2)
    assert _left_out(trainings, {}) == {}
    _, second = trainings
    label = trainings[second][1].label
    assert _left_out(trainings, {label: "diverged"}) == {second: f"{label}: diverged"}


def test_a_report_of_another_budget_or_protocol_replaces_none() -> None:
    assert [_report_name(epochs, DEFAULT_PROTOCOL) for epochs in (None, 9)] == ["compare", "compare-9-epochs"]
    others = {_report_name(epochs, Protocol(inference="sliding")) for epochs in (None, 9)}
    assert len(others | {"compare", "compare-9-epochs"}) == 4


def test_a_second_comparison_is_told_of_the_first(space: Space, tmp_path: Path) -> None:
    home = StudyFolder(tmp_path)
    with home.lock("comparison", "wait"), pytest.raises(UserError, match="another comparison works on this study") as caught:
        home.lock("comparison", "wait")
    assert caught.value.todo == "wait"


def test_resources_are_the_study_s_unless_others_are_asked_for() -> None:
    known = Resources(concurrent=2, trials_per_gpu=3, executor="actor")
    assert _resources(known, {"concurrent": None, "workers": None}) == known
    changed = _resources(known, {"gpus_per_worker": 0.5, "concurrent": 4})
    assert (changed.gpus_per_worker, changed.trials_per_gpu, changed.concurrent) == (0.5, None, 4)
    assert _resources(Resources(executor="actor"), {"workers": 2}).executor == "auto"  # a reused actor has one worker
    with pytest.raises(UserError, match="cannot share a GPU") as caught:
        _resources(Resources(gpus_per_worker=0.5), {"workers": 2})
    assert caught.value.where == "resources"
    assert _resources(Resources(gpus_per_worker=0.5), {"workers": 2, "gpus_per_worker": 1.0}).workers == 2  # as the message says


def test_validation_scores_are_kept_beside_those_of_the_test(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    test, validation = (Measured("w", {"mirror": False}, "resized", n, {"dice": 0.5}, {}) for n in (7, 9))
    remember(folder, test)
    remember(folder, validation, "validation")
    assert read_measured(folder) == [test]
    assert read_measured(folder, "validation") == [validation]
    assert cases_file(folder, test) != cases_file(folder, test, "validation")
    cases_file(folder, validation, "validation").write_text("case,dice\n")
    cases_file(folder, test).write_text("case,dice\n")
    # Other weights: what was measured of the old ones is forgotten, of this part only.
    remember(folder, dataclasses.replace(validation, weights="new", asked={"mirror": True}), "validation")
    assert not cases_file(folder, validation, "validation").exists()
    assert cases_file(folder, test).exists()
    assert read_measured(folder) == [test]


# -------------------------------------------------------------------------------------------------------------------- openings


def test_openings_of_a_split_and_of_its_copies_are_seen_together(tmp_path: Path) -> None:
    study, copy, other = (tmp_path / name / "split.json" for name in ("study", "copy", "other"))
    for file in (study, copy, other):
        file.parent.mkdir()
    copied_from(copy, study)
    copied_from(other, study)
    assert openings(study) == []
    assert earlier_openings(openings(study)) == ""
    record_opening(study, "first", 5)
    record_opening(copy, "second", 5)
    assert [o["reason"] for o in openings(study)] == ["first", "second"]
    assert [o["reason"] for o in openings(copy)] == ["first", "second"]
    assert [o["reason"] for o in openings(other)] == ["first", "second"]
    assert len((copy.parent / OPENINGS).read_text().splitlines()) == 1
    record_opening(copy, "second", 5)  # within the same second
    assert len(openings(copy)) == len(openings(study)) == 3
    with (study.parent / OPENINGS).open("a") as file:
        file.write('{"time": "20')
    text = earlier_openings(openings(study))
    assert "opened 3 times before" in text
    assert text.count("second") == 2
    shutil.rmtree(study.parent)  # the study is gone; the copy keeps its own record
    record_opening(copy, "third", 5)
    assert [o["reason"] for o in openings(copy)] == ["second", "second", "third"]
    assert not study.parent.exists()


def test_openings_from_before_there_was_a_common_record_are_carried_into_it_once(tmp_path: Path) -> None:
    study, copy = (tmp_path / name / "split.json" for name in ("study", "copy"))
    for file in (study, copy):
        file.parent.mkdir()
    old = json.dumps({"time": "2020-01-01T00:00:00+00:00", "reason": "long ago", "cases": 5})
    (copy.parent / OPENINGS).write_text(f'{old}\n{old}\n{{"time": "20')
    for _ in range(2):
        copied_from(copy, study)
        assert [o["reason"] for o in openings(study)] == ["long ago", "long ago"]
    assert len(openings(copy)) == 2
    assert sorted(p.name for p in copy.parent.iterdir()) == ["split-source.json", OPENINGS]


def test_a_retrained_model_s_opening_is_in_the_study_s_record(tmp_path: Path, home: Path) -> None:
    data = make_label_data(tmp_path / "data")
    study, copy = tmp_path / "study" / "split.json", tmp_path / "retrained" / "split.json"
    open_for_search(data, split_file=study)
    take_split({"split": str(study)}, copy, data, Console(), file=tmp_path / "best.yaml")
    cases = open_test(data, copy, reason="final measurement")
    assert [o["reason"] for o in openings(study)] == ["final measurement"]
    line = json.loads((study.parent / OPENINGS).read_text())
    assert (line["cases"], line["split"]) == (len(cases), str(copy))


def test_evaluate_tells_of_openings_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_label_data(tmp_path / "data")
    open_for_search(data, split_file=tmp_path / "split.json")
    model = make_model(tmp_path, dataclasses.replace(experiment_on(data), data=data))
    assert evaluate([str(model), "--split", "test", "--reason", "figure 3"]) == 0
    assert "before" not in capsys.readouterr().out
    assert evaluate([str(model), "--split", "test", "--reason", "figure 4"]) == 0
    told_now = capsys.readouterr().out
    assert "the test cases were opened once before" in told_now
    assert "figure 3" in told_now
    assert evaluate([str(model), "--split", "validation"]) == 0
    assert "before" not in capsys.readouterr().out
    assert [o["reason"] for o in openings(tmp_path / "split.json")] == ["figure 3", "figure 4"]


def test_the_card_says_how_validation_was_measured(space: Space, tmp_path: Path) -> None:
    """By the protocol of the comparison, as the test was, and not at training size by the epoch's own validation."""
    measuring = _Measuring(space, StudyFolder(tmp_path), DEFAULT_PROTOCOL, Resources(), Console(quiet=True))
    training = Training("default seed 0", space.base, TrialFolder(tmp_path / "seed-0"), tmp_path / "split.json")
    measuring.measured = {
        ("validation", training.label): Measured("w", {}, "whole images, native size", 4, {"dice": 0.7}, {}),
        ("test", training.label): Measured("w", {}, "whole images, native size", 4, {"dice": 0.6}, {}),
        ("test", "another"): Measured("w", {}, "other", 4, {"dice": 0.1}, {}),
    }
    found = measuring.scores(training)
    assert {part: (one["how"], one["scores"]["dice"]["mean"]) for part, one in found.items()} == {
        "validation": ("whole images, native size", 0.7),
        "test": ("whole images, native size", 0.6),
    }
