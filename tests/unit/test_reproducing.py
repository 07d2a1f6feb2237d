"""A table of the paper is measured in the frame in which the paper is, data set by data set, and says so."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from guidino_tune.config import Protocol
from guidino_tune.metrics import hd95_percent, score_case
from guidino_tune.reproduce import main as reproduce
from guidino_tune.space.recipes import datasets, load_tables, recipe
from guidino_tune.training.measured import Measured
from guidino_tune.workflows.reproduce import Trained, _frame_remark, _table_row, framed

ROWS = {row.system: row for row in load_tables()["all"].rows}
SCORES = {"dice": 0.9, "iou": 0.8, "hd95": 20.0, "asd": 5.0, "hd95_percent": 4.0}


@pytest.mark.parametrize(("dataset", "resolution"), [("kvasir", "native"), ("isic2017", "training"), ("tn3k", "training")])
def test_masks_are_compared_where_the_paper_s_code_does_it(dataset: str, resolution: str) -> None:
    asked = Protocol(hd95="reference", mirror=True)
    assert framed(asked, dataset) == dataclasses.replace(asked, resolution=resolution)
    assert framed(Protocol(resolution="training"), dataset, "training").resolution == "training"
    assert framed(Protocol(), dataset, "native").resolution == "native"
    assert framed(Protocol(inference="sliding"), dataset).resolution == "native"  # windows know no other size
    assert set(datasets()) == {"kvasir", "isic2017", "tn3k"}


def trained(dataset: str, system: str, size: int | None = None) -> Trained:
    experiment = recipe(dataset, ROWS[system])
    assert experiment is not None
    if size:
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, image_size=size))
    return Trained({"training.seed": 0}, experiment, Measured("w", {}, "", 7, dict(SCORES), {}), "")


@pytest.mark.parametrize(
    ("dataset", "system", "resolution", "size", "frame", "difference"),
    [
        ("kvasir", "GuiDINO-W", "native", None, "native", 20 - 17.50),
        ("kvasir", "GuiDINO-W", "native", 512, "native", 20 - 17.50),
        ("kvasir", "GuiDINO-W", "training", 256, "256 x 256", None),
        ("isic2017", "GuiDINO-W", "training", None, "256 x 256", 20 - 13.14),  # the paper's text
        ("isic2017", "GuiDINO-W", "training", 512, "512 x 512", 20 - 13.14),  # its code
        ("isic2017", "GuiDINO-W", "training", 128, "128 x 128", None),
        ("isic2017", "GuiDINO-W", "native", None, "native", None),
        ("tn3k", "U-Net", "training", 352, "352 x 352", 20 - 24.59),
        ("tn3k", "U-Net", "training", 512, "512 x 512", None),
    ],
)
def test_only_pixels_of_like_frames_are_subtracted(
    dataset: str, system: str, resolution: str, size: int | None, frame: str, difference: float | None
) -> None:
    protocol = Protocol(resolution=resolution)  # type: ignore[arg-type]
    row = _table_row(dataset, ROWS[system], protocol, [trained(dataset, system, size)])
    assert row.frame == frame
    assert row.difference("hd95") == (None if difference is None else pytest.approx(difference))
    assert row.mean_sd("hd95_percent") == (4.0, None)
    here = "own" if resolution == "native" else "squeezed"
    there = "own" if dataset == "kvasir" else "squeezed"
    said = _frame_remark(dataset, protocol).partition("in the paper's code")
    assert here in said[0]
    assert there in said[2]


def test_per_cent_of_the_diagonal() -> None:
    """The same picture at three times the size has three times the HD95, and the same share of the diagonal."""
    small = np.zeros((60, 80), np.uint8)
    small[10:40, 10:40] = 1
    shifted = np.roll(small, 6, axis=1)
    scores = [score_case(shifted, small), score_case(shifted.repeat(3, 0).repeat(3, 1), small.repeat(3, 0).repeat(3, 1))]
    assert [score.diagonal for score in scores] == [100, 300]
    assert [score.hd95 for score in scores] == [pytest.approx(6, abs=1), pytest.approx(18, abs=1)]
    assert hd95_percent(scores[:1]) == pytest.approx(6)
    assert hd95_percent(scores) == pytest.approx(6, abs=0.3)
    assert hd95_percent([score_case(small * 0, small), score_case(small * 0, small * 0)]) == 50  # the worst and the best there is
    several = score_case(shifted * 2, small * 2, num_classes=2)
    assert several.diagonal == math.hypot(60, 80)
    assert hd95_percent([several]) == pytest.approx(3)  # the mean with a class that is in neither


def test_training_resolution_with_sliding_windows_is_refused_before_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(["table1", "--inference", "sliding", "--resolution", "training", "--dry-run"]) == 2
    assert "works on native ones" in capsys.readouterr().err
