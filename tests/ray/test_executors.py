"""The two executors and several workers give the same training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from in_process import without_ray
from small_searches import SPACE, study_folder, trials_of

from guidino_tune import paths
from guidino_tune.search import main as search
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.reporter import Decision, EpochRecord

TIMES = ("epoch_seconds", "images_per_second")


class Silent(TrialFolder):
    def report(self, record: EpochRecord) -> Decision:
        return Decision.CONTINUE


def one_trial(tmp_path: Path, demo: Path, name: str, *, trials: int = 1, **changes: Any) -> TrialFolder:
    """Runs a study of one trial or more with two epochs, and returns the folder of the first."""
    experiment = {
        **SPACE["experiment"],
        "data": {**SPACE["experiment"]["data"], "root": str(demo), "max_train_cases": 24, "max_validation_cases": 7},
        "loss": {"bce_weight": 0.0},  # Dice alone leaves the empty mask within two epochs
        "training": {**SPACE["experiment"]["training"], "epochs": 2},
        **changes.pop("experiment", {}),
    }
    space = {
        "experiment": experiment,
        "space": {"training.lr": SPACE["space"]["training.lr"]},
        "first_trials": [{"training.lr": 1e-2}],
        "study": {"name": name, "trials": trials, "pruner": "none"},
        "resources": changes,
    }
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(space))
    assert search([str(file)]) == 0
    return study_folder(paths.home(), name).trial(0)


def metrics(folder: TrialFolder) -> list[dict[str, float]]:
    return [{k: v for k, v in r.metrics.items() if k not in TIMES} for r in folder.history()]


def test_a_worker_group_gives_the_same_metrics_as_this_process(
    home: Path, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does the actor: see ``test_search``, where a trial of it is repeated bit by bit."""
    group = one_trial(tmp_path, demo, "with-train", executor="train")  # makes its own views, in the home
    without_ray(monkeypatch)
    views = tmp_path / "views"
    here = one_trial(tmp_path, demo, "here", executor="actor", trials=2, views_folder=str(views))
    assert len(metrics(here)) == 2
    assert metrics(here) == [pytest.approx(m, abs=1e-6) for m in metrics(group)]
    for name, trials in (("here", 2), ("with-train", 1)):
        assert [t.state.name for t in trials_of(home, name)] == ["COMPLETE"] * trials
    chunks = list(views.rglob("*.arrow"))
    assert {file.parent.name for file in chunks} == {"00000", "00001", "validation"}
    second = trials_of(home, "here")[1].datetime_start
    assert second is not None
    assert max(file.stat().st_mtime for file in chunks) < second.timestamp()  # it only read what the first one had made
    weights = [(f.best / "weights.safetensors").read_bytes() for f in (here, group)]
    assert weights[0] == weights[1]
    for folder in (here, group):
        assert (folder.pictures / "validation.png").exists()
        assert not folder.checkpoints()


def test_two_workers_validate_as_one_does(home: Path, tmp_path: Path, demo: Path) -> None:
    """The U-Net has batch norm, whose statistics differ between workers, and its guide has adapters."""
    from guidino_tune.config import Experiment
    from guidino_tune.data.opening import open_for_search
    from guidino_tune.training.checkpoints import load_weights
    from guidino_tune.training.loop import TrainingRun

    torch.set_num_threads(1)
    experiment = {
        "segmenter": {"kind": "unet", "base_width": 8},
        "guide": {**SPACE["experiment"]["guide"], "lora": {"rank": 2}},
    }
    folder = one_trial(tmp_path, demo, "two-workers", workers=2, experiment=experiment)
    history = folder.history()
    assert [r.epoch for r in history] == [1, 2]
    assert [t.state.name for t in trials_of(home, "two-workers")] == ["COMPLETE"]
    saved = json.loads((folder.best / "state.json").read_text())
    described = Experiment.from_yaml(folder.path / "experiment.yaml")
    data = open_for_search(described.data, split_file=study_folder(home, "two-workers").split)
    alone = TrainingRun(described, data, Silent(tmp_path / "alone"))
    alone.model.load_trained_state(load_weights(folder.best / "weights.safetensors"))
    told = {k: v for k, v in history[saved["epoch"] - 1].metrics.items() if k.startswith("val_")}
    assert alone._validate(distances="val_hd95" in told) == pytest.approx(told, abs=1e-9)
    assert told["val_dice"] > 0  # else all predictions could be empty, whatever the statistics
    assert history[0].metrics["train_loss_total"] > 0
