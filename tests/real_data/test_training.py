"""Real images through the whole chain: opened, trained, scored at native size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from guidino_tune.config import Data, Experiment, Protocol
from guidino_tune.data.decoding import read_case
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.rules import plain_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.metrics import constant_mask_dice
from guidino_tune.training.evaluation import evaluate_cases
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.model_folder import export_model, load_model
from guidino_tune.training.reporter import Decision, EpochRecord


class Listener(TrialFolder):
    def report(self, record: EpochRecord) -> Decision:
        self.append_history(record)
        return Decision.CONTINUE


@pytest.fixture
def data_folder() -> Path:
    root = os.environ.get("GUIDINO_TUNE_DATA")
    if not root:
        pytest.skip("GUIDINO_TUNE_DATA names no folder of real images")
    return Path(root)


@pytest.mark.parametrize(("kind", "folder", "epochs"), [("kvasir", "kvasir-352", 6), ("isic2017", "isic2017-256", 4)])
def test_training_on_real_images_beats_the_constant_mask(data_folder: Path, tmp_path: Path, kind: str, folder: str, epochs: int) -> None:
    torch.set_num_threads(2)
    section = {"kind": kind, "root": str(data_folder / folder), "image_size": 64, "max_train_cases": 240, "max_validation_cases": 40}
    experiment = Experiment.from_dict(
        {
            "data": section,
            "guide": {"kind": "dino", "backbone": "tiny", "weights": "random"},
            "segmenter": {"kind": "unet", "base_width": 8},
            "training": {"epochs": epochs, "batch_size": 4, "lr": 2e-3, "steps_per_epoch": "cases"},
        }
    )
    data = open_for_search(experiment.data)
    run = TrainingRun(experiment, data, Listener(tmp_path / "run"))
    run.run()
    losses = [r.metrics["train_loss_total"] for r in run.history]
    assert losses[-1] < 0.9 * losses[0]
    tables = [[table.mask(i) for i in range(len(table))] for table in (data.train, data.validation)]
    assert run.best > constant_mask_dice(*tables)


def test_a_model_scores_original_images_at_their_own_size(data_folder: Path, tmp_path: Path) -> None:
    experiment = Experiment.from_dict(
        {
            "data": {
                "kind": "kvasir",
                "root": str(data_folder / "kvasir-352"),
                "image_size": 64,
                "max_train_cases": 8,
                "max_validation_cases": 4,
            },
            "guide": {"kind": "dino", "backbone": "tiny", "weights": "random"},
            "segmenter": {"kind": "segguidino", "hidden": 16},
            "training": {"epochs": 1, "steps_per_epoch": "cases"},
        }
    )
    listener = Listener(tmp_path / "run")
    TrainingRun(experiment, open_for_search(experiment.data), listener).run()
    model, _ = load_model(export_model(listener.best, experiment, tmp_path / "model", {}))
    cases = find_cases(Data(kind="kvasir", root=str(data_folder / "kvasir-original"))).cases
    scores = evaluate_cases(model, cases, experiment.data, Protocol(), rules=plain_rules(experiment.data))
    assert set(scores) == {case.id for case in cases}
    for case in cases:
        height, width = read_case(case, plain_rules(experiment.data))[1].shape
        assert 0 <= scores[case.id].dice <= 1
        assert 0 <= scores[case.id].hd95 <= (height**2 + width**2) ** 0.5
