"""The trial actor, driven as Tune drives it but in this process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import GUIDE, make_experiment

from guidino_tune.data import opening
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.tuning import executors
from guidino_tune.tuning.executors import TrialActor


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
        "reported": 0, "folder": str(tmp_path / "trials" / f"{number:05d}"),
    }  # fmt: skip


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes actors without Tune's logging; the environment that they set is put back."""
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))

    def make(values: dict[str, Any]) -> TrialActor:
        made = TrialActor.__new__(TrialActor)
        made.setup(values)
        return made

    return make


def records(results: list[dict[str, Any]]) -> list[EpochRecord]:
    return [EpochRecord(**json.loads(r["record"])) for r in results]


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

    monkeypatch.setattr(executors, "TrainingRun", fails)
    values = config(tmp_path, demo)
    told = actor(values).step()
    assert told["failure"] == kind
    file = Path(values["folder"]) / "traceback.txt"
    assert file.exists() == (kind == "bug")
    if kind == "bug":
        assert "shapes differ" in file.read_text()
        assert str(file) in told["message"]


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
