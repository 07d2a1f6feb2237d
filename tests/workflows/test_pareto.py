"""A search with several objectives and constraints, from the command line to MLflow and the exported file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState
from small_searches import study_folder, trials_of

from guidino_tune.config import Experiment
from guidino_tune.export import main as export
from guidino_tune.models import build_model
from guidino_tune.search import main as search
from guidino_tune.tracking.client import connect


def real_parameters(file: Path) -> int:
    return sum(p.numel() for p in build_model(Experiment.from_yaml(file)).parameters())


def test_a_search_gives_a_pareto_front_within_the_constraints(
    home: Path, space_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = "study.objectives=[val_dice,val_hd95,seconds,parameters]"
    arguments = [
        str(space_file), "--set", objectives, "--set", "study.constraints={latency: 60, memory: 100}", "--set", "study.pruner=none",
        "--trials", "3", "--concurrent", "1",
    ]  # fmt: skip
    assert search(arguments) == 0
    printed = capsys.readouterr().out
    folder, trials = study_folder(home, "small"), trials_of(home, "small")
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
    for trial in trials:
        place = folder.trial(trial.number)
        history = place.history()
        assert trial.values == pytest.approx(
            [
                max(r.metrics["val_dice"] for r in history),
                history[-1].metrics["val_hd95"],
                # The first two epochs as quick as the quicker of them; the last one measures distances too.
                2 * min(r.metrics["epoch_seconds"] for r in history[:2]) + history[2].metrics["epoch_seconds"],
                real_parameters(place.path / "experiment.yaml"),
            ]
        )
        first = history[0].metrics
        assert trial.constraints == pytest.approx({"latency": first["latency"] / 60 - 1, "memory": first["memory"] / 100 - 1})
        assert not {"latency", "memory"} & history[1].metrics.keys()

    # By the definition: nobody is as good in all and better in one.
    def losses(number: int) -> list[float]:
        dice, *others = trials[number].values
        return [-dice, *others]

    def behind(one: int, other: int) -> bool:
        return losses(one) != losses(other) and all(a >= b for a, b in zip(losses(one), losses(other), strict=True))

    expected = {n for n in range(3) if not any(behind(n, other) for other in range(3))}
    ordered = sorted(expected, key=losses)
    assert f"trials {', '.join(map(str, ordered))}. best.yaml has trial {ordered[0]}" in printed
    provenance = yaml.safe_load(folder.best.read_text())["provenance"]
    assert (provenance["trial"], provenance["pareto_front"]) == (ordered[0], ordered)
    assert (folder.reports / "pareto.png").stat().st_size > 5000
    assert len((folder.reports / "pareto.csv").read_text().splitlines()) == 4
    client = connect(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("guidino_tune")
    assert experiment
    runs = {r.data.tags.get("guidino.trial"): r for r in client.search_runs([experiment.experiment_id])}
    for trial in trials:
        run = runs[str(trial.number)]
        assert run.data.tags["guidino.pareto"] == str(trial.number in expected).lower()
        assert run.data.metrics["parameters"] == trial.values[3]
        assert run.data.metrics["seconds"] == pytest.approx(trial.values[2])
    assert export(["small", "--trial", "1", "--output", str(tmp_path / "one.yaml")]) == 0
    assert "Pareto front" in capsys.readouterr().out
    # Nothing is left to do, and nothing is done again.
    assert search(arguments) == 0
    assert [t.values for t in trials_of(home, "small")] == [t.values for t in trials]
