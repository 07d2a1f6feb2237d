"""Epochs of a number of steps: runs of batches over passes, the same views, and a training that goes on exactly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from training_helpers import Listener, make_data, make_experiment, train, values

from guidino_tune.config import Data, Experiment
from guidino_tune.config.epochs import LEAST_STEPS, Steps, batches_per_pass, steps_per_epoch
from guidino_tune.data.batches import Batch
from guidino_tune.data.opening import SearchData
from guidino_tune.data.store import ChunkStore
from guidino_tune.data.views import TrainViews
from guidino_tune.space.advice import training_notes
from guidino_tune.training.loop import TrainingRun

PLAIN, NNUNET = Data(kind="folder", augmentation="none"), Data(kind="folder", augmentation="nnunet")


class Ids:
    """A table of names only."""

    def __init__(self, count: int) -> None:
        self.ids = tuple(f"c{i}" for i in range(count))

    def __len__(self) -> int:
        return len(self.ids)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"))  # six for training: at batch 3 two steps, at batch 4 too


def same(a: list[Batch], b: list[Batch]) -> None:
    assert [batch.ids for batch in a] == [batch.ids for batch in b]
    assert all(torch.equal(x.images, y.images) and torch.equal(x.masks, y.masks) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("wanted", "batches", "expected"),
    [("cases", 5, 5), ("cases", 500, 500), (None, 5, 50), (None, 50, 50), (None, 51, 51), (7, 5, 7), (7, 500, 7), (1, 3, 1)],
)
def test_steps_of_an_epoch(wanted: Steps, batches: int, expected: int) -> None:
    assert steps_per_epoch(wanted, batches) == expected


@pytest.mark.parametrize(
    ("cases", "batch", "workers", "expected"), [(20, 4, 1, 5), (21, 4, 1, 5), (22, 4, 1, 6), (22, 4, 2, 5), (1, 4, 1, 0), (3, 1, 1, 3)]
)
def test_batches_of_a_pass(cases: int, batch: int, workers: int, expected: int) -> None:
    assert batches_per_pass(cases, batch, workers) == expected


@examples(40)
@given(
    count=st.integers(2, 40), share=st.integers(1, 5), workers=st.integers(1, 3), steps=st.none() | st.just("cases") | st.integers(1, 90)
)
def test_epochs_are_runs_of_the_passes_one_after_the_other(count: int, share: int, workers: int, steps: Steps) -> None:
    size = share * workers
    if batches_per_pass(count, size, workers) == 0:
        return
    for rank in range(workers):
        views = TrainViews(Ids(count), PLAIN, 1, size, rank, workers, steps=steps)  # type: ignore[arg-type]
        views._batch = lambda number, ids: (number, ids)  # type: ignore[assignment, method-assign, return-value]
        epochs = [list(views.epoch(epoch)) for epoch in range(3)]
        assert {len(epoch) for epoch in epochs} == {views.num_steps}
        found = [batch for epoch in epochs for batch in epoch]
        passes = -(-len(found) // views.num_batches)
        expected = [(number, ids) for number in range(passes) for ids in views.order(number)]
        assert found == expected[: len(found)]


@pytest.mark.parametrize("steps", [2, "cases"])
def test_a_pass_for_an_epoch_is_as_ever(steps: Steps, data: SearchData) -> None:
    ever, counted = TrainViews(data.train, NNUNET, 3, 3), TrainViews(data.train, NNUNET, 3, 3, steps=steps)
    for epoch in range(3):
        same(list(counted.epoch(epoch)), list(ever.epoch(epoch)))
        assert [batch.ids for batch in counted.epoch(epoch)] == ever.order(epoch)


@pytest.mark.parametrize("cycle", [None, 2])
def test_shared_views_of_long_epochs_are_those_made_alone(cycle: int | None, data: SearchData, tmp_path: Path) -> None:
    section = Data(kind="folder", augmentation="nnunet", view_cycle=cycle)
    list(TrainViews(data.train, section, 0, 3, store=ChunkStore(tmp_path, 10**8), num_epochs=2).epoch(0))  # another trial's, of one pass
    store = ChunkStore(tmp_path, 10**8)
    shared = TrainViews(data.train, section, 0, 4, store=store, num_epochs=2, steps=5)
    alone = TrainViews(data.train, section, 0, 4, steps=5)
    for epoch in range(2):
        same(list(shared.epoch(epoch)), list(alone.epoch(epoch)))
    time.sleep(0.2)
    shared.close()
    made = sorted(p.parent.name for p in tmp_path.rglob("*.arrow"))
    # Ten steps are five passes of two; a cycle of two passes has the views of two.
    assert made == [f"{number:05d}" for number in range(2 if cycle else 5)]


def test_a_cycle_counts_passes(data: SearchData) -> None:
    views = TrainViews(data.train, Data(kind="folder", augmentation="nnunet", view_cycle=2), 0, 3, steps=4)  # two passes
    images = [{n: b.images[i] for b in views.epoch(epoch) for i, n in enumerate(b.ids)} for epoch in range(2)]
    assert all(torch.equal(images[0][name], images[1][name]) for name in images[0])


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_two_halves_equal_one_run_wherever_a_pass_ends(steps: int, data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment(steps_per_epoch=steps)
    straight = train(experiment, data, tmp_path / "straight")
    train(experiment, data, tmp_path / "halves", stop_after=2)
    continued = train(experiment, data, tmp_path / "halves", reported=2)
    assert values(continued) == values(straight)
    a, b = continued.model.trained_state(), straight.model.trained_state()
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_as_many_steps_as_a_pass_has_are_the_training_of_cases(data: SearchData, tmp_path: Path) -> None:
    runs = [train(make_experiment(steps_per_epoch=steps), data, tmp_path / str(steps)) for steps in ("cases", 2)]
    assert values(runs[0]) == values(runs[1])


def test_an_epoch_of_few_cases_is_fifty_steps(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(steps_per_epoch=None, epochs=1), data, Listener(tmp_path))
    seen: list[int] = []
    step = run.optimizer.step
    run.optimizer.step = lambda *args: (seen.append(1), step(*args))[1]  # type: ignore[method-assign, assignment]
    start = time.perf_counter()
    run.run_epoch()
    seconds = time.perf_counter() - start
    assert len(seen) == LEAST_STEPS == run.views.num_steps
    metrics = run.history[0].metrics
    assert metrics["images_per_second"] >= 3 * LEAST_STEPS / seconds  # of the training alone, which took less
    assert metrics["images_per_second"] * metrics["epoch_seconds"] >= 3 * LEAST_STEPS


def experiment_of(batch_size: int = 4, folds: int | None = None, **training: object) -> Experiment:
    return Experiment.from_dict(
        {"data": {"kind": "demo", "folds": folds}, "guide": {"kind": "none"}, "training": {"batch_size": batch_size, **training}}
    )


@pytest.mark.parametrize(
    ("cases", "training", "workers", "said"),
    [
        (20, {}, 1, "an epoch: 50 steps (20 cases at batch 4 are 5 steps; 10 passes)"),
        (22, {}, 1, "an epoch: 50 steps (22 cases at batch 4 are 6 steps; 8.3 passes)"),
        (22, {}, 2, "an epoch: 50 steps (22 cases at batch 4 are 5 steps; 10 passes)"),
        (800, {}, 1, "an epoch: 200 steps (800 cases at batch 4, every case once)"),
        (20, {"steps_per_epoch": "cases"}, 1, "an epoch: 5 steps (20 cases at batch 4, every case once)"),
        (4, {"steps_per_epoch": "cases"}, 1, "an epoch: 1 step (4 cases at batch 4, every case once)"),
        (800, {"steps_per_epoch": 100}, 1, "an epoch: 100 steps (800 cases at batch 4 are 200 steps; 0.5 passes)"),
    ],
)
def test_the_length_of_an_epoch_in_words(cases: int, training: dict, workers: int, said: str) -> None:
    assert training_notes(experiment_of(**training), cases, 40, workers) == [said]


def test_few_validation_cases_are_told_with_what_can_be_done() -> None:
    _, note = training_notes(experiment_of(), 18, 2)
    assert "only 2 cases are for validation: each is 50 % of every score" in note
    assert "data.folds=5 divides all that is not for the test into 5 parts" in note
    assert "retrain --folds 5" in note
    assert "only 1 case is for validation: each is 100 %" in training_notes(experiment_of(), 18, 1)[1]
    assert experiment_of(folds=5).data.folds == 5  # what it says can be said
    _, note = training_notes(experiment_of(folds=3), 18, 9)
    assert "data.folds" not in note
    assert "retrain --folds 3" in note
    assert len(training_notes(experiment_of(), 18, 10)) == 1
    assert "data.folds=3 divides" in training_notes(experiment_of(), 2, 1)[1]  # more parts than cases there cannot be
    limited = Experiment.from_dict({"data": {"kind": "demo", "max_validation_cases": 4}, "guide": {"kind": "none"}})
    assert "raise data.max_validation_cases, which is 4" in training_notes(limited, 100, 4)[1]
