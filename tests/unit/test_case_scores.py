"""What a trial keeps of its validation cases: their scores in the best epoch, and pictures of the worst and the best."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from PIL import Image
from training_helpers import Listener, make_data, make_experiment

from guidino_tune.config.study import OBJECTIVE
from guidino_tune.data.opening import SearchData
from guidino_tune.running.drawing import ENDS, VALIDATION, draw_where_due
from guidino_tune.training.case_scores import ENDS as EACH
from guidino_tune.training.case_scores import FILE, Validated, read_cases, write_cases
from guidino_tune.training.loop import TrainingRun


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    return make_data(tmp_path_factory.mktemp("data"), validation=9)


@pytest.mark.parametrize("cases", [0, 1, 2, EACH, 2 * EACH - 1, 2 * EACH, 50])
def test_the_worst_and_the_best_are_kept_whatever_the_order(cases: int) -> None:
    random = np.random.default_rng(cases)
    dice = random.permutation(np.round(np.linspace(0, 1, cases), 2))
    found = Validated()
    batch = random.integers(0, 2, (cases, 4, 4)).astype(np.uint8)
    for n, value in enumerate(dice):
        found.add(f"c{n}", {"dice": float(value)}, batch[n], None)
    order = [f"c{n}" for n in np.argsort(dice)]
    assert [case.id for _, case in found.worst] == order[:EACH]
    assert [case.id for _, case in found.best] == order[-EACH:]
    assert [case.id for case in found.ends] == list(dict.fromkeys((*order[:EACH], *order[-EACH:])))
    kept = batch.copy()
    batch[:] = 9  # the loop's memory, which is used again
    assert all((case.prediction == kept[int(case.id[1:])]).all() for case in found.ends)
    assert len(found.scores) == cases


def test_a_trial_writes_the_scores_of_its_best_epoch(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(epochs=4, lr=2e-2), data, Listener(tmp_path))
    told = {}
    while not run.finished:
        run.run_epoch()
        told[run.epoch] = dict(run.validation.scores)
        draw_where_due(run, {"rungs": (2, 4)})
    best = max(run.history, key=lambda r: (r.metrics[OBJECTIVE], -r.epoch))
    rows = list(csv.DictReader((tmp_path / FILE).open()))
    assert [row["case"] for row in rows] == list(data.validation.ids)
    assert {int(row["epoch"]) for row in rows} == {best.epoch}
    found = read_cases(tmp_path / FILE)
    assert np.mean([row["dice"] for row in found.values()]) == pytest.approx(best.metrics["val_dice"], abs=1e-5)
    assert {case: row["dice"] for case, row in found.items()} == pytest.approx(
        {c: s["dice"] for c, s in told[best.epoch].items()}, abs=1e-5
    )
    shares = [float((data.validation.mask(i) > 0).mean()) for i in range(len(data.validation))]
    assert [row["foreground"] for row in found.values()] == pytest.approx(shares, abs=1e-5)
    with Image.open(tmp_path / "pictures" / ENDS) as ends, Image.open(tmp_path / "pictures" / VALIDATION) as first:
        assert ends.height > 1.4 * first.height  # six cases, not four
    assert run.best_validation is None


def test_what_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    assert read_cases(tmp_path / "none.csv") == {}
    for text in ("", "case,dice\na,b\n", "dice\n1\n", "case,dice\na\n", "case,iou\na,0.5\n"):
        (tmp_path / "bad.csv").write_text(text)
        assert read_cases(tmp_path / "bad.csv") == {}
    write_cases(tmp_path / "x.csv", 3, {'a,\n"b': {"dice": 1 / 3, "iou": 0.2}}, {'a,\n"b': 0.5})
    assert read_cases(tmp_path / "x.csv") == {'a,\n"b': {"epoch": 3, "foreground": 0.5, "dice": 0.333333, "iou": 0.2}}


def _train(rank: int, folder: str) -> None:
    """One of two workers."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (Path(folder) / f"data-{rank}").mkdir()
    data = make_data(Path(folder) / f"data-{rank}", validation=9)
    run = TrainingRun(make_experiment(epochs=1, batch_size=2), data, Listener(Path(folder) / "trial"), rank=rank, world_size=2)
    run.run_epoch()
    if rank == 0:
        draw_where_due(run, {})
        (Path(folder) / "mean").write_text(str(run.history[-1].metrics["val_dice"]))
    run.close()
    torch.distributed.destroy_process_group()


def test_of_several_workers_the_first_has_the_scores_of_all_cases(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train, args=(str(tmp_path),), nprocs=2)
    found = read_cases(tmp_path / "trial" / FILE)
    assert sorted(found) == [f"case_{n:02d}" for n in range(6, 15)]
    assert np.mean([row["dice"] for row in found.values()]) == pytest.approx(float((tmp_path / "mean").read_text()), abs=1e-5)
