"""MedDINOv3's decoder: published counts and shapes, and its formula written out again."""

import math
from typing import Any

import pytest
import torch
from network_formulas import scramble
from torch import Tensor

from guidino_tune import config
from guidino_tune.models.backbone import BackboneShape, FeatureRequest, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters.meddino import MedDINO


def build(width: int = 8, num_layers: int = 12, num_outputs: int = 1, **options: Any) -> MedDINO:
    return MedDINO(config.MedDINO(**options), num_outputs=num_outputs, backbone=BackboneShape(width, (width,) * num_layers))


@pytest.mark.parametrize(
    ("width", "layers", "expected"), [(384, "last", 392_785), (768, "last", 1_568_929), (96, "four", 392_785), (768, "four", 25_076_353)]
)
def test_published_counts(width: int, layers: str, expected: int) -> None:
    with torch.device("meta"):
        model = build(width, layers=layers)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize(("width", "layers", "inputs"), [(384, "last", 384), (768, "last", 768), (768, "four", 3072)])
def test_published_shapes(width: int, layers: str, inputs: int) -> None:
    with torch.device("meta"):
        model = build(width, layers=layers)
        maps = tuple(torch.empty(1, width, 16, 16) for _ in model.feature_request.layers)
        found: list[tuple[int, ...]] = []
        for up in model.up:
            up.register_forward_hook(lambda _m, _i, out: found.append(tuple(out.shape)))
        logits = model(torch.empty(1, 3, 256, 256), Gate(), Features(maps[-1], maps))
    assert found == [(1, inputs // 2**i, 16 * 2**i, 16 * 2**i) for i in (1, 2, 3, 4)]
    assert [x.shape for x in logits] == [(1, 1, 256, 256)]


def test_layers_asked_for() -> None:
    assert build().feature_request == FeatureRequest((2, 5, 8, 11), True)
    assert build(num_layers=24, final_norm=False).feature_request == FeatureRequest((4, 11, 17, 23), False)
    assert build(num_layers=24, layers="last").feature_request == FeatureRequest((23,), True)


@torch.no_grad()
@pytest.mark.parametrize("place", ["features", "decoder"])
def test_is_the_published_one(place: str) -> None:
    model = scramble(build(num_outputs=2), std=0.4)
    layers, mask = tuple(torch.randn(2, 8, 3, 2) for _ in range(4)), torch.rand(2, 1, 3, 2)

    def double(x: Tensor, layer: Any) -> Tensor:
        """A transposed convolution that does not overlap: every pixel becomes two by two."""
        y = torch.empty(x.shape[0], layer.out_channels, 2 * x.shape[2], 2 * x.shape[3])
        for row in (0, 1):
            for column in (0, 1):
                y[:, :, row::2, column::2] = torch.einsum("bihw,io->bohw", x, layer.weight[:, :, row, column]) + layer.bias.view(-1, 1, 1)
        return y

    def normalise(x: Tensor, layer: Any) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-6)
        return x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    gate = Gate(mask, place)
    x = normalise(double(torch.cat(layers, 1), model.up[0]), model.norms[0])
    x = gelu(gate("features", x))
    x = gelu(normalise(double(x, model.up[1]), model.norms[1]))
    x = gelu(normalise(double(x, model.up[2]), model.norms[2]))
    x = gelu(normalise(double(x, model.up[3]), model.norms[3]))
    expected = torch.einsum("bihw,oi->bohw", gate("decoder", x), model.head.weight[:, :, 0, 0]) + model.head.bias.view(-1, 1, 1)
    actual = model(torch.empty(2, 3, 48, 32), gate, Features(layers[-1], layers))
    assert len(actual) == 1
    torch.testing.assert_close(actual[0], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_why_the_gate_is_not_before_a_norm() -> None:
    """Scaled tokens give the same logits while biases are 0; the same mask at the gate's places does not."""
    model = build(96)
    layers, images = tuple(torch.randn(1, 96, 4, 4) for _ in range(4)), torch.empty(1, 3, 64, 64)
    halves = tuple(0.5 * x for x in layers)
    expected = model(images, Gate(), Features(layers[-1], layers))[0]
    torch.testing.assert_close(model(images, Gate(), Features(halves[-1], halves))[0], expected, atol=1e-3, rtol=1e-3)
    for place in ("features", "decoder"):
        gated = model(images, Gate(torch.full((1, 1, 4, 4), 0.5), place), Features(layers[-1], layers))[0]
        assert (gated - expected).std() > 0.1 * expected.std()


@torch.no_grad()
def test_initial_weights() -> None:
    model = build(192)
    for layer in (*model.up, model.head):
        assert not layer.bias.any()
    for up in model.up[:2]:  # He's normal for LeakyReLU 0.01; PyTorch takes the outputs of a transposed convolution for its fan-in
        assert float(up.weight.std()) == pytest.approx(math.sqrt(2 / (1 + 1e-4) / (4 * up.out_channels)), rel=0.02)


def test_layers_may_differ_in_width() -> None:
    model = MedDINO(config.MedDINO(), backbone=BackboneShape(8, (2, 4, 6, 8)))
    maps = tuple(torch.randn(1, width, 2, 2) for width in (2, 4, 6, 8))
    assert model(torch.empty(1, 3, 32, 32), Gate(), Features(maps[-1], maps))[0].shape == (1, 1, 32, 32)
    assert [up.out_channels for up in model.up] == [10, 5, 2, 1]


@torch.no_grad()
def test_bf16_autocast_stays_close() -> None:
    torch.manual_seed(0)
    model = build(96)
    layers, images = tuple(torch.randn(1, 96, 4, 4) for _ in range(4)), torch.empty(1, 3, 64, 64)
    expected = model(images, Gate(), Features(layers[-1], layers))[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images, Gate(), Features(layers[-1], layers))[0].float()
    assert (low - expected).abs().max() < 0.05 * expected.abs().max()
