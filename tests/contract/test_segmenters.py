"""What every registered segmenter keeps, plain and guided, at every place it can be gated."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidino_tune.config import Experiment, Segmenter
from guidino_tune.config.data import IGNORED
from guidino_tune.config.sections import Loss
from guidino_tune.losses import SegmentationLoss
from guidino_tune.models import build_model
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters import SEGMENTERS
from guidino_tune.targets import trust

CONFIGS: dict[str, Any] = {c().kind: c for c in get_args(get_args(Segmenter)[0])}
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"base_width": 2},
    "nnunet": {"base_width": 4, "num_stages": 4},
    "nnwnet": {"base_width": 2},
    "swinunet": {"embed_width": 8, "depths": (2, 2, 1, 1), "heads": (1, 2, 2, 4)},
    "h2former": {"base_width": 8, "blocks": (1, 1, 1, 1), "heads": (1, 2, 2, 4)},
    "ukan": {"widths": (16, 16, 24)},
    "dinounet": {"widths": (4, 8, 8, 16), "rank": 8, "attention_heads": 4},
    "segdino": {"features": 8, "branch_widths": (4, 4, 8, 8)},
    "segguidino": {"hidden": 16},
    "custom": {"target": "own_parts:TinyNet", "gates": ("bottleneck", "input")},
}
"""Options that make them quick; a segmenter without an entry is tested as it is."""

TINY: dict[str, Any] = {"kind": "dino", "backbone": "tiny", "weights": "random"}
GUIDES = {
    "plain": {"kind": "none"},
    "ungated": TINY | {"gate": "none"},
    "guided": TINY,
    "mean": TINY | {"tokenbook": {"aggregation": "mean"}},
    "softmax": TINY | {"tokenbook": {"aggregation": "softmax", "num_prototypes": 3}},
    "lora": TINY | {"lora": {"rank": 2, "targets": "attention+mlp"}},
}


def options(kind: str) -> list[dict[str, Any]]:
    flags = [f.name for f in dataclasses.fields(CONFIGS[kind]) if isinstance(f.default, bool)]
    return [{}, *({name: not getattr(CONFIGS[kind](), name)} for name in flags)]


def possible(kind: str, guide: Any) -> bool:
    needs: bool = CONFIGS[kind].needs_features
    return bool(guide != "plain") if needs else bool(guide != "ungated")


trust("own_parts:TinyNet")
CASES = [
    (kind, guide, extra)
    for kind in SEGMENTERS
    for guide in GUIDES
    if possible(kind, guide) and (kind == "unet" or guide not in ("mean", "softmax"))  # no segmenter sees how the mask is made
    for extra in (options(kind) if guide in ("plain", "guided") else [{}])
]
PLACES = [(kind, place) for kind in SEGMENTERS for place in CONFIGS[kind](**SMALL.get(kind, {})).gates]


def build(kind: str, guide: Any, **extra: dict[str, Any]) -> Any:
    values = {"data": {"kind": "demo", "image_size": 64}, "guide": guide, "segmenter": {"kind": kind, **SMALL.get(kind, {}), **extra}}
    return build_model(Experiment.from_dict(values))


def test_every_configuration_has_its_class() -> None:
    assert set(SEGMENTERS) == set(CONFIGS)


@pytest.mark.parametrize(("kind", "guide", "extra"), CASES)
def test_shapes_and_gradients(kind: str, guide: Any, extra: dict[str, Any]) -> None:
    model = build(kind, GUIDES[guide], **extra).train()
    prediction = model(torch.randn(2, 3, 64, 128))
    for level, logits in enumerate(prediction.logits):
        assert logits.shape == (2, 1, 64 // 2**level, 128 // 2**level)
        assert torch.isfinite(logits).all()
    gated = guide not in ("plain", "ungated")
    assert (prediction.guide is not None) == gated
    if gated:
        assert prediction.guide.shape == (2, 1, 4, 8)
    # Distributed training stops on a trainable weight without a gradient.
    sum(logits.square().mean() for logits in prediction.logits).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None for name, p in model.named_parameters() if not p.requires_grad)


def settle(model: Any, images: torch.Tensor) -> Any:
    """Batch norm takes the statistics of these images: with the initial ones deep features fade to nothing in eval mode."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(images)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_gate_multiplies_at_its_place(kind: str, place: str) -> None:
    images = torch.randn(2, 3, 64, 64)
    model = settle(build(kind, TINY | {"gate": place}), images)
    request = model.feature_request
    features = model.backbone(images, request.layers, request.final_norm)
    none = model.segmenter(images, Gate(), features)[0]
    ones = model.segmenter(images, Gate(torch.ones(2, 1, 4, 4), place), features)[0]
    # Not one factor for all: an instance norm that follows would take it out again.
    uneven = model.segmenter(images, Gate(torch.linspace(0.1, 1, 16).view(1, 1, 4, 4).expand(2, -1, -1, -1), place), features)[0]
    elsewhere = model.segmenter(images, Gate(torch.zeros(2, 1, 4, 4), "nowhere"), features)[0]
    assert torch.equal(ones, none)
    assert torch.equal(elsewhere, none)
    assert (uneven - none).abs().max() > 0.05 * none.std()
    guided, mask = model(images).logits[0], model.tokenbook(features.last)
    assert torch.equal(guided, model.segmenter(images, Gate(mask, place), features)[0])
    assert not torch.equal(guided, none)


MAPS: dict[str, dict[str, int]] = {
    "unet": {"bottleneck": 1, "input": 1, "skips": 4, "decoder": 4},
    "nnunet": {"skips": 3, "input": 1, "bottleneck": 1, "decoder": 3},
    "nnwnet": {"input": 1, "bottleneck": 1, "skips": 12, "decoder": 8},
    "swinunet": {"skips": 3, "input": 1, "bottleneck": 1, "decoder": 4},
    "h2former": {"skips": 3, "input": 1, "bottleneck": 1, "decoder": 3},
    "ukan": {"skips": 4, "input": 1, "bottleneck": 1, "decoder": 5},
    "segdino": {"features": 4, "decoder": 1},
    "segguidino": {"features": 1, "decoder": 1},
    "dinounet": {"skips": 3, "input": 1, "bottleneck": 1, "decoder": 3, "features": 4},
    "meddino": {"decoder": 1, "features": 1},
}
"""Maps at each place: every skip and every decoder stage, by counting in the published drawings."""


@torch.no_grad()
@pytest.mark.parametrize("kind", SEGMENTERS)
def test_a_place_is_every_map_of_its_name(kind: str) -> None:
    class Counting:
        def __init__(self) -> None:
            self.maps: list[tuple[str, tuple[int, ...]]] = []

        def __call__(self, place: str, x: torch.Tensor) -> torch.Tensor:
            self.maps.append((place, tuple(x.shape)))
            return x

    model, gate = build(kind, TINY).eval(), Counting()
    images = torch.randn(1, 3, 64, 64)
    features = model.backbone(images, model.feature_request.layers, model.feature_request.final_norm)
    model.segmenter(images, gate, features)
    gates = CONFIGS[kind](**SMALL.get(kind, {})).gates
    counts = {place: sum(p == place for p, _ in gate.maps) for place in gates}
    assert counts == MAPS.get(kind, counts)  # of a new one it is not known how many
    assert all(counts.values())
    assert {p for p, _ in gate.maps} == set(gates)
    skips = [shape for place, shape in gate.maps if place == "skips"]
    if kind != "nnwnet":  # its two passes meet the same resolutions again
        assert len(set(skips)) == len(skips)


@pytest.mark.parametrize(("kind", "place"), PLACES)
def test_guide_learns_through_the_gate_alone(kind: str, place: str) -> None:
    model = build(kind, TINY | {"gate": place}).train()
    model(torch.randn(2, 3, 64, 64)).logits[0].square().mean().backward()
    assert model.tokenbook.prototypes.grad.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize(("kind", "guide", "extra"), CASES)
def test_saved_state_gives_the_same_output(kind: str, guide: Any, extra: dict[str, Any], tmp_path: Path) -> None:
    images = torch.randn(2, 3, 64, 64)
    trained, fresh = (build(kind, GUIDES[guide], **extra) for _ in range(2))
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))
    trained.train()(images)  # moves batch norm statistics
    save_file({k: v.contiguous() for k, v in trained.trained_state().items()}, tmp_path / "weights.safetensors")
    expected = trained.eval()(images).logits
    assert not torch.equal(fresh.eval()(images).logits[0], expected[0])
    fresh.load_trained_state(load_file(tmp_path / "weights.safetensors"))
    for a, b in zip(fresh(images).logits, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_several_outputs(kind: str) -> None:
    config = CONFIGS[kind](**SMALL.get(kind, {}))
    guided = build(kind, TINY)
    model = SEGMENTERS[kind](config, image_size=64, num_outputs=3, backbone=guided.backbone.shape)
    images = torch.randn(1, 3, 64, 64)
    features = guided.backbone(images, model.feature_request.layers, model.feature_request.final_norm)
    assert all(logits.shape[1] == 3 for logits in model.eval()(images, Gate(), features))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize(("kind", "guide"), [(k, g) for k in SEGMENTERS for g in ("plain", "guided") if possible(k, g)])
def test_any_number_of_channels(kind: str, guide: str, channels: int) -> None:
    """Every channel reaches the logits, and a batch that is ignored altogether reaches no weight."""
    values = {"data": {"kind": "demo", "image_size": 64, "channels": channels}, "guide": GUIDES[guide]}
    values["segmenter"] = {"kind": kind, **SMALL.get(kind, {})}
    experiment = Experiment.from_dict(values)
    model = build_model(experiment).train()
    images = torch.randn(2, channels, 64, 64, requires_grad=True)
    prediction = model(images)
    assert prediction.logits[0].shape == (2, 1, 64, 64)
    masks = torch.full((2, 1, 64, 64), float(IGNORED))
    loss = SegmentationLoss(Loss(hinge_weight=0.1), ignore=True)
    loss(prediction.logits, prediction.guide, masks)["total"].backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    images.grad = None
    prediction.logits[0].square().mean().backward()
    if kind not in ("segdino", "segguidino", "meddino"):  # heads that see the backbone's features alone, which is frozen
        assert images.grad is not None
        assert all(images.grad[:, channel].any() for channel in range(channels))


@pytest.mark.parametrize("kind", [k for k in SEGMENTERS if CONFIGS[k].needs_features])
def test_heads_need_a_backbone(kind: str) -> None:
    with pytest.raises(ValueError, match="backbone"):
        SEGMENTERS[kind](CONFIGS[kind]())


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_bf16_autocast_stays_close(kind: str) -> None:
    model = build(kind, TINY).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model(images).logits[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images).logits[0].float()
    assert (low - expected).abs().max() < 0.2 * expected.abs().max()
