"""One trial after another, the same command gives the same study, whether it was interrupted or not; and a trial of it repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import interrupted
from optuna.trial import TrialState
from small_searches import SPACE, study_folder, trials_of

from guidino_tune.reproduce_trial import main as reproduce_trial
from guidino_tune.search import main as search

TRIALS = 4
TIMES = ("epoch_seconds", "images_per_second")


@pytest.fixture
def space(tmp_path: Path, demo: Path) -> Path:
    """Trials that the sampler models from the third on, and of which some are stopped early."""
    values: dict[str, Any] = {**SPACE, "study": {**SPACE["study"], "trials": TRIALS, "startup_trials": 2, "reduction_factor": 2}}
    # Enough steps for scores that differ: with equal ones nothing is stopped early, and TPE has nothing to learn from.
    values["experiment"] = {
        **SPACE["experiment"],
        "data": {**SPACE["experiment"]["data"], "root": str(demo), "max_train_cases": 32},
        "segmenter": {"kind": "unet", "base_width": 4},
        "training": {**SPACE["experiment"]["training"], "epochs": 4, "batch_size": 2},
    }
    values["resources"] = {**SPACE["resources"], "concurrent": 1}
    file = tmp_path / "alone.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def content(home: Path) -> list[tuple[Any, ...]]:
    """All of a study but its times: parameters, states, and every metric of every epoch, to the last digit."""
    found = []
    for trial in trials_of(home, "small"):
        lines = study_folder(home, "small").trial(trial.number).history_file.read_text().splitlines()
        metrics = [{k: v for k, v in json.loads(line)["metrics"].items() if k not in TIMES} for line in lines]
        found.append((trial.number, trial.state, trial.params, trial.intermediate_values, trial.value, metrics))
    return found


def test_one_after_another_a_study_repeats_even_if_it_was_interrupted(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = [tmp_path / "whole", tmp_path / "parts"]
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(homes[0]))
    assert search([str(space)]) == 0
    whole = content(homes[0])
    assert len(whole) == TRIALS
    assert {state for _, state, *_ in whole} == {TrialState.COMPLETE, TrialState.PRUNED}

    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(homes[1]))
    interrupted(monkeypatch, lambda number, epoch: number >= 2)
    assert search([str(space)]) == 130
    assert TrialState.RUNNING in {t.state for t in trials_of(homes[1], "small")}
    assert search([str(space)]) == 0
    assert content(homes[1]) == whole

    capsys.readouterr()
    assert reproduce_trial(["small", "2"]) == 0
    assert "identical bit by bit" in capsys.readouterr().out
