"""Every segmenter leaves in every format, and computes there what it computed here."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from test_segmenters import CONFIGS, SMALL, TINY, settle

from guidino_tune.config import Experiment
from guidino_tune.data.rules import plain_rules
from guidino_tune.errors import UserError
from guidino_tune.exporting import onnx_file
from guidino_tune.exporting.formats import FORMATS, export_network, write_export
from guidino_tune.exporting.graph import PixelsToProbabilities, trace
from guidino_tune.models import build_model
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.models.guided import Prediction
from guidino_tune.models.segmenters import SEGMENTERS
from guidino_tune.normalisation import normalise
from guidino_tune.targets import trust
from guidino_tune.training.description import as_json, config_of, preprocessor_of

trust("own_parts:TinyNet")

CLOSE = 1e-4
SLOW = {"dinounet", "h2former", "meddino", "nnwnet", "segdino", "swinunet", "ukan"}
"""Kinds that torch's exporters take long for."""

FIXED = {"swinunet", "h2former"}
"""Their windows are cut for one size of image."""

ONNX = pytest.mark.skipif(bool([n for n in onnx_file.NEEDED if not onnx_file.importlib.util.find_spec(n)]), reason="needs the extra export")


def experiment_of(segmenter: str, guide: Any = None, **data: Any) -> Experiment:
    values = {"data": {"kind": "demo", "image_size": 64, **data}, "guide": guide or {"kind": "none"}}
    return Experiment.from_dict({**values, "segmenter": {"kind": segmenter, **SMALL.get(segmenter, {})}})


def network(experiment: Experiment) -> Any:
    generator = torch.Generator().manual_seed(1)
    model = build_model(experiment)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # adapters, which have no effect at first
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return settle(model, torch.randn(2, experiment.data.channels, 64, 64, generator=generator))


def described(experiment: Experiment) -> dict[str, str]:
    rules = plain_rules(experiment.data)
    texts = {"config.json": config_of(experiment), "preprocessor_config.json": preprocessor_of(experiment, rules)}
    return {"README.md": "a model\n"} | {name: as_json(values) for name, values in texts.items()}


def check(name: str, experiment: Experiment, model: Any, folder: Path) -> Any:
    """Writes, and compares with the network itself, normalised outside, at two batch sizes and two image sizes."""
    form = FORMATS[name]
    module = PixelsToProbabilities(copy.deepcopy(model), experiment.data)
    made = export_network(module, name, folder, experiment, described(experiment))
    assert "batch" in made.dynamic
    run = form.load(folder / form.file)
    sizes = [(1, 64, 64), (3, 64, 64), *([(2, 128, 192)] if "height" in made.dynamic else [])]
    for count, height, width in sizes:
        pixels = torch.randint(0, 256, (count, experiment.data.channels, height, width), dtype=torch.uint8)
        arrays = [image.permute(1, 2, 0).numpy() for image in pixels]
        with torch.no_grad():
            wanted = model(torch.stack([normalise(array, experiment.data.normalisation) for array in arrays]))
        found = run(pixels.float())
        logits = wanted.logits[0]
        foreground = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]
        difference = (found[0][:, 1:] - foreground).abs().max()
        assert difference < CLOSE or difference < 2 * rounding(model, experiment, arrays, foreground)
        assert (found[0].sum(1) - 1).abs().max() < CLOSE
        assert len(found) == (1 if wanted.guide is None else 2)
        if wanted.guide is not None:
            assert (found[1] - wanted.guide).abs().max() < CLOSE
    return made


def rounding(model: Any, experiment: Experiment, arrays: list[Any], foreground: torch.Tensor) -> float:
    """How far a network's own result is from that in float64: nnWNet with random weights is further than 1e-4."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(torch.stack([normalise(array, experiment.data.normalisation) for array in arrays]).double())
    logits = exact.logits[0]
    return float(((logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]) - foreground).abs().max())


def guide_of(kind: str) -> Any:
    """Heads on features have a guide, which costs most of the time; guided networks follow below."""
    return TINY if CONFIGS[kind].needs_features else None


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize("name", [pytest.param("onnx", marks=ONNX), "torch-export", "torchscript"])
def test_a_segmenter_computes_the_same_elsewhere(kind: str, name: str, tmp_path: Path) -> None:
    if name != "torchscript" and kind in SLOW and not os.environ.get("GUIDINO_TUNE_EXPORTS"):
        pytest.skip("takes half a minute and more: make export-test")
    experiment = experiment_of(kind, guide_of(kind))
    made = check(name, experiment, network(experiment), tmp_path / "out")
    fixed = kind in FIXED or (kind, name) == ("dinounet", "torch-export")  # torch does not read the free one's file
    assert ({"height", "width"} <= set(made.dynamic)) == (not fixed) or name == "torchscript"


@pytest.mark.parametrize("name", [pytest.param("onnx", marks=ONNX), "torch-export"])
@pytest.mark.parametrize(
    ("guide", "data"),
    [
        (TINY | {"lora": {"rank": 2}, "tokenbook": {"aggregation": "softmax", "num_prototypes": 3}}, {}),
        (None, {"normalisation": "zscore", "channels": 2}),
        (TINY, {"num_classes": 2, "kind": "folder", "channels": 1}),
        (TINY | {"backbone": "dinov2"}, {}),
        (TINY | {"backbone": "convnext"}, {}),
    ],
    ids=["lora", "zscore", "classes", "dinov2", "convnext"],
)
def test_guides_normalisations_and_classes(
    name: str, guide: Any, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if guide and guide["backbone"] != "tiny":
        guide = guide | {"backbone": str(small_backbone(tmp_path / "weights", guide["backbone"])), "weights": "pretrained"}
    experiment = experiment_of("unet", guide, **data)
    check(name, experiment, network(experiment), tmp_path / "out")


def small_backbone(folder: Path, kind: str) -> Path:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, DINOv3ConvNextConfig, DINOv3ConvNextModel

    torch.manual_seed(0)
    if kind == "dinov2":
        config = Dinov2WithRegistersConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=56)
        Dinov2WithRegistersModel(config).save_pretrained(folder)
    else:
        DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", [pytest.param("onnx", marks=ONNX), "torch-export"])
def test_an_ensemble_is_one_graph(name: str, tmp_path: Path) -> None:
    experiment = experiment_of("unet", TINY)
    check(name, experiment, Ensemble([network(experiment), network(experiment)]).eval(), tmp_path / "out")


class Stubborn(torch.nn.Module):
    """Knows one size of batch and image, as networks of a user's own may."""

    def forward(self, images: torch.Tensor) -> Prediction:
        scale = len([*images]) + int(images.shape[-1]) / 64
        return Prediction((images[:, :1] * scale,))


def test_a_network_of_one_size_keeps_it(tmp_path: Path) -> None:
    experiment = experiment_of("unet")
    graph = trace(PixelsToProbabilities(Stubborn().eval(), experiment.data), experiment)  # type: ignore[arg-type]
    made = write_export(graph, "torch-export", tmp_path / "out", experiment, described(experiment))
    assert made.dynamic == ()
    assert graph.example.shape == (1, 3, 64, 64)


def test_nothing_of_others_is_replaced(tmp_path: Path) -> None:
    experiment = experiment_of("unet")
    graph = trace(PixelsToProbabilities(network(experiment), experiment.data), experiment)
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="no export of guidino-tune"):
        write_export(graph, "torch-export", target, experiment, described(experiment))
    assert [file.name for file in target.iterdir()] == ["mine.txt"]
    write_export(graph, "torch-export", target, experiment, described(experiment), force=True)
    assert not (target / "mine.txt").exists()
    write_export(graph, "torch-export", target, experiment, described(experiment))  # an export of its own
    # One that fails leaves the former as it was, and no half of itself.
    graph.module.register_forward_hook(lambda _, __, found: tuple(one + 1 for one in found))
    with pytest.raises(UserError, match="other probabilities"):
        write_export(graph, "torch-export", target, experiment, described(experiment))
    assert (target / "use.py").is_file()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = onnx_file.importlib.util.find_spec
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name, *a: None if name in ("onnx", "onnxruntime") else find(name, *a))
    with pytest.raises(UserError, match="needs onnx, onnxruntime") as caught:
        FORMATS["onnx"].check()
    assert "pip install 'guidino-tune[export]'" in caught.value.todo
