"""What a model folder says of itself, and a model that holds its backbone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from backbone_helpers import guide_on, save_model
from huggingface_hub import ModelCard
from training_helpers import make_data, make_experiment, train

from guidino_tune import known_backbones as known
from guidino_tune.config import Data, Experiment
from guidino_tune.data.rules import plain_rules
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import expecting
from guidino_tune.models import build_model
from guidino_tune.training.card import card_of
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.description import config_of, preprocessor_of
from guidino_tune.training.ensemble_folder import Member, export_ensemble
from guidino_tune.training.model_folder import export_model, load_model

SCORES = {
    "validation": {"cases": 8, "how": "one pass", "scores": {"dice": {"mean": 0.91}}},
    "test": {"cases": 20, "how": "resized", "scores": {"dice": {"mean": 0.9, "low": 0.85, "high": 0.94}, "hd95": {"mean": 4.0}}},
}


def test_the_folder_describes_itself(tmp_path: Path) -> None:
    experiment = make_experiment("unet")
    (tmp_path / "best").mkdir()
    model = build_model(experiment)
    save_weights(tmp_path / "best" / WEIGHTS, model.trained_state())
    folder = export_model(tmp_path / "best", experiment, tmp_path / "model", {"study": "s", "trial": 3}, scores=SCORES)
    config = json.loads((folder / "config.json").read_text())
    assert (config["format_version"], config["image_size"], config["num_channels"]) == (1, 32, 3)
    assert config["classes"][1] == {"label": 1, "name": "foreground", "colour": [255, 165, 0]}
    assert config["parameters"] == sum(value.numel() for value in model.trained_state().values())
    assert config["versions"]["torch"] == torch.__version__
    prepared = json.loads((folder / "preprocessor_config.json").read_text())
    assert (prepared["resize"], prepared["size_multiple"], prepared["normalisation"]["kind"]) == ("squash", 16, "imagenet")
    assert json.loads((folder / "scores.json").read_text()) == SCORES
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "guidino_tune"
    assert {(r.metric_type, r.metric_value, r.dataset_split) for r in card.data.eval_results} == {
        ("dice", 0.91, "validation"),
        ("dice", 0.9, "test"),
        ("hd95", 4.0, "test"),
    }
    assert "| Sealed test | 20 | 0.9000 [0.8500, 0.9400] |" in card.text
    for title in ("Intended use", "Data", "Training", "Scores", "Limits", "How to use"):
        assert f"## {title}" in card.text
    for name in ("config.json", "preprocessor_config.json", "scores.json", "README.md"):
        (folder / name).unlink()
    load_model(folder)  # as one of an earlier version


def test_classes_have_names_and_colours() -> None:
    data = Data(
        kind="folder", labels={"polyp": (255, 0, 0), "tool": 7}, channels=2, window=((0.0, 10.0), (5.0, 9.0)), normalisation="zscore"
    )
    experiment = Experiment.from_dict(
        {**make_experiment("unet").to_dict(), "data": {"kind": "folder", "labels": {"a": [255, 0, 0], "b": 7}}}
    )
    config = config_of(experiment)
    assert config["id2label"] == {"0": "background", "1": "a", "2": "b"}
    assert [one["colour"] for one in config["classes"]] == [[0, 0, 0], [255, 0, 0], [0, 200, 255]]
    text = card_of(experiment, plain_rules(data), config, scores={})
    assert "None are noted" in text
    assert yaml.safe_load(text.split("---")[1])["datasets"] == ["folder"]
    assert preprocessor_of(experiment, plain_rules(data))["guide_channels"] is None


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path, Experiment]:
    """A trial's folder, the folder of its backbone, and what was trained."""
    folder = save_model(tmp_path / "weights")
    experiment = make_experiment(guide=guide_on(folder), epochs=1)
    train(experiment, make_data(tmp_path), tmp_path / "trial")
    (tmp_path / "trial" / "experiment.yaml").write_text(experiment.to_yaml())
    return tmp_path / "trial", folder, experiment


def test_a_model_with_its_backbone_needs_nothing_else(tmp_path: Path, trained: tuple[Path, Path, Experiment]) -> None:
    trial, folder, experiment = trained
    used = export_model(trial / "best", experiment, tmp_path / "model", {}, with_backbone=True)
    images = torch.rand(1, 3, 32, 32)
    before = load_model(trial)[0](images).logits[0]
    assert json.loads((used / "config.json").read_text())["backbone"]["inside"] is True
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no such folder"):
        load_model(trial)
    assert torch.equal(load_model(used)[0](images).logits[0], before)
    # Others in their place are noticed, and what a person names comes first.
    save_model(tmp_path / "other", other=True)
    with expecting(known.chosen([str(tmp_path / "other")])), pytest.raises(UserError, match="these are other weights"):
        load_model(used)
    shutil.copy2(tmp_path / "other" / "model.safetensors", used / "backbone" / "model.safetensors")
    with pytest.raises(UserError, match="these are other weights"):
        load_model(used)


def test_what_is_passed_on_names_no_folder_of_this_machine(tmp_path: Path, trained: tuple[Path, Path, Experiment]) -> None:
    trial, folder, experiment = trained
    used = export_model(trial / "best", experiment, tmp_path / "model", {})
    config = json.loads((used / "config.json").read_text())
    assert (config["backbone"]["name"], config["architecture"]["guide"]["backbone"]) == (folder.name, folder.name)
    assert config["backbone"]["fingerprint"]
    for name in ("config.json", "preprocessor_config.json", "README.md"):
        assert str(tmp_path) not in (used / name).read_text()


@pytest.mark.parametrize("extra", [{}, {"lora": {"rank": 2}}])
def test_random_backbones_go_along_too(tmp_path: Path, extra: dict[str, Any]) -> None:
    experiment = make_experiment(guide={"kind": "dino", "backbone": "tiny", "weights": "random", **extra})
    (tmp_path / "best").mkdir()
    model = build_model(experiment)
    save_weights(tmp_path / "best" / WEIGHTS, model.trained_state())
    used = export_model(tmp_path / "best", experiment, tmp_path / "model", {}, with_backbone=True)
    images = torch.rand(1, 3, 32, 32)
    shutil.copytree(used, tmp_path / "without", ignore=shutil.ignore_patterns("backbone"))
    assert torch.equal(load_model(used)[0](images).logits[0], load_model(tmp_path / "without")[0](images).logits[0])
    assert (used / "backbone" / "config.json").is_file()


def test_a_plain_network_has_none(tmp_path: Path) -> None:
    experiment = make_experiment("unet")
    (tmp_path / "best").mkdir()
    save_weights(tmp_path / "best" / WEIGHTS, build_model(experiment).trained_state())
    with pytest.raises(UserError, match="no backbone that could go along"):
        export_model(tmp_path / "best", experiment, tmp_path / "model", {}, with_backbone=True)
    assert not (tmp_path / "model").exists()


def test_members_share_one_backbone(tmp_path: Path, trained: tuple[Path, Path, Experiment]) -> None:
    trial, folder, experiment = trained
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a"], "validation": ["b"], "test": [], "origin": "seeded", "seed": 0}))
    members = [Member(trial / "best", experiment, tmp_path / "split.json", {}) for _ in range(2)]
    used = export_ensemble(members, tmp_path / "model", {}, tmp_path / "split.json", scores=SCORES, with_backbone=True)
    shutil.rmtree(folder)
    assert len(list(used.rglob("model.safetensors"))) == 1
    load_model(used)
    assert "0 test cases" in (used / "README.md").read_text()
