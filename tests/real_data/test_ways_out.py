"""A model trained on real images gives one mask, whichever way it leaves."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from exports_elsewhere import use, use_monai
from PIL import Image

from guidino_tune.config import Experiment
from guidino_tune.data.opening import open_for_search
from guidino_tune.exporting.formats import FORMATS
from guidino_tune.exporting.onnx_file import NEEDED
from guidino_tune.predict import main as predict
from guidino_tune.tracking import log_model_run
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.model_folder import export_model
from guidino_tune.training.reporter import Decision, EpochRecord
from guidino_tune.workflows.export_model import FOLDER, export
from guidino_tune.workflows.serving import LOADER

PRECISION = "fp32"
"""Exports compute in float32; a model trained in bf16 predicts in bf16 here, and its borders differ by some pixels."""


class Listener(TrialFolder):
    def report(self, record: EpochRecord) -> Decision:
        self.append_history(record)
        return Decision.CONTINUE


@pytest.fixture(scope="module")
def data_folder() -> Path:
    root = os.environ.get("GUIDINO_TUNE_DATA")
    if not root:
        pytest.skip("GUIDINO_TUNE_DATA names no folder of real images")
    return Path(root)


def test_all_ways_out_give_the_same_mask(data_folder: Path, tmp_path: Path) -> None:
    import mlflow

    torch.set_num_threads(2)
    experiment = Experiment.from_dict(
        {
            "data": {
                "kind": "kvasir", "root": str(data_folder / "kvasir-352"), "image_size": 64, "max_train_cases": 80,
                "max_validation_cases": 16,
            },
            "guide": {"kind": "dino", "backbone": "tiny", "weights": "random"},
            "segmenter": {"kind": "unet", "base_width": 8},
            "training": {"epochs": 2, "lr": 2e-3, "steps_per_epoch": "cases", "precision": PRECISION},
        }
    )  # fmt: skip
    listener = Listener(tmp_path / "run")
    TrainingRun(experiment, open_for_search(experiment.data), listener).run()
    model = export_model(listener.best, experiment, tmp_path / "model", {})
    image = next(iter(sorted((data_folder / "kvasir-original").rglob("images/*.jpg"))), None)
    image = image or min((data_folder / "kvasir-352" / "images").iterdir())
    assert predict([str(model), str(image), "--output", str(tmp_path / "predicted"), "--no-overlays"]) == 0
    wanted = np.asarray(Image.open(tmp_path / "predicted" / "masks" / f"{image.stem}.png")) // 255
    assert 0.001 < wanted.mean() < 0.999

    differing: dict[str, float] = {}
    for name in FORMATS:
        if name == "onnx" and not all(map(importlib.util.find_spec, NEEDED)):
            continue
        made = export(model, name, tmp_path / name)
        differing[name] = (use(made.folder, image, tmp_path / "masks" / name) != wanted).mean()
        print(f"{name}: {made.size / 1e6:.2f} MB, free {made.dynamic}, {made.difference:.1g}, {made.notes}")
    found = use_monai(tmp_path / "monai-bundle", image, image, tmp_path / "masks" / "bundle")
    differing["monai.bundle"] = (found != wanted).mean()
    export(model, FOLDER, tmp_path / "whole", with_backbone=True)
    assert predict([str(tmp_path / "whole"), str(image), "--output", str(tmp_path / "again"), "--no-overlays"]) == 0
    differing["with backbone"] = (np.asarray(Image.open(tmp_path / "again" / "masks" / f"{image.stem}.png")) // 255 != wanted).mean()

    uri = f"sqlite:///{tmp_path}/m.db"
    log_model_run(uri, "r", "r", {}, {}, (), model, "net", {}, loader_module=LOADER, score=0.5, artifact_location=tmp_path / "artifacts")
    mlflow.set_tracking_uri(uri)
    try:
        served = mlflow.pyfunc.load_model("models:/net@champion").predict(str(image))
    finally:
        mlflow.set_tracking_uri("")
    differing["mlflow"] = (served != wanted).mean()
    print(differing)
    assert max(differing.values()) < 1e-4, differing
