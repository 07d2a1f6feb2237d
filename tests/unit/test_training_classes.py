"""Label maps from files to metrics: every kind of network trains on them, and learns the classes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import GUIDE, SMALL, Listener, make_label_data

from guidino_tune.analysis.pictures import CLASSES, overlay
from guidino_tune.config import Data, Experiment
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.metrics import constant_mask_dice, score_cases, summarise
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.showing import shown_cases


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Data:
    torch.set_num_threads(1)
    return make_label_data(tmp_path_factory.mktemp("labels") / "data")


@pytest.fixture(scope="module")
def data(section: Data, tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    return open_for_search(section, cache=tmp_path_factory.mktemp("cache"))


def experiment(section: Data, kind: str = "unet", guide: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    values = {
        "data": dataclasses.asdict(section) | changes.pop("data", {}),
        "guide": guide or {"kind": "none"},
        **SMALL[kind],
        "loss": {"hinge_weight": 0.1},
        "training": {
            "epochs": 2,
            "batch_size": 4,
            "lr": 3e-3,
            "precision": "fp32",
            "steps_per_epoch": "cases",
            **changes.pop("training", {}),
        },
    }
    return Experiment.from_dict(values | changes)


def test_the_files_hold_both_kinds_of_label_map(section: Data) -> None:
    modes = [Image.open(path).mode for path in sorted(Path(str(section.root), "masks").iterdir())]
    assert set(modes) == {"L", "P"}


@pytest.mark.parametrize(
    ("kind", "guide", "name"),
    [
        ("unet", None, "U-Net"),
        ("nnunet", None, "nnU-Net"),
        ("nnwnet", None, "nnWNet"),
        ("unet", GUIDE, "GuiDINO-U"),
        ("nnunet", GUIDE, "GuiDINO-nnU"),
        ("nnwnet", GUIDE, "GuiDINO-W"),
        ("segguidino", GUIDE, "Seg-GuiDINO"),
    ],
)
def test_two_epochs_give_metrics_of_each_class(
    kind: str, guide: dict[str, Any] | None, name: str, section: Data, data: SearchData, tmp_path: Path
) -> None:
    made = experiment(section, kind, guide)
    assert made.name == name
    run = TrainingRun(made, data, Listener(tmp_path))
    run.run()
    assert run.reporter.epochs == [1, 2]
    terms = {"train_loss_total", "train_loss_dice", "train_loss_cross_entropy", "train_loss_hinge"} | (
        {"train_loss_guide"} if guide else set()
    )
    for record, metrics in zip(run.history, (("dice", "iou"), ("dice", "iou", "hd95", "asd")), strict=True):  # distances at the end
        scores = {f"val_{metric}{part}" for metric in metrics for part in ("", "_class_1", "_class_2")}
        assert set(record.metrics) == terms | scores | {"lr", "epoch_seconds", "images_per_second"}
        assert all(math.isfinite(value) for value in record.metrics.values())
        for metric in metrics:
            parts = [record.metrics[f"val_{metric}_class_{number}"] for number in (1, 2)]
            assert record.metrics[f"val_{metric}"] == pytest.approx(sum(parts) / 2, abs=1e-9)


def test_classes_are_called_as_the_user_calls_them(section: Data, data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(experiment(section, data={"labels": {"disc": 1, "block": 2}}, training={"epochs": 1}), data, Listener(tmp_path))
    run.run()
    named = {name for name in run.history[0].metrics if name.startswith(("val_dice", "val_hd95"))}
    assert named == {"val_dice", "val_dice_disc", "val_dice_block", "val_hd95", "val_hd95_disc", "val_hd95_block"}


def test_both_classes_are_learned(section: Data, data: SearchData, tmp_path: Path) -> None:
    made = experiment(
        section,
        data={"augmentation": "none", "normalisation": "zscore"},
        segmenter={"kind": "unet", "base_width": 8},
        training={"epochs": 30, "schedule": "constant", "lr": 6e-3},
    )
    run = TrainingRun(made, data, Listener(tmp_path))
    run.num_shown = len(data.validation)
    run.run()
    tables = [[table.mask(i) for i in range(len(table))] for table in (data.train, data.validation)]
    constant = constant_mask_dice(*tables, num_classes=2)
    best = max(run.history, key=lambda record: record.metrics[OBJECTIVE]).metrics
    assert 0 < constant < 0.75
    assert min(best["val_dice_class_1"], best["val_dice_class_2"], run.best) > constant + 0.05
    assert run.best == best["val_dice"]
    shown = shown_cases(run, run.shown)  # of the last epoch
    assert {tuple(np.unique(case.prediction)) for case in shown} == {(0, 1, 2)}
    again = summarise(score_cases([case.prediction for case in shown], tables[1], num_classes=2))
    for name, value in again.items():
        assert run.history[-1].metrics[f"val_{name}"] == pytest.approx(value, abs=1e-12)
    picture = np.asarray(overlay(shown[0].image, shown[0].truth, None, shown[0].prediction, names=("class 1", "class 2")))
    assert all((np.abs(picture.astype(int) - colour) < 30).all(-1).sum() > 50 for colour in CLASSES[:2])


def test_the_baseline_of_a_search_is_that_of_the_classes(data: SearchData) -> None:
    from guidino_tune.workflows.search import _baseline

    tables = [[table.mask(i) for i in range(len(table))] for table in (data.train, data.validation)]
    assert _baseline(data) == constant_mask_dice(*tables, num_classes=2) != constant_mask_dice(*tables)
