"""``export-model --format folder``, and what it refuses: one message, and nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from backbone_helpers import guide_on, save_model
from test_workflows_ensemble import make_trial
from training_helpers import make_experiment

from guidino_tune.config import Data
from guidino_tune.export_model import main as export_model
from guidino_tune.models import build_model
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.ensemble_folder import Member, export_ensemble, list_members
from guidino_tune.training.model_folder import load_model


def listing(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def test_a_model_is_not_copied_into_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = make_trial(tmp_path / "trial", Data(kind="folder", root=str(tmp_path)), 0)
    model = tmp_path / "model"
    assert export_model([str(trial), "--format", "folder", "--output", str(model)]) == 0
    (model / "sub").mkdir()
    before = listing(model)
    assert export_model([str(model), "--format", "folder", "--output", str(model / "sub" / "copy")]) == 2
    assert "copied into itself" in capsys.readouterr().err
    assert listing(model) == before


def test_an_ensemble_of_members_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `retrain --folds` has it beside its `model`: two members may have one name."""
    places = [make_trial(tmp_path / name / "trial", Data(kind="folder", root=str(tmp_path)), seed) for seed, name in enumerate("ab")]
    folder = tmp_path / "ensemble"
    folder.mkdir()
    list_members(folder, [os.path.relpath(place, folder) for place in places])
    assert export_model([str(folder), "--format", "folder", "--output", str(tmp_path / "out")]) == 2
    assert "its members lie elsewhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert export_model([str(folder), "--format", "torchscript", "--output", str(tmp_path / "out")]) == 0
    numbers = sum(tensor.numel() for place in places for tensor in load_model(place)[0].trained_state().values())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["parameters"] == numbers


def test_each_member_has_its_own_backbone(tmp_path: Path) -> None:
    """A search may try several: the second member must not be given that of the first."""
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a"], "validation": ["b"], "test": [], "origin": "seeded", "seed": 0}))
    members = []
    for name in ("one", "other"):
        experiment = make_experiment(guide=guide_on(save_model(tmp_path / name, other=name == "other")))
        (tmp_path / f"best-{name}").mkdir()
        save_weights(tmp_path / f"best-{name}" / WEIGHTS, build_model(experiment).trained_state())
        members.append(Member(tmp_path / f"best-{name}", experiment, tmp_path / "split.json", {}))
    for kept, wanted in ((members, 2), (members[:1] * 2, 1)):
        plain = export_ensemble(kept, tmp_path / "plain", {}, tmp_path / "split.json")
        whole = export_ensemble(kept, tmp_path / "whole", {}, tmp_path / "split.json", with_backbone=True)
        out = tmp_path / f"out-{wanted}"
        assert export_model([str(plain), "--format", "folder", "--with-backbone", "--output", str(out)]) == 0
        images = torch.rand(1, 3, 32, 32)
        before = load_model(plain)[0](images).logits[0]
        for folder in (whole, out):
            assert len(list(folder.rglob("model.safetensors"))) == wanted
            assert json.loads((folder / "config.json").read_text())["backbone"]["inside"] is True
        for name in ("one", "other"):
            (tmp_path / name).rename(tmp_path / f"{name} away")
        for folder in (whole, out):
            assert torch.equal(load_model(folder)[0](images).logits[0], before)
        for name in ("one", "other"):
            (tmp_path / f"{name} away").rename(tmp_path / name)
