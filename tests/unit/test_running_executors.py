"""The trial actor, driven as Tune drives it but in this process."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import GUIDE, make_experiment

from guidino_tune.data import makers, opening
from guidino_tune.models import GuidedSegmenter
from guidino_tune.running import executors
from guidino_tune.running.executors import TrialActor
from guidino_tune.training import loop
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.reporter import EpochRecord


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve demo images in the layout of a plain folder."""
    from PIL import Image

    from guidino_tune.data.sources.demo import generate

    root = tmp_path_factory.mktemp("images")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for number in range(12):
        image, mask = generate(number, 32)
        Image.fromarray(image).save(root / "images" / f"c{number:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"c{number:02d}.png")
    return root


def config(tmp_path: Path, demo: Path, number: int = 0, *, guide: dict | None = GUIDE, **training: Any) -> dict[str, Any]:
    experiment = make_experiment(guide=guide, epochs=3, **training).to_dict()
    experiment["data"] |= {"kind": "folder", "root": str(demo)}
    return {
        "home": str(tmp_path / "home"), "split_file": str(tmp_path / "split.json"), "ray_folder": str(tmp_path / "ray"),
        "cpus": 1, "gpus": 0.0, "workers": 1, "max_failures": 0, "sealed": False, "number": number, "experiment": experiment,
        "reported": 0, "executor": "actor", "views": (str(tmp_path / "views"), 1.0), "folder": str(tmp_path / "trials" / f"{number:05d}"),
    }  # fmt: skip


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes actors without Tune's logging, each the end of the one before; the environment that they set is put back."""
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))
    made: list[TrialActor] = []

    def make(values: dict[str, Any]) -> TrialActor:
        if made:
            made[-1].cleanup()
        made.append(TrialActor.__new__(TrialActor))
        made[-1].setup(values)
        return made[-1]

    return make


def records(results: list[dict[str, Any]]) -> list[EpochRecord]:
    return [EpochRecord(**values) for r in results for values in json.loads(r["records"])]


def test_each_step_is_an_epoch_and_the_folder_holds_everything(tmp_path: Path, demo: Path, actor: Any) -> None:
    values = config(tmp_path, demo)
    steps = [actor(values).step()]
    trial = actor(values)  # a new process goes on
    steps += [trial.step() for _ in range(3)]  # the first one tells again what the driver did not know
    assert [r.epoch for r in records(steps)] == [1, 1, 2, 3]
    folder = TrialFolder(Path(values["folder"]))
    assert folder.history() == records(steps[1:])
    assert [p.name for p in folder.checkpoints()] == ["epoch-00003", "epoch-00002"]
    assert (folder.path / "experiment.yaml").exists()
    assert (folder.pictures / "validation.png").exists()
    assert (folder.best / "weights.safetensors").exists()


def test_a_trial_that_was_finished_tells_its_end_without_a_second_line(tmp_path: Path, demo: Path, actor: Any) -> None:
    values = config(tmp_path, demo)
    trial = actor(values)
    told = records([trial.step() for _ in range(3)])
    again = actor({**values, "reported": 3})
    assert records([again.step()]) == told[-1:]
    assert TrialFolder(Path(values["folder"])).history() == told


def test_one_process_runs_many_trials_and_a_failure_is_its_own(
    tmp_path: Path, demo: Path, actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = config(tmp_path, demo, 0)
    trial = actor(first)
    good = trial.step()
    trial.reset_config(config(tmp_path, demo, 1, guide=None, lr=1e38, grad_clip=None, optimizer="sgd"))
    for _ in range(3):
        bad = trial.step()
        if "failure" in bad:
            break
    assert bad["failure"] == "diverged"
    assert "not finite" in bad["message"]
    trial.reset_config(config(tmp_path, demo, 2))
    assert {k: v for k, v in records([trial.step()])[0].metrics.items() if "second" not in k} == {
        k: v for k, v in records([good])[0].metrics.items() if "second" not in k
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out-of-memory"),
        (RuntimeError("shapes differ"), "bug"),
    ],
)
def test_failures_are_told_with_their_kind(
    error: Exception, kind: str, tmp_path: Path, demo: Path, actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loop, "TrainingRun", fails)
    values = config(tmp_path, demo)
    told = actor(values).step()
    assert told["failure"] == kind
    file = Path(values["folder"]) / "traceback.txt"
    assert file.exists() == (kind == "bug")
    if kind == "bug":
        assert "shapes differ" in file.read_text()
        assert str(file) in told["message"]


@pytest.mark.parametrize("lost", [False, True])
def test_a_process_that_lost_its_gpu_is_replaced_and_the_next_one_tells_why(
    lost: bool, tmp_path: Path, demo: Path, actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(executors, "_start", fails)
    monkeypatch.setattr(executors, "_gpu_is_lost", lambda: lost)
    values = {**config(tmp_path, demo), "gpus": 1.0}
    trial = actor(values)
    if lost:
        with pytest.raises(RuntimeError, match="device-side assert"):
            trial.step()
        trial = actor(values)
    told = trial.step()
    assert told["failure"] == "bug"
    assert "device-side assert" in told["message"]
    assert not (Path(values["folder"]) / executors.FAILURE).exists()


@pytest.mark.parametrize("most", [2, 0])
def test_out_of_memory_is_tried_once_more_in_two_parts(
    most: int, tmp_path: Path, demo: Path, actor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``most`` images fit; the second epoch is when it happens, so that the second attempt goes on from the first one's checkpoint."""
    trained: list[int] = []
    original = GuidedSegmenter.forward

    def forward(self: GuidedSegmenter, images: torch.Tensor, *rest: Any) -> Any:
        if self.training and sum(trained) >= 9 and len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.training:
            trained.append(len(images))
        return original(self, images, *rest)

    monkeypatch.setattr(GuidedSegmenter, "forward", forward)
    trial = actor(config(tmp_path, demo))
    told = [trial.step() for _ in range(2)]
    if not most:
        assert told[1]["failure"] == "out-of-memory"
        assert trial.reset_config(config(tmp_path, demo, 1))  # for Tune tells nobody of a trial that is refused
        return
    told.append(trial.step())
    assert [r.epoch for r in records(told)] == [1, 2, 3]
    assert [r.metrics.get("micro_batches") for r in records(told)] == [None, 2, 2]
    assert max(trained[-12:]) <= 2
    trial.reset_config(config(tmp_path, demo, 1))
    assert trial.parts == 1  # a new trial starts with whole batches again


def test_trials_share_views_and_only_validate_on_schedule(tmp_path: Path, demo: Path, actor: Any) -> None:
    trial = actor({**config(tmp_path, demo), "validated": (2,)})
    told = records([trial.step() for _ in range(3)])
    assert ["val_dice" in r.metrics for r in told] == [False, True, True]
    trial.reset_config({**config(tmp_path, demo, 1), "validated": (2,)})
    again = records([trial.step() for _ in range(3)])
    assert [r.metrics["train_loss_total"] for r in again] == [r.metrics["train_loss_total"] for r in told]
    epochs = {p.parent.name for p in (tmp_path / "views").glob("views-*/*/*.arrow")}
    assert epochs == {"00000", "00001", "00002"}
    alone = actor({**config(tmp_path, demo, 2), "views": None})
    off = records([alone.step() for _ in range(3)])
    assert [r.metrics["train_loss_total"] for r in off] == pytest.approx([r.metrics["train_loss_total"] for r in told], rel=1e-2)


def test_processes_that_make_views_change_no_number(tmp_path: Path, demo: Path, actor: Any) -> None:
    alone = actor(config(tmp_path, demo))
    told = records([alone.step() for _ in range(3)])
    try:
        trial = actor({**config(tmp_path, demo, 1), "views": (str(tmp_path / "others"), None, 1)})
        again = records([trial.step() for _ in range(3)])
        assert len(makers._started) == 1
    finally:
        for process in makers._started.values():
            process.kill()
            process.wait(10)
        makers._started.clear()
    assert [r.metrics["train_loss_total"] for r in again] == [r.metrics["train_loss_total"] for r in told]


def test_views_that_cannot_be_kept_are_told_and_the_trial_goes_on(tmp_path: Path, demo: Path, actor: Any) -> None:
    (tmp_path / "file").write_text("")
    trial = actor({**config(tmp_path, demo), "views": (str(tmp_path / "file" / "views"), None)})
    told = [trial.step() for _ in range(3)]
    assert all("set resources.views_folder" in t["note"] for t in told)
    assert records(told)[-1].metrics["train_loss_total"] > 0


def test_a_worker_group_is_told_of_between_two_validations_only_once(tmp_path: Path, demo: Path) -> None:
    values = {**config(tmp_path, demo), "executor": "train", "validated": (2,)}
    told: list[dict[str, Any]] = []
    run = executors._start(values, told.append, device="cpu")
    while not run.finished:
        run.run_epoch()
    run.close()
    assert [[r.epoch for r in records([result])] for result in told] == [[1, 2], [3]]
    assert [result["epoch"] for result in told] == [2, 3]


def test_missing_data_is_bad_data(tmp_path: Path, demo: Path, actor: Any) -> None:
    values = config(tmp_path, tmp_path / "nowhere")
    assert actor(values).step()["failure"] == "bad data"


def test_the_search_s_processes_are_sealed(tmp_path: Path, demo: Path, actor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDINO_TUNE_SEALED", "0")
    values = {**config(tmp_path, demo), "sealed": True}
    actor(values).step()
    from guidino_tune.config import Experiment
    from guidino_tune.data.sealed import open_test

    experiment = Experiment.from_dict(values["experiment"])
    with pytest.raises(RuntimeError, match="sealed"):
        open_test(experiment.data, Path(values["split_file"]), reason="curiosity")
    assert opening.open_for_search(experiment.data, split_file=Path(values["split_file"])).split.test


@pytest.mark.parametrize("rank", [0, 1])
def test_no_worker_reads_the_checkpoint_before_the_first_one_has_the_folder(
    rank: int, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process before them may still save an epoch: workers that have read different ones would never meet again."""
    values, seen = config(tmp_path, demo), []
    folder = TrialFolder(Path(values["folder"]))
    monkeypatch.setattr(torch.distributed, "barrier", lambda: seen.append("all are here"))
    monkeypatch.setattr(executors, "check_together", lambda *_: None)  # see test_running_worker_groups
    hold = TrialFolder.hold
    monkeypatch.setattr(TrialFolder, "hold", lambda self, **how: (seen.append("has the folder"), hold(self, **how))[1])

    def read(*_: object, **__: object) -> None:
        seen.append("reads")
        raise RuntimeError("enough")

    monkeypatch.setattr(loop, "TrainingRun", read)
    with pytest.raises(RuntimeError, match="enough"):
        executors._start(values, print, device="cpu", rank=rank, world_size=2)
    assert seen == [*(["has the folder"] if rank == 0 else []), "all are here", "reads"]
    folder.hold(patience=0).close()  # a failed start lets go of it


def test_a_failure_is_told_when_its_checkpoint_is_written(
    actor: Callable[..., TrialActor], tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before, the driver would remove weights, and they would come back."""
    original, slow = TrialFolder.save, threading.Event()

    def save(folder: TrialFolder, *arguments: Any, **more: Any) -> None:
        slow.wait(1)
        original(folder, *arguments, **more)

    monkeypatch.setattr(TrialFolder, "save", save)
    running = actor(config(tmp_path, demo) | {"rungs": (3,)})
    assert "failure" not in running.step()
    folder = TrialFolder(Path(running.config["folder"]))
    assert not folder.best.exists()
    monkeypatch.setattr(loop.TrainingRun, "_train", lambda run: (_ for _ in ()).throw(loop.Diverged("nan")))
    assert running.step()["failure"] == "diverged"
    assert folder.best.exists()


def test_what_may_end_by_its_costs_is_saved_before_it_is_told(actor: Callable[..., TrialActor], tmp_path: Path, demo: Path) -> None:
    running = actor(config(tmp_path, demo) | {"rungs": (3,), "measure": True})
    running.step()
    assert running.run is not None
    assert not running.run._saver.busy
    assert [path.name for path in running.run.reporter.checkpoints()] == ["epoch-00001"]
