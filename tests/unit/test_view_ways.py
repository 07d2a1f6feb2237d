"""A study settles once how its trials get their views, and stays with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from training_helpers import GUIDE, NO_GUIDE, SMALL, make_data

from guidino_tune.config import Experiment, Resources
from guidino_tune.data.opening import SearchData
from guidino_tune.data.store import ChunkStore
from guidino_tune.running.cluster import Plan
from guidino_tune.running.view_speeds import Unmeasured
from guidino_tune.space.check import examples
from guidino_tune.space.space import Space, override, read_space
from guidino_tune.study.store import VIEWS, StudyFolder, open_study
from guidino_tune.training import view_speeds
from guidino_tune.workflows.view_sizes import Kind
from guidino_tune.workflows.view_ways import as_settled, new_share, settle_views


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"), size=64, train=12)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "studies" / "small")


def space(guide: dict[str, Any], augmentation: str) -> Space:
    return read_space(
        {
            "experiment": {
                "data": {"kind": "demo", "image_size": 64, "augmentation": augmentation},
                "guide": guide,
                **SMALL["unet" if guide is NO_GUIDE else "segguidino"],
                "training": {"epochs": 4, "batch_size": 3, "precision": "fp32", "steps_per_epoch": "cases"},
            },
            "space": {"training.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
            "study": {"name": "small", "trials": 60, "pruner": "none"},
        },
        source="small.yaml",
    )


def plan(trials: int, gpus: float = 1.0) -> Plan:
    return Plan("actor", trials, 1, gpus, trials, trials * gpus)


def never(*_: Any) -> Any:
    raise AssertionError("nothing is to be measured")


def settled(
    wanted: Space, folder: StudyFolder, data: SearchData, booked: Plan, monkeypatch: pytest.MonkeyPatch, speeds: Any = never
) -> tuple[Any, str]:
    """The way, and what was told, on one node that carries all trials."""
    node = {"CPU": float(booked.concurrent), "GPU": booked.gpus * booked.concurrent}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": "a", "Resources": node}])
    lines: list[str] = []
    study = open_study(wanted, folder)
    found = settle_views(study, wanted, folder, data, booked, lines.append, speeds=speeds)
    assert study.user_attrs[VIEWS]["way"] == found.resources.share_views
    assert lines == [line for line in [study.user_attrs[VIEWS]["why"]] if line]
    return found.resources.share_views, "".join(lines)


def here(data: SearchData, folder: Path) -> Any:
    """Measures in this process, on its CPU."""

    def speeds(experiment: Experiment, split: Path, resources: Resources, booked: Plan, stored: int) -> Any:
        return view_speeds.measure(experiment, data, ChunkStore(folder), device="cpu", stored=stored)

    return speeds


def test_without_gpus_nothing_is_measured(folder: StudyFolder, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(space(GUIDE, "nnunet"), folder, data, plan(2, gpus=0.0), monkeypatch) == (True, "")
    assert settled(space(GUIDE, "nnunet"), folder, data, plan(2), monkeypatch) == (True, "")  # with GPUs it goes on as it began


def test_a_frozen_guide_is_read_from_the_store_and_the_study_stays_with_it(
    folder: StudyFolder, data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_speeds, "SECONDS", 0.2)
    wanted = space({**GUIDE, "backbone": "vits16"}, "nnunet")  # many times as slow as the head
    way, line = settled(wanted, folder, data, plan(1), monkeypatch, here(data, tmp_path / "views"))
    assert way is True
    assert line.startswith("views: read from the store, ")
    assert "made on the GPU they would be" in line
    study = open_study(wanted, folder)
    assert settle_views(study, wanted, folder, data, plan(1), never, speeds=never).resources.share_views is True
    assert study.user_attrs[VIEWS]["why"] == line


def test_a_thousand_trials_on_one_slow_disk_augment_their_own(
    folder: StudyFolder, data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_speeds, "SECONDS", 0.2)
    monkeypatch.setattr(view_speeds, "_free_memory", lambda: 0)
    wanted = space(NO_GUIDE, "none")
    way, line = settled(wanted, folder, data, plan(1000), monkeypatch, here(data, tmp_path / "views"))
    assert way == "device"
    assert line.startswith("views: made on the GPU, ")
    resources = as_settled(wanted.resources, open_study(wanted, folder))
    assert (resources.share_views, wanted.resources.share_views) == ("device", "auto")
    # Whoever asks for another way gets it, and the study keeps that.
    assert settled(override(wanted, {"resources.share_views": "once"}), folder, data, plan(9), monkeypatch)[0] == "once"
    assert settled(wanted, folder, data, plan(9), monkeypatch)[0] == "once"


def test_a_study_of_an_earlier_version_keeps_its_way(folder: StudyFolder, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its definition has what was the default then, and no attribute."""
    before = override(space(GUIDE, "nnunet"), {"resources.share_views": True})
    assert VIEWS not in open_study(before, folder).user_attrs
    assert yaml.safe_load(folder.definition.read_text())["resources"]["share_views"] is True
    assert settled(space(GUIDE, "nnunet"), folder, data, plan(2), monkeypatch) == (True, "")


def test_a_study_that_ended_before_it_was_settled_is_measured_then(
    folder: StudyFolder, data: SearchData, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = space(GUIDE, "nnunet")
    open_study(wanted, folder)
    assert VIEWS not in open_study(wanted, folder).user_attrs
    with pytest.raises(AssertionError, match="to be measured"):
        settled(wanted, folder, data, plan(2), monkeypatch)


def test_what_cannot_be_measured_is_read(folder: StudyFolder, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise Unmeasured("no place was free")

    way, line = settled(space(GUIDE, "nnunet"), folder, data, plan(2), monkeypatch, fails)
    assert way is True
    assert "could not be measured (no place was free)" in line


def test_the_share_of_images_that_nobody_has_seen() -> None:
    """60 trials of 4 epochs train 240 passes; each of two nodes makes the four of each kind, and a cycle makes fewer."""
    wanted = space(GUIDE, "nnunet")
    found = examples(wanted)
    one, two = Kind("images of 64 px, seed 0", 4, 1), Kind("images of 64 px, seed 1", 1, 1)
    assert new_share(wanted, found, [one], 12, 1) == pytest.approx(4 / 240)
    assert new_share(wanted, found, [one, two], 12, 2) == pytest.approx(10 / 240)
    assert new_share(wanted, found, [one], 12, 1000) == 1.0
