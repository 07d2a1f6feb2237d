"""Ignored pixels from the table to the scores: through augmentation, the loop, its validation and its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import Listener, make_data, make_experiment

from guidino_tune.config import Experiment
from guidino_tune.config.data import IGNORED
from guidino_tune.data.augmentation import nnunet_augmentation
from guidino_tune.data.opening import SearchData
from guidino_tune.data.table import CaseTable
from guidino_tune.metrics import constant_mask_dice, score_cases, summarise
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.showing import shown_cases
from guidino_tune.workflows.search import _baseline

MARGIN = 7
KNOWN = CaseTable.mask


def with_margin(table: CaseTable, i: int) -> np.ndarray:
    mask = np.array(KNOWN(table, i))
    mask[:MARGIN] = IGNORED
    return mask


def experiment_of(resize: str) -> Experiment:
    values = make_experiment("nnunet", epochs=2).to_dict()
    return Experiment.from_dict({**values, "data": {**values["data"], "resize": resize}})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"))


def test_views_of_masks_hold_no_new_values() -> None:
    mask = torch.zeros(1, 48, 48)
    mask[:, 10:30, 15:40], mask[:, 10:30, 30:], mask[:, :6] = 1, 2, IGNORED
    seen = nnunet_augmentation(torch.rand(40, 3, 48, 48), mask.expand(40, 1, 48, 48), range(40))[1].to(torch.uint8)
    assert {value for view in seen for value in view.unique().tolist()} == {0, 1, 2, IGNORED}
    assert sum(not torch.equal(view.unique(), mask.to(torch.uint8).unique()) or not torch.equal(view, mask) for view in seen) > 10


def test_a_run_scores_known_pixels_and_shows_the_others(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CaseTable, "mask", with_margin)
    run = TrainingRun(experiment_of("pad"), data, Listener(tmp_path))
    run.num_shown = len(data.validation)
    run.run()
    shown = shown_cases(run, run.shown)
    assert all((case.truth[:MARGIN] == IGNORED).all() for case in shown)
    scores = score_cases([case.prediction[MARGIN:] for case in shown], [case.truth[MARGIN:] for case in shown])
    for name in ("dice", "iou"):
        assert run.history[-1].metrics[f"val_{name}"] == pytest.approx(summarise(scores)[name], abs=1e-12)
    assert all(0 < r.metrics["train_loss_bce"] < 2 for r in run.history)


def test_only_data_that_may_hold_them_pay_for_them(data: SearchData, tmp_path: Path) -> None:
    assert TrainingRun(experiment_of("pad"), data, Listener(tmp_path / "pad")).loss.ignore
    assert not TrainingRun(experiment_of("squash"), data, Listener(tmp_path / "squash")).loss.ignore


def test_the_baseline_of_a_search_leaves_them_out(data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = constant_mask_dice(*[[table.mask(i)[MARGIN:] for i in range(len(table))] for table in (data.train, data.validation)])
    monkeypatch.setattr(CaseTable, "mask", with_margin)
    assert _baseline(data, ignore=True) == pytest.approx(expected)
