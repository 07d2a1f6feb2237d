"""A trial trained once more: identical where everything is the same, with its difference in numbers and words where not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import TrialState
from PIL import Image
from training_helpers import search_space

from guidino_tune import paths
from guidino_tune.config import Experiment
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.reproduce_trial import main
from guidino_tune.running.executors import TrialActor
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.training.noted_machines import read_machines
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.repeat_trial import repeat_trial

EPOCHS = 4


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a study with a complete, a stopped, a failed and a running trial, each continued by a new process after epoch 1."""
    home = tmp_path_factory.mktemp("home")
    for name in ("images", "masks"):
        (home / "data" / name).mkdir(parents=True)
    for number in range(12):
        for name, picture in zip(("images", "masks"), generate(number, 32), strict=True):
            Image.fromarray(picture).save(home / "data" / name / f"c{number:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDINO_TUNE_HOME", str(home))
        patch.setenv("GUIDINO_TUNE_SEALED", "0")
        search(home)
    return home


def search(home: Path) -> None:
    space = search_space(
        experiment={"data": {"kind": "folder", "root": str(home / "data")}, "training": {"epochs": EPOCHS}},
        study={"pruner": "none", "validate_every": 2},
        space={"guide.lora.rank": {"choices": [0, 2]}},
        first_trials=[{"training.lr": 1e-3, "segmenter.base_width": 2, "guide.lora.rank": r} for r in (0, 2)],
    )
    folder = StudyFolder(paths.studies() / "small")
    study = open_study(space, folder)
    settings = {
        "home": str(home), "split_file": str(folder.split), "executor": "actor", "cpus": 1, "gpus": 0.0, "workers": 1,
        "views": (str(paths.views()), 1.0),
    }  # fmt: skip
    driver = Driver(study, space, folder, lambda *_: None, settings)
    actor: TrialActor | None = None
    for number, epochs in enumerate((EPOCHS, 3, 2, 2, 0)):
        values = driver.ask(str(number))
        for epoch in range(epochs):
            if epoch in (0, 1):  # a new process: it goes on from the checkpoint
                if actor:
                    actor.cleanup()
                actor = TrialActor.__new__(TrialActor)
                actor.setup({**values, "reported": epoch})
            assert actor
            driver.report(str(number), map(EpochRecord.from_dict, json.loads(actor.step()["records"])))
        if number == 2:
            driver.reasons[2] = ("diverged", "made up")
        if number != 3:
            driver.tell(str(number), crashed=False)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "PRUNED"]
    assert study.trials[3].state == TrialState.RUNNING


@pytest.fixture
def home(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "home"
    shutil.copytree(searched, copy)
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(copy))
    monkeypatch.setenv("GUIDINO_TUNE_SEALED", "0")
    return copy


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "repeats" not in p.parts}


@pytest.mark.parametrize(("number", "epochs"), [(0, 4), (1, 3), (2, 2), (3, 2)], ids=["complete", "stopped", "failed", "running"])
def test_a_trial_repeats_bit_by_bit(number: int, epochs: int, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "studies" / "small"
    before, threads = contents(folder), torch.get_num_threads() + 2  # not those of the trial
    torch.set_num_threads(threads)
    assert main(["small", str(number)]) == 0
    shown = capsys.readouterr().out
    assert f"{epochs} epochs: identical bit by bit" in shown
    assert contents(folder) == before  # the study is only read
    assert torch.get_num_threads() == threads
    made = [json.loads(line) for line in (folder / "repeats" / f"{number:05d}" / "history.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in made] == list(range(1, epochs + 1))
    assert ["val_dice" in r["metrics"] for r in made] == [False, True, False, True][:epochs]
    stored = [json.loads(line) for line in (folder / "trials" / f"{number:05d}" / "history.jsonl").read_text().splitlines()]
    assert [r["metrics"]["train_loss_total"] for r in made] == [r["metrics"]["train_loss_total"] for r in stored]
    assert made[0]["time"] > stored[-1]["time"]  # and really trained


def change(home: Path, epoch: int, name: str, by: float) -> None:
    """Another stored value, in its last digits."""
    file = home / "studies" / "small" / "trials" / "00000" / "history.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[epoch - 1]["metrics"][name] += by
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_difference_is_measured_from_its_first_epoch_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(home, 3, "train_loss_total", 3e-7)
    change(home, 4, "val_dice", -2e-5)
    assert main(["small", "0"]) == 1
    shown = capsys.readouterr().out
    assert "4 epochs: differs from epoch 3 on; loss and validation Dice by at most 2e-05" in shown
    assert "-3e-07" in shown
    assert "+2e-05" in shown
    assert "no cause is known" in shown
    assert main(["small", "0", "--epochs", "2"]) == 0
    assert "2 epochs: identical" in capsys.readouterr().out
    assert main(["small", "0", "--tolerance", "1e-5"]) == 1
    assert main(["small", "0", "--tolerance", "1e-4"]) == 0


def test_every_metric_counts(home: Path) -> None:
    assert repeat_trial("small", 0).differing is None
    change(home, 4, "val_hd95", 1e-9)
    assert repeat_trial("small", 0).differing == (4, 0.0)
    assert main(["small", "0"]) == 1


def test_another_machine_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "studies" / "small" / "trials" / "00000" / "environment.json"
    noted = json.loads(file.read_text())
    assert len(noted) == 1  # two processes that said the same
    assert noted[0] | {"after_epoch": 0, "torch": torch.__version__, "device": "cpu", "threads": 1, "bf16": False, "workers": 1} == noted[0]
    file.write_text(json.dumps([noted[0] | {"torch": "1.0", "workers": 2}]))
    change(home, 1, "train_loss_total", 1e-3)
    assert main(["small", "0"]) == 1
    shown = capsys.readouterr().out
    assert f"torch: 1.0 then, {torch.__version__} now" in shown
    assert "workers: 2 then, 1 now" in shown
    file.write_text("no list")
    assert read_machines(file.parent) == []
    assert "is not noted" in repeat_trial("small", 0, epochs=1).reasons[0]


def test_threads_and_precision_are_those_of_the_trial(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guidino_tune.workflows import repeat_trial as repeating

    seen: list[tuple[int, str]] = []
    real = repeating.TrainingRun

    def watched(experiment: Any, *args: Any, **options: Any) -> Any:
        seen.append((torch.get_num_threads(), experiment.training.precision))
        return real(experiment, *args, **options)

    monkeypatch.setattr(repeating, "TrainingRun", watched)
    file = home / "studies" / "small" / "trials" / "00000" / "environment.json"
    file.write_text(json.dumps([json.loads(file.read_text())[0] | {"threads": 2}]))
    repeat_trial("small", 0, epochs=1)
    assert seen == [(2, "fp32")]


def test_micro_batches_of_the_trial_are_taken_from_its_history(home: Path) -> None:
    """A trial that ran out of memory in its third epoch went on with halves of batches."""
    for epoch in (3, 4):
        change_to(home, epoch, "micro_batches", 2)
    repeated = repeat_trial("small", 0)
    assert [r.metrics.get("micro_batches", 1) for r in repeated.now] == [1, 1, 2, 2]
    assert [_loss(r) for r in repeated.now[:2]] == [_loss(r) for r in repeated.then[:2]]
    assert repeated.differing is not None  # batch norm sees other batches
    assert repeated.differing[0] == 3


def change_to(home: Path, epoch: int, name: str, value: float) -> None:
    file = home / "studies" / "small" / "trials" / "00000" / "history.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[epoch - 1]["metrics"][name] = value
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _loss(record: Any) -> float:
    return float(record.metrics["train_loss_total"])


def test_mistakes(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*argv: str) -> str:
        assert main(list(argv)) == 2
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return shown.err

    assert "studies: small" in message("smal", "0")
    assert "no trial 17" in message("small", "17")
    assert "has finished no epoch" in message("small", "4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "not empty" in message("small", "0", "--output", str(tmp_path / "full"))
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    # The copied study still reads the images of the first one: change what the study knows of them instead.
    definition = home / "studies" / "small" / "study.yaml"
    definition.write_text(definition.read_text().replace("hinge_weight: 0.0", "hinge_weight: 0.5"))
    assert "differently" in message("small", "0")


def test_other_images_are_refused(home: Path, searched: Path) -> None:
    shutil.copytree(searched / "data", home / "other")
    image = home / "other" / "images" / "c00.png"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    from guidino_tune.data.opening import open_for_search
    from guidino_tune.space.space import override
    from guidino_tune.study.store import load_study

    folder = StudyFolder(paths.studies() / "small")
    study = load_study(folder)
    space = override(search_space(), ["data.kind=folder", f"data.root={home / 'other'}"])
    study.set_user_attr("data_fingerprint", open_for_search(space.base.data, split_file=folder.split).fingerprint)
    with pytest.raises(UserError, match="images differ"):
        repeat_trial("small", 0)


def test_its_own_folder(home: Path, tmp_path: Path) -> None:
    repeated = repeat_trial("small", 0, epochs=1, output=tmp_path / "here")
    assert repeated.folder == tmp_path / "here"
    assert sorted(p.name for p in repeated.folder.iterdir()) == ["environment.json", "history.jsonl"]
    assert not (home / "studies" / "small" / "repeats").exists()


def test_a_torn_history_is_not_compared_line_by_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "studies" / "small" / "trials" / "00000" / "history.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    assert main(["small", "0"]) == 2
    assert "not whole: it has epochs 1, 3, 4" in capsys.readouterr().err
    assert main(["small", "0", "--epochs", "1"]) == 0


def test_a_trial_with_the_hash_of_an_earlier_version_is_repeated(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = home / "studies" / "small" / "optuna.journal"
    known = Experiment.from_yaml(home / "studies" / "small" / "trials" / "00000" / "experiment.yaml").hash
    journal.write_text(journal.read_text().replace(known, "0123456789ab"))
    assert main(["small", "0", "--epochs", "1"]) == 0
    (home / "studies" / "small" / "trials" / "00000" / "experiment.yaml").unlink()
    assert main(["small", "0", "--epochs", "1"]) == 2
    assert "reads the experiment of trial 0 differently" in capsys.readouterr().err
