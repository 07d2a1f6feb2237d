"""A study whose backbone is a folder: other weights there are refused by every command, the same ones elsewhere are taken by every one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from small_searches import SPACE, trials_of

from guidino_tune.compare import main as compare
from guidino_tune.evaluate import main as evaluate
from guidino_tune.export import main as export
from guidino_tune.predict import main as predict
from guidino_tune.reproduce_trial import main as reproduce_trial
from guidino_tune.retrain import main as retrain
from guidino_tune.search import main as search


def save(folder: Path, *, other: bool = False) -> None:
    import transformers

    torch.manual_seed(5 if other else 4)
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_register_tokens=4
    )
    shutil.rmtree(folder, ignore_errors=True)
    transformers.DINOv3ViTModel(config).save_pretrained(folder)


def test_every_command_knows_the_weights(
    home: Path, tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, moved = tmp_path / "weights", tmp_path / "moved"
    save(weights)
    guide = {**SPACE["experiment"]["guide"], "backbone": str(weights), "weights": "pretrained"}
    data = {**SPACE["experiment"]["data"], "root": str(demo)}
    space = {
        **SPACE,
        "experiment": {**SPACE["experiment"], "data": data, "guide": guide},
        "study": {**SPACE["study"], "trials": 1, "pruner": "none"},
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(space))
    assert search([str(file)]) == 0
    monkeypatch.setenv("GUIDINO_TUNE_SEALED", "0")
    best, images, trial = (
        str(tmp_path / "best.yaml"),
        str(next(demo.rglob("*.jpg"))),
        str(home / "studies" / "small" / "trials" / "00000"),
    )
    assert export(["small", "--output", best]) == 0
    short = ["--seeds", "1", "--epochs", "1"]
    commands = {
        "search": lambda *more: search([str(file), "--trials", "2", *more]),
        "retrain": lambda *more: retrain([best, *short, "--name", "r", *more]),
        "compare": lambda *more: compare(["small", "--top", "1", *short, *more]),
        "reproduce-trial": lambda *more: reproduce_trial(["small", "0", "--epochs", "1", *more]),
        "evaluate": lambda *more: evaluate([trial, *more]),
        "predict": lambda *more: predict([trial, images, "--output", str(tmp_path / "masks"), "--no-overlays", *more]),
    }
    shutil.move(weights, moved)
    save(weights, other=True)
    capsys.readouterr()
    for name, command in commands.items():
        assert command() == 2, name
        said = capsys.readouterr().err
        assert "these are other weights" in said and "--backbone DIR" in said, name  # noqa: PT018
    shutil.rmtree(weights)
    # As the message says; and a search that was told so once tells the others. Comparing and repeating come from the study itself.
    for name, command in commands.items():
        monkeypatch.setenv("GUIDINO_TUNE_SEALED", "0")
        assert command("--backbone", str(moved)) == 0, name
    assert len(trials_of(home, "small")) == 2
    for name in ("search", "compare", "evaluate", "predict", "reproduce-trial"):
        monkeypatch.setenv("GUIDINO_TUNE_SEALED", "0")
        assert commands[name]() == 0, name
    for model in (home / "retrained" / "r" / "model", home / "studies" / "small" / "compare" / "model"):
        assert evaluate([str(model)]) == 0
