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
from guidino_tune.exporting.formats import BF16, FORMATS
from guidino_tune.exporting.onnx_file import NEEDED
from guidino_tune.exporting.templates import portable
from guidino_tune.predict import main as predict
from guidino_tune.tracking import log_model_run
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.model_folder import export_model
from guidino_tune.training.reporter import Decision, EpochRecord
from guidino_tune.workflows.export_model import FOLDER, export
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.serving import LOADER

SHARE, DEPTH = 0.002, 30
"""Of pixels that bf16 may change, as docs/models.md has it measured; and layers, one after the other, of the network here."""


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


def train(data_folder: Path, folder: Path, precision: str) -> Path:
    """The folder of a small model of Kvasir-SEG."""
    torch.set_num_threads(2)
    experiment = Experiment.from_dict(
        {
            "data": {
                "kind": "kvasir", "root": str(data_folder / "kvasir-352"), "image_size": 64, "max_train_cases": 80,
                "max_validation_cases": 16,
            },
            "guide": {"kind": "dino", "backbone": "tiny", "weights": "random"},
            "segmenter": {"kind": "unet", "base_width": 8},
            "training": {"epochs": 2, "lr": 2e-3, "steps_per_epoch": "cases", "precision": precision},
        }
    )  # fmt: skip
    listener = Listener(folder / "run")
    TrainingRun(experiment, open_for_search(experiment.data), listener).run()
    return export_model(listener.best, experiment, folder / "model", {})


def test_all_ways_out_give_the_same_mask(data_folder: Path, tmp_path: Path) -> None:
    import mlflow

    model = train(data_folder, tmp_path, "fp32")
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


def test_a_model_of_bf16_leaves_in_float32_and_differs_where_it_is_not_sure(data_folder: Path, tmp_path: Path) -> None:
    """Here it predicts in bf16, as it was trained. Told in float32 it gives what its exports give."""
    here = load_model(train(data_folder, tmp_path, "bf16"))
    files = sorted((data_folder / "kvasir-352" / "images").iterdir())[:16]
    own = [here.segment(here.decode(file)) for file in files]
    here.network.bf16 = False  # type: ignore[union-attr]
    exact = [here.segment(here.decode(file)) for file in files]

    made = export(tmp_path / "model", "torchscript", tmp_path / "out")
    card = (made.folder / "README.md").read_text()
    assert "in float32." in card
    assert f"in bf16, as it was trained: {BF16}." in card
    program, settings = FORMATS["torchscript"].load(made.folder / FORMATS["torchscript"].file), portable.read_settings(made.folder)

    def network(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(pixels))[0].numpy()

    masks = [portable.segment(portable.read_image(file), network, settings) for file in files]
    differing = np.mean([(mask != one.mask).mean() for mask, one in zip(masks, own, strict=True)])
    assert np.mean([(mask != one.mask).mean() for mask, one in zip(masks, exact, strict=True)]) < 1e-4
    assert 0 < differing < SHARE
    # bf16 keeps 8 bits of a number. Half a unit of the last one is 2 ** -8 of it, and roundings of DEPTH layers add up as their root.
    for one, other in zip(exact, own, strict=True):
        logits = np.log(one.probabilities[1] / one.probabilities[0])
        unsure = np.abs(logits[one.mask != other.mask])
        assert unsure.max(initial=0) < 2**-8 * DEPTH**0.5 * np.abs(logits).max()
