"""The tracker against a real MLflow database."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from guidino_tune.tracking import DatasetInfo, EpochRecord, MLflowTracker, StudySnapshot, TrialSnapshot
from guidino_tune.tracking.client import connect
from guidino_tune.tracking.ledger import Ledger
from guidino_tune.tracking.missing import missing
from guidino_tune.tracking.snapshots import EndedTrial

T0 = 1_700_000_000.0


def record(epoch: int, dice: float, **more: float) -> EpochRecord:
    return EpochRecord(epoch, {"val_dice": dice, "train_loss": 1.0 / epoch, **more}, T0 + epoch)


def trial(number: int = 0, dices: tuple[float, ...] = (0.5,), **more: Any) -> TrialSnapshot:
    params: dict[str, Any] = {"training.lr": 1e-4, "guide.kind": "dino", "training.grad_clip": None, "segmenter.deep_supervision": True}
    values: dict[str, Any] = {"params": params, "searched": {"training.lr": 1e-4}, **more}
    return TrialSnapshot(number, "GuiDINO-W", history=tuple(record(e, d) for e, d in enumerate(dices, 1)), **values)


STUDY = StudySnapshot("kvasir's", params={"space.trials": 5}, datasets=(DatasetInfo("kvasir", "ab" * 32, 8, 2),), tags={"who": "me"})


Make = Callable[..., MLflowTracker]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> tuple[str, Path]:
    """One database for all tests here; each test has its own experiment."""
    folder = tmp_path_factory.mktemp("ml flow #1")
    shutil.copy(empty_mlflow, folder)
    return f"sqlite:///{folder}/mlflow.db", folder / "artifacts"


@pytest.fixture
def make(database: tuple[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[MLflowTracker] = []

    def build(study: StudySnapshot = STUDY, ledger: str = "ledger.jsonl") -> MLflowTracker:
        tracker = MLflowTracker(database[0], request.node.name, study, tmp_path / ledger, database[1])
        made.append(tracker)
        tracker.start()
        return tracker

    yield build
    for tracker in made:
        tracker.close(0)


class Stored:
    def __init__(self, uri: str, experiment: str) -> None:
        self.client = connect(uri)
        self.id = self.client.get_experiment_by_name(experiment).experiment_id

    def all(self) -> list[Any]:
        return list(self.client.search_runs([self.id]))

    def parent(self) -> Any:
        (run,) = self.client.search_runs([self.id], "tags.`guidino.kind` = 'study'")
        return run

    def children(self, order: str = "metrics.best_val_dice DESC") -> list[Any]:
        return list(self.client.search_runs([self.id], f"tags.`mlflow.parentRunId` = '{self.parent().info.run_id}'", order_by=[order]))

    def steps(self, run: Any, key: str = "val_dice") -> list[tuple[int, float, int]]:
        return [(m.step, m.value, m.timestamp) for m in self.client.get_metric_history(run.info.run_id, key)]

    def files(self, run: Any, folder: str) -> list[str]:
        return sorted(a.path for a in self.client.list_artifacts(run.info.run_id, folder))


@pytest.fixture
def stored(database: tuple[str, Path], request: pytest.FixtureRequest) -> Callable[[], Stored]:
    return lambda: Stored(database[0], request.node.name)


def test_runs_params_metrics_and_states(make: Make, stored: Callable[[], Stored]) -> None:
    tracker = make()
    tracker.update(trial(3, (0.2, 0.7, 0.6), state="complete", finished=T0 + 9))
    tracker.update(trial(4, (0.8,), state="pruned", started=T0 - 5))
    tracker.update(trial(5, (), state="fail", reason="out of memory"))
    tracker.update(trial(6, (math.nan, math.inf)))
    assert tracker.close(30), tracker.message
    assert tracker.last_error is None
    assert "mlflow ui" in tracker.message or "mlflow" in tracker.ui_command
    seen = stored()
    parent = seen.parent()
    assert (parent.info.run_name, parent.info.status, parent.data.params, parent.data.tags["who"]) == (
        "kvasir's",
        "FINISHED",
        {"space.trials": "5"},
        "me",
    )
    (data,) = parent.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("kvasir", ("ab" * 32)[:36])
    runs = seen.children()
    assert [r.info.run_name for r in runs[:2]] == ["trial 0004 GuiDINO-W", "trial 0003 GuiDINO-W"]  # sorted by their best dice
    by_number = {int(r.data.tags["guidino.trial"]): r for r in runs}
    assert {n: r.info.status for n, r in by_number.items()} == {3: "FINISHED", 4: "FINISHED", 5: "FAILED", 6: "RUNNING"}
    assert {n: r.data.tags["guidino.state"] for n, r in by_number.items()} == {3: "COMPLETE", 4: "PRUNED", 5: "FAIL", 6: "RUNNING"}
    assert by_number[5].data.tags["guidino.reason"] == "out of memory"
    three = by_number[3]
    assert three.data.params == {
        "training.lr": "0.0001",
        "guide.kind": "dino",
        "training.grad_clip": "null",
        "segmenter.deep_supervision": "true",
        "searched/training.lr": "0.0001",
    }
    assert seen.steps(three) == [(e, d, int((T0 + e) * 1000)) for e, d in ((1, 0.2), (2, 0.7), (3, 0.6))]
    assert [v for _, v, _ in seen.steps(three, "best_val_dice")] == [0.2, 0.7, 0.7]
    assert (three.info.start_time, three.info.end_time) == (int((T0 + 1) * 1000), int((T0 + 9) * 1000))
    assert by_number[4].info.start_time == int((T0 - 5) * 1000)
    assert "best_val_dice" not in by_number[6].data.metrics
    assert math.isnan(seen.steps(by_number[6])[0][1])
    assert three.data.tags["guidino.version"]


def test_minimised_objective(make: Make, stored: Callable[[], Stored]) -> None:
    tracker = make(replace(STUDY, objective="train_loss", maximize=False))
    tracker.update(replace(trial(0), history=tuple(EpochRecord(e, {"train_loss": v}, T0 + e) for e, v in enumerate((3.0, 1.0, 2.0), 1))))
    assert tracker.close(30)
    assert stored().children()[0].data.metrics["best_train_loss"] == 1.0


@pytest.mark.parametrize("lost", [False, True], ids=["ledger", "no-ledger"])
def test_resume_finds_the_same_runs_and_doubles_nothing(make: Make, stored: Callable[[], Stored], tmp_path: Path, lost: bool) -> None:
    picture = tmp_path / "case1_epoch0001.png"
    Image.new("RGB", (64, 32), "red").save(picture)
    first = make()
    first.update(trial(0, (0.1, 0.2), state="fail", reason="node died", pictures=(picture,)))
    first.update(trial(1, (0.3,)))
    assert first.close(30, interrupted=True)
    seen = stored()
    assert (seen.parent().info.status, [r.info.status for r in seen.children("attributes.run_name ASC")]) == (
        "KILLED",
        ["FAILED", "SCHEDULED"],
    )
    before = {r.data.tags["guidino.trial"]: r.info.run_id for r in seen.children()}
    if lost:
        (tmp_path / "ledger.jsonl").unlink()
    second = make()
    second.update(trial(0, (0.1, 0.2, 0.3), pictures=(picture,)))
    second.update(trial(1, (0.3, 0.4), state="complete"))
    second.update(trial(2, (0.9,), state="complete"))
    assert second.flush(30)
    assert seen.parent().info.status == "RUNNING"
    assert second.close(30)
    runs = {r.data.tags["guidino.trial"]: r for r in seen.children()}
    assert {k: r.info.run_id for k, r in runs.items() if k in before} == before
    assert len(seen.all()) == 4
    assert [(s, v) for s, v, _ in seen.steps(runs["0"])] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert [(s, v) for s, v, _ in seen.steps(runs["1"])] == [(1, 0.3), (2, 0.4)]
    assert len(seen.steps(runs["0"], "best_val_dice")) == 3
    assert runs["0"].info.status == "RUNNING"
    assert runs["1"].info.status == "FINISHED"
    if not lost:
        assert runs["0"].data.tags["guidino.reason"] == ""  # it runs again
    assert seen.files(runs["0"], "pictures") == ["pictures/case1_epoch0001.png"]
    assert len(seen.files(runs["0"], "images")) == 2


def test_two_studies_of_one_name_are_told_apart_by_id(make: Make, stored: Callable[[], Stored]) -> None:
    for identity in ("first", "second"):
        tracker = make(replace(STUDY, id=identity), ledger=f"{identity}.jsonl")
        tracker.update(trial(0))
        assert tracker.close(30)
    assert len(stored().all()) == 4


def test_pictures_and_artifacts(make: Make, stored: Callable[[], Stored], tmp_path: Path, database: tuple[str, Path]) -> None:
    picture, broken = tmp_path / "case1_epoch0010.png", tmp_path / "broken.png"
    Image.new("RGB", (640, 320), "red").save(picture)
    broken.write_bytes(b"no picture")
    best, folder = tmp_path / "best.yaml", tmp_path / "report"
    best.write_text("old")
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a.txt").write_text("a")
    study = replace(STUDY, artifacts=(best, folder))
    tracker = make(study)
    tracker.update(trial(0, pictures=(picture, broken), artifacts=(best,)))
    assert tracker.flush(30)
    seen = stored()
    child = seen.children()[0]
    assert seen.files(child, "pictures") == ["pictures/broken.png", "pictures/case1_epoch0010.png"]
    large, small = seen.files(child, "images")
    assert small.startswith("images/case1+step+10+timestamp+") or large.startswith("images/case1+step+10+timestamp+")
    assert {Path(large).suffix, Path(small).suffix} == {".png", ".webp"}
    assert child.data.tags["mlflow.loggedImages"] == "True"
    root = Path(database[1]) / child.info.run_id / "artifacts"
    with Image.open(next((root / "images").glob("*.webp"))) as preview:
        assert preview.size == (512, 256)
    parent = Path(database[1]) / seen.parent().info.run_id / "artifacts"
    assert (parent / "best.yaml").read_text() == "old"
    assert (parent / "report" / "in" / "a.txt").read_text() == "a"
    # Only what changed goes again.
    (parent / "report" / "in" / "a.txt").unlink()
    best.write_text("newer")
    tracker.update_study(replace(study, metrics={"trials": 1.0}))
    assert tracker.close(30)
    assert (parent / "best.yaml").read_text() == "newer"
    assert not (parent / "report" / "in" / "a.txt").exists()
    assert seen.parent().data.metrics == {"trials": 1.0}


def test_only_changed_study_metrics_are_sent(make: Make, stored: Callable[[], Stored]) -> None:
    tracker = make()
    for step, metrics in enumerate(({"n": 1.0, "x": math.nan}, {"n": 1.0, "x": math.nan}, {"n": 2.0, "x": math.nan})):
        tracker.update_study(replace(STUDY, metrics=metrics, step=step))
        assert tracker.flush(30)
    seen = stored()
    assert [v for _, v, _ in seen.steps(seen.parent(), "n")] == [1.0, 2.0]
    assert len(seen.steps(seen.parent(), "x")) == 1


def test_what_mlflow_refuses_does_not_block_the_rest(make: Make, stored: Callable[[], Stored], tmp_path: Path) -> None:
    tracker = make()
    tracker.update(trial(0, (0.5,), pictures=(tmp_path / "gone.png",)))
    tracker.update(replace(trial(1, (0.6,), state="complete"), history=(record(1, 0.6, **{"odd[name]": 1.0}),)))
    assert not tracker.close(30)
    assert "gone.png" in tracker.message
    assert tracker.pending == 0
    runs = stored().children("attributes.run_name ASC")
    assert [r.data.metrics["val_dice"] for r in runs] == [0.5, 0.6]
    assert runs[1].data.metrics["odd_name_"] == 1.0


def test_an_ended_trial_is_read_only_where_mlflow_lacks_it_and_is_not_kept(make: Make, stored: Callable[[], Stored]) -> None:
    read: list[int] = []

    def told(number: int, key: str, fresh: bool = False) -> dict[int, TrialSnapshot]:
        now, tracker = trial(number, (0.2, 0.7), state="complete", results={"test_dice": float(key)}), make()
        one = EndedTrial(number, key, lambda: (read.append(number), now)[1])
        tracker.update(now, one) if fresh else tracker.update_ended(one)
        assert tracker.close(30), tracker.message
        return tracker._trials

    assert (told(0, "0.5", fresh=True), told(0, "0.5"), read) == ({}, {}, [])
    assert (told(1, "0.5"), told(1, "0.6"), read) == ({}, {}, [1] * 4)  # for its figures, and for its files
    assert sorted(r.data.metrics["test_dice"] for r in stored().children()) == [0.5, 0.6]
    stored().client.delete_run(stored().parent().info.run_id)
    assert (told(0, "0.5"), set(read[4:])) == ({}, {0})
    assert [r.data.metrics["val_dice"] for r in stored().children()] == [0.7]


def test_a_run_deleted_by_hand_stays_deleted_and_a_lost_parent_is_made_again(make: Make, stored: Callable[[], Stored]) -> None:
    tracker = make()
    tracker.update(trial(0))
    tracker.update(trial(1))
    assert tracker.flush(30)
    seen = stored()
    gone = seen.children("attributes.run_name ASC")[0].info.run_id
    seen.client.delete_run(gone)
    tracker.update(trial(0, (0.5, 0.6)))
    tracker.update(trial(1, (0.5, 0.7)))
    assert tracker.close(30), tracker.message
    assert [r.data.tags["guidino.trial"] for r in seen.children()] == ["1"]
    seen.client.delete_run(seen.parent().info.run_id)
    tracker = make()
    tracker.update(trial(1, (0.5, 0.7)))
    assert tracker.close(30), tracker.message
    (child,) = seen.children()
    assert [v for _, v, _ in seen.steps(child)] == [0.5, 0.7]


def test_a_parameter_that_mlflow_refuses_costs_no_other_figure(make: Make, stored: Callable[[], Stored], tmp_path: Path) -> None:
    """Without its ledger everything goes out again, in requests of which one cannot be taken as a whole."""
    params = {f"p{n:03d}": n for n in range(250)}
    first = make()
    first.update(trial(0, (0.1, 0.2), params=params))
    assert first.close(30), first.message
    (tmp_path / "ledger.jsonl").unlink()
    second = make()
    second.update(trial(0, (0.1, 0.2, 0.3), params={**params, "p007": 8}, results={"test_dice": 0.4}, tags={"new": "yes"}, measured=T0))
    assert not second.close(30)
    assert "p007" in second.message
    run = stored().children()[0]
    assert run.data.params == {name: str(n) for name, n in params.items()} | {"searched/training.lr": "0.0001"}
    assert [(s, v) for s, v, _ in stored().steps(run)] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert stored().steps(run, "test_dice") == [(3, 0.4, int(T0 * 1000))]
    assert run.data.tags["new"] == "yes"


def test_a_ledger_of_an_earlier_version_is_gone_on_with(make: Make, stored: Callable[[], Stored], tmp_path: Path) -> None:
    """It counted the changes of metrics without an epoch, by which they are sorted in MLflow, and kept doubts of its own."""
    ended = trial(0, (0.1,), state="complete", results={"test_dice": 0.4}, finished=T0)
    first = make(replace(STUDY, metrics={"n": 1.0}, step=30, time=T0))
    first.update(ended)
    assert first.close(30), first.message
    seen = stored()
    ids = {run.data.tags.get("guidino.trial"): run.info.run_id for run in seen.all()}
    old = Ledger(tmp_path / "ledger.jsonl").sent("0")
    asked = {"values": {"n": 1.0}, "step": 30, "time": 1}
    lines = [
        {"run": "study", "run_id": ids[None], "status": "FINISHED", "params": True, "tags": {"who": "me"}, "doubtful": 5.0, "asked": asked},
        {"run": "study", "metrics": {"n": 1.0}, "step": 30, "asked": {}, "uri": ""},
        {"run": "0", "run_id": ids["0"], "params": True, "epoch": 1, "status": "FINISHED", "tags": old.tags, "doubtful": 5.0},
        {"run": "0", "metrics": {"test_dice": 0.4}, "step": 1, "asked": {}},
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert not missing(Ledger(tmp_path / "ledger.jsonl"), [ended], (), "")
    second = make(replace(STUDY, metrics={"n": 2.0}, step=2, time=T0 + 9))
    second.update(replace(ended, results={"test_dice": 0.3}, measured=T0 + 9))
    assert second.close(30), second.message
    assert {run.data.tags.get("guidino.trial"): run.info.run_id for run in seen.all()} == ids
    assert seen.parent().data.metrics == {"n": 2.0}
    assert [(s, v) for s, v, _ in seen.steps(seen.parent(), "n")] == [(30, 1.0), (32, 2.0)]
    assert seen.children()[0].data.metrics["test_dice"] == 0.3


def test_lost_answer_to_create_does_not_double_the_run(make: Make, stored: Callable[[], Stored], monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow created the run, but its answer was lost: the next try must find it."""
    import mlflow

    real, lost = mlflow.MlflowClient.create_run, list[str]()

    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = real(self, *args, **kwargs)
        if len(lost) < 2:
            lost.append(run.info.run_id)
            raise ConnectionError("answer lost")
        return run

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", create)
    tracker = make()
    tracker.update(trial(0))
    tracker.close(30)
    assert len(lost) == 2
    assert len(stored().all()) == 2


def test_a_double_that_comes_late_is_removed_the_next_time(
    make: Make, stored: Callable[[], Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server carries out a request that was given up, after the search has already looked for doubles."""
    from guidino_tune.tracking import runs

    make().close(30)
    here = stored()
    double = here.client.create_run(here.id, tags=dict(here.parent().data.tags)).info.run_id
    make().close(30)
    assert here.client.get_run(double).info.lifecycle_stage == "deleted"
    monkeypatch.setattr(runs, "DOUBT", -1.0)  # long ago
    make().close(30)
    later = here.client.create_run(here.id, tags=dict(here.parent().data.tags)).info.run_id
    make().close(30)
    assert here.client.get_run(later).info.lifecycle_stage == "active"


def test_changes_of_a_running_trial_go_together_and_its_end_goes_at_once(
    make: Make, stored: Callable[[], Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    calls: list[str] = []
    for name in ("log_batch", "search_runs"):
        real = getattr(mlflow.MlflowClient, name)
        monkeypatch.setattr(mlflow.MlflowClient, name, lambda *a, _name=name, _real=real, **k: (calls.append(_name), _real(*a, **k))[1])
    monkeypatch.setattr("guidino_tune.tracking.mlflow_tracker.GATHER", 3600.0)
    tracker = make()
    assert tracker.flush(30)
    calls.clear()
    started = time.time()
    for epochs in range(1, 6):
        tracker.update(trial(0, (0.1,) * epochs, started=started))
        tracker.update_study(replace(STUDY, metrics={"trials": float(epochs)}, step=epochs))
    tracker.update(trial(1, (0.2, 0.3), state="complete", started=started, finished=started + 1))
    deadline = time.monotonic() + 20
    while tracker.pending > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tracker.pending == 2
    assert calls == ["log_batch"]  # the ended trial; nothing is looked for, as a run of a trial that is new cannot be there
    assert tracker.close(30)
    seen = stored()
    assert [s for s, _, _ in seen.steps(seen.children("attributes.run_name ASC")[0])] == [1, 2, 3, 4, 5]
    assert seen.parent().data.metrics == {"trials": 5.0}


def test_many_epochs_catch_up_in_order(make: Make, stored: Callable[[], Stored], tmp_path: Path) -> None:
    dices = tuple((7 * e % 100) / 100 for e in range(1, 701))
    tracker = make()
    tracker.update(trial(0, dices))
    assert tracker.close(60)
    seen = stored()
    assert [(s, v) for s, v, _ in seen.steps(seen.children()[0])] == list(enumerate(dices, 1))
    assert Ledger(tmp_path / "ledger.jsonl").sent("0").epoch == 700
