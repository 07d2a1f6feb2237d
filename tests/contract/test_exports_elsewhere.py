"""Exports of the command, used where this package is not: by their own lines, and by the programs whose forms they have."""

import doctest
import importlib
import json
import shutil
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports_elsewhere import use, use_monai
from packaging.requirements import Requirement
from PIL import Image

import guidino_tune as gt
from guidino_tune.config import Experiment
from guidino_tune.data.sources.demo import generate
from guidino_tune.export_model import main
from guidino_tune.exporting.formats import FORMATS
from guidino_tune.exporting.onnx_file import NEEDED
from guidino_tune.models import build_model
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.ensemble_folder import list_members
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.model_folder import export_model
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.predict import load_model

TINY = {"kind": "dino", "backbone": "tiny", "weights": "random"}


def make_model(folder: Path, seed: int = 0, **data: Any) -> Path:
    """A model whose masks have borders everywhere."""
    values = {"data": {"kind": "demo", "image_size": 32, **data}, "guide": TINY, "training": {"precision": "fp32", "seed": seed}}
    experiment = Experiment.from_dict({**values, "segmenter": {"kind": "unet", "base_width": 2}})
    model = build_model(experiment)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.segmenter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        head: Any = model.segmenter.head
        head.bias -= model.eval()(torch.randn(4, 3, 32, 32, generator=generator)).logits[0].mean((0, 2, 3))
    (folder / "best").mkdir(parents=True)
    save_weights(folder / "best" / WEIGHTS, model.trained_state())
    return export_model(folder / "best", experiment, folder / "model", {})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.fromarray(generate(3, 90)[0][:70]).save(file := tmp_path / "images" / "one.png")
    return file


@pytest.mark.parametrize("name", FORMATS)
def test_the_lines_of_an_export_give_the_same_mask(name: str, model: Path, image: Path, tmp_path: Path, capfd: Any) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    wanted = load_model(model).predict(image)
    assert 0.02 < wanted.mean() < 0.98
    assert main([str(model), "--format", name, "--output", str(tmp_path / "out")]) == 0
    told = capfd.readouterr().out
    assert "free: batch" in told
    assert f"python {tmp_path / 'out' / 'use.py'} IMAGE" in told
    assert (use(tmp_path / "out", image, tmp_path / "masks") != wanted).mean() < 1e-3
    if name == "monai-bundle":
        found = use_monai(tmp_path / "out", image.parent, image, tmp_path / "eval")
        assert (found != wanted).mean() < 1e-3
        metadata = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())
        assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "foreground"}


def test_classes_and_ensembles_leave_too(model: Path, image: Path, tmp_path: Path) -> None:
    several = make_model(tmp_path / "classes", num_classes=2, kind="folder", resize="pad")
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    for number in range(2):
        shutil.copytree(make_model(tmp_path / str(number), seed=number), ensemble / f"m{number}")
    list_members(ensemble, ["m0", "m1"])
    for place in (several, ensemble):
        wanted = load_model(place).predict(image)
        assert main([str(place), "--format", "torch-export", "--output", str(tmp_path / "out")]) == 0
        assert (use(tmp_path / "out", image, tmp_path / "masks") != wanted).mean() < 1e-3


def test_a_folder_with_its_backbone(model: Path, image: Path, tmp_path: Path, capfd: Any) -> None:
    assert main([str(model), "--format", "folder", "--with-backbone", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "backbone" / "model.safetensors").is_file()
    assert "lie in `backbone/`" in (tmp_path / "out" / "README.md").read_text()
    assert np.array_equal(load_model(tmp_path / "out").predict(image), load_model(model).predict(image))
    assert "guidino-tune predict" in capfd.readouterr().out
    assert main([str(model), "--format", "folder", "--output", str(tmp_path / "out")]) == 0  # an export of its own is replaced
    assert not (tmp_path / "out" / "backbone").exists()


def test_a_trial_leaves_as_its_study_keeps_it(model: Path, tmp_path: Path) -> None:
    trial = tmp_path / "study" / "trials" / "00003"
    shutil.copytree(model.parent / "best", trial / "best")
    shutil.copy2(model / "experiment.yaml", trial / "experiment.yaml")
    (tmp_path / "study" / "split.json").write_text(
        json.dumps({"train": ["a", "b"], "validation": ["c"], "test": [], "origin": "x", "seed": 0})
    )
    TrialFolder(trial).append_history(EpochRecord(1, {"val_dice": 0.5}, 0.0))
    TrialFolder(trial).append_history(EpochRecord(2, {"val_dice": 0.4}, 0.0))
    assert main([str(trial), "--format", "folder", "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Validation |  | 0.5000 |" in card
    assert "2 training, 1 validation and 0 test cases" in card
    assert main([str(trial), "--format", "torchscript", "--output", str(tmp_path / "script")]) == 0
    card = (tmp_path / "script" / "README.md").read_text()
    assert "| Validation |  | 0.5000 |" in card
    assert "gt.load_model" not in card
    assert "library_name: pytorch" in card


def test_the_function_does_what_the_command_does(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "kvasir-whole")
    done = doctest.testmod(importlib.import_module("guidino_tune.workflows.export_model"))
    assert (done.attempted, done.failed) == (3, 0)
    assert main(["kvasir-whole", "--format", "torchscript", "--output", "by-command"]) == 0
    described = [
        {file.name: file.suffix == ".ts" or file.read_text() for file in Path(name).iterdir()} for name in ("kvasir-ts", "by-command")
    ]
    assert described[0] == described[1]
    assert gt.export_model("kvasir-whole", tmp_path / "copy", "folder", with_backbone=True) == tmp_path / "copy"
    assert (tmp_path / "copy" / "backbone" / "model.safetensors").is_file()
    for options, said in ({"output": "mine", "format": "folder"}, "no export"), ({"output": "", "format": "hf"}, "output: is empty"):
        Path("mine").mkdir(exist_ok=True)
        Path("mine", "notes").write_text("mine")
        with pytest.raises(gt.UserError, match=said):
            gt.export_model("kvasir-whole", **options)
    assert gt.export_model("kvasir-whole", "mine", "torchscript", force=True) == Path("mine")
    assert not Path("mine", "notes").exists()


def test_mistakes_are_told(model: Path, tmp_path: Path, capfd: Any) -> None:
    def refused(*words: str) -> str:
        assert main([*words]) == 2
        return str(capfd.readouterr().err)

    out = str(tmp_path / "out")
    assert "unknown format 'onx'" in refused(str(model), "--format", "onx", "--output", out)
    assert "did you mean 'onnx'" in refused(str(model), "--format", "onx", "--output", out)
    assert "holds no model" in refused(str(tmp_path), "--format", "torch-export", "--output", out)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    for form in ("torch-export", "folder"):
        assert "nothing was changed" in refused(str(model), "--format", form, "--output", out)
        with pytest.raises(gt.UserError, match="mine: is no folder, and cannot hold one"):
            gt.export_model(model, tmp_path / "out" / "mine" / "new", form)
    assert "is the model, or holds it" in refused(str(model), "--format", "folder", "--force", "--output", str(model.parent))
    assert "is the model, or holds it" in refused(str(model), "--format", "hf", "--force", "--output", str(model))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_extra_brings_no_torch() -> None:
    """Neither another build of torch, nor torchvision, which would ask for one."""
    seen: set[str] = set()
    waiting = list(NEEDED)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert not {"torch", "torchvision", "torchaudio", "tensorflow"} & seen
