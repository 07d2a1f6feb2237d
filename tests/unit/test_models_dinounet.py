"""Dino U-Net: published counts and shapes, and its parts written out again with functions."""

import math
from typing import Any

import network_formulas
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config
from guidino_tune.errors import UserError
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.dino_adapter import ConvFeedForward, DINOAdapter, Extractor, SpatialPrior
from guidino_tune.models.parts.fapm import FAPM, SqueezeExcitation
from guidino_tune.models.segmenters.dinounet import DinoUNet

SMALL: dict[str, Any] = {"widths": (4, 6, 8, 16), "rank": 6, "attention_heads": 2, "attention_points": 2}
SIZES = {"s": (384, 12), "b": (768, 12), "l": (1024, 24), "7b": (4096, 40)}


def build(width: int = 12, num_layers: int = 4, num_outputs: int = 1, **options: Any) -> DinoUNet:
    return DinoUNet(
        config.DinoUNet(**options), image_size=64, num_outputs=num_outputs, backbone=BackboneShape(width, (width,) * num_layers)
    )


def count(module: nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


# --------------------------------------------------------------------------------------------------------------- counts and shapes


@pytest.mark.parametrize(
    ("size", "num_outputs", "expected"),
    [
        ("s", 2, 6_194_948), ("b", 2, 13_182_020), ("l", 2, 19_969_988), ("7b", 2, 234_332_612),
        ("s", 1, 6_194_721), ("b", 1, 13_181_793), ("l", 1, 19_969_761),
    ],
)  # fmt: skip
def test_published_counts(size: str, num_outputs: int, expected: int) -> None:
    with torch.device("meta"):
        model = build(*SIZES[size], num_outputs)
        deep = build(*SIZES[size], num_outputs, deep_supervision=True)
    assert count(model) == count(deep) == count(deep, trainable=True) == expected
    # The original trains all of its heads, though it only runs the finest.
    assert count(model, trainable=True) == expected - num_outputs * (128 + 1 + 64 + 1)


@pytest.mark.parametrize(
    ("size", "prior", "extractors", "up", "embedding", "norms", "fapm"),
    [
        ("s", 1_307_456, 1_796_544, 590_208, 1_152, 3_072, 1_393_214),
        ("b", 1_579_328, 6_246_144, 2_360_064, 2_304, 6_144, 1_884_734),
        ("l", 1_760_576, 10_687_104, 4_195_328, 3_072, 8_192, 2_212_414),
    ],
)
def test_published_counts_of_the_parts(size: str, prior: int, extractors: int, up: int, embedding: int, norms: int, fapm: int) -> None:
    with torch.device("meta"):
        model = build(*SIZES[size], 2)
    adapter = model.adapter
    assert count(adapter.spatial_prior) == prior
    assert count(adapter.extractors) == extractors
    assert count(adapter.up) == up
    assert adapter.level_embedding.numel() == embedding
    assert count(adapter.norms) == norms
    assert count(model.fapm) == fapm
    assert count(model.upsamplers) == 348_640
    assert count(model.decoder) == 754_662


@torch.no_grad()
def test_published_shapes() -> None:
    found: dict[str, list[tuple[int, ...]]] = {"up": []}
    model = build(384, 12, num_outputs=2, deep_supervision=True)
    for name in ("adapter", "fapm", "decoder"):
        getattr(model, name).register_forward_hook(lambda _m, _i, out, name=name: found.update({name: [tuple(x.shape) for x in out]}))
    for up in model.upsamplers:
        up.register_forward_hook(lambda _m, _i, out: found["up"].append(tuple(out.shape)))
    layers = tuple(torch.randn(4, 1, 384, 16, 16))
    model(torch.randn(1, 3, 256, 256), Gate(), Features(layers[-1], layers))
    widths, sides = (32, 64, 128, 256), (64, 32, 16, 8)
    assert found["adapter"] == [(1, 384, side, side) for side in sides]
    assert found["fapm"] == [(1, width, side, side) for width, side in zip(widths, sides, strict=True)]
    # Each upsampler runs twice.
    assert found["up"] == [(1, width, k * side, k * side) for width, side in zip(widths, sides, strict=True) for k in (2, 4)]
    assert found["decoder"] == [(1, 2, 256, 256), (1, 2, 128, 128), (1, 2, 64, 64)]


@pytest.mark.parametrize(("size", "layers"), [("s", (2, 5, 8, 11)), ("l", (4, 11, 17, 23)), ("7b", (9, 19, 29, 39))])
def test_layers_asked_for(size: str, layers: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert build(*SIZES[size]).feature_request.layers == layers
        assert build(*SIZES[size]).feature_request.final_norm
        assert not build(*SIZES[size], final_norm=False).feature_request.final_norm


# ------------------------------------------------------------------------------------------------------------------------- formulas


def scramble(model: Any) -> Any:
    """Random weights by which signals neither die nor explode on the long way through the adapter."""
    return network_formulas.scramble(model, std=lambda value: 0.5 if value.dim() < 2 else value[0].numel() ** -0.5)


def batch_norm(x: Tensor, layer: Any) -> Tensor:
    scale = layer.weight / torch.sqrt(layer.running_var + 1e-5)
    return (x - layer.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def layer_norm(x: Tensor, layer: Any) -> Tensor:
    y: Tensor = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6) * layer.weight + layer.bias
    return y


def instance_norm(x: Tensor, layer: Any) -> Tensor:
    x = (x - x.mean((2, 3), keepdim=True)) / torch.sqrt(x.var((2, 3), keepdim=True, unbiased=False) + 1e-5)
    return x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def pointwise(x: Tensor, layer: Any) -> Tensor:
    return torch.einsum("bihw,oi->bohw", x, layer.weight[:, :, 0, 0]) + layer.bias.view(-1, 1, 1)


def depthwise(x: Tensor, layer: Any) -> Tensor:
    """3x3 per channel, as a sum of nine shifted maps."""
    padded, height, width = F.pad(x, (1, 1, 1, 1)), x.shape[2], x.shape[3]
    y = layer.bias.view(-1, 1, 1).expand_as(x).clone()
    for row in range(3):
        for column in range(3):
            y += layer.weight[:, 0, row, column].view(-1, 1, 1) * padded[:, :, row : row + height, column : column + width]
    return y


def double(x: Tensor, layer: Any) -> Tensor:
    """A transposed convolution that does not overlap: every pixel becomes two by two."""
    y = torch.empty(x.shape[0], layer.out_channels, 2 * x.shape[2], 2 * x.shape[3])
    for row in (0, 1):
        for column in (0, 1):
            y[:, :, row::2, column::2] = torch.einsum("bihw,io->bohw", x, layer.weight[:, :, row, column]) + layer.bias.view(-1, 1, 1)
    return y


def resize(x: Tensor, factor: float) -> Tensor:
    """Bilinear between pixel centres, as a product with a matrix per axis."""

    def matrix(size: int) -> Tensor:
        at = ((torch.arange(int(size * factor)) + 0.5) / factor - 0.5).clamp(0, size - 1)
        return (1 - (at[:, None] - torch.arange(size)).abs()).clamp(min=0)

    return torch.einsum("ih,bchw,jw->bcij", matrix(x.shape[2]), x, matrix(x.shape[3]))


@torch.no_grad()
def test_spatial_prior_is_the_published_one() -> None:
    module = scramble(SpatialPrior(6))
    images = torch.randn(2, 3, 64, 96)

    def block(x: Tensor, layers: Any, stride: int) -> Tensor:
        return batch_norm(F.conv2d(x, layers[0].weight, stride=stride, padding=1), layers[1]).clamp(min=0)

    x = block(block(block(images, module.stem[0], 2), module.stem[1], 1), module.stem[2], 1)
    x = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))  # zero padding is below every value after ReLU
    fine = pointwise(x, module.project[0])
    x = block(x, module.down[0], 2)
    eighth = pointwise(x, module.project[1])
    x = block(x, module.down[1], 2)
    sixteenth = pointwise(x, module.project[2])
    expected = [fine, eighth, sixteenth, pointwise(block(x, module.down[2], 2), module.project[3])]
    actual = module(images)
    assert [tuple(x.shape[2:]) for x in actual] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


GRIDS = [(4, 6), (2, 3), (1, 2)]


def feed_forward(tokens: Tensor, module: Any) -> Tensor:
    x, parts, first = tokens @ module.first.weight.T + module.first.bias, [], 0
    for height, width in GRIDS:
        part = x[:, first : first + height * width].reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2)
        parts.append(depthwise(part, module.depthwise).permute(0, 2, 3, 1).reshape(x.shape[0], height * width, -1))
        first += height * width
    x = torch.cat(parts, 1)
    y: Tensor = (x * 0.5 * (1 + torch.erf(x / 2**0.5))) @ module.second.weight.T + module.second.bias
    return y


@torch.no_grad()
def test_depthwise_convolution_keeps_to_its_own_scale() -> None:
    module = scramble(ConvFeedForward(12))
    tokens = torch.randn(2, 32, 12)
    output = module(tokens, GRIDS)
    torch.testing.assert_close(output, feed_forward(tokens, module), atol=1e-5, rtol=1e-5)
    for changed, neighbours in {23: {16, 17, 22, 23}, 24: {24, 25, 27, 28}, 31: {30, 31}}.items():  # last of 4x6, first of 2x3, last of 1x2
        other = tokens.clone()
        other[:, changed] += 1
        moved = (module(other, GRIDS) - output).abs().amax((0, 2)) > 1e-6
        assert set(moved.nonzero().flatten().tolist()) == neighbours


@torch.no_grad()
def test_extractor_is_the_published_one() -> None:
    module = scramble(Extractor(12, num_heads=2, num_points=2, drop_path=0.3))
    tokens, places, layer = torch.randn(2, 32, 12), torch.rand(32, 2), torch.randn(2, 12, 2, 3)
    values = layer_norm(layer.permute(0, 2, 3, 1).reshape(2, 6, 12), module.value_norm)
    x = tokens + module.attention(layer_norm(tokens, module.query_norm), places, values, (2, 3))
    expected = x + feed_forward(layer_norm(x, module.norm), module.feed_forward)
    torch.testing.assert_close(module(tokens, GRIDS, places, layer), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_stochastic_depth_drops_the_feed_forward_of_whole_samples() -> None:
    module = scramble(Extractor(12, num_heads=2, num_points=2, drop_path=0.3)).train()
    tokens, places, layer = torch.randn(1, 32, 12), torch.rand(32, 2), torch.randn(1, 12, 2, 3)
    output = module(tokens.expand(200, -1, -1), GRIDS, places, layer.expand(200, -1, -1, -1))
    values = layer_norm(layer.flatten(2).transpose(1, 2), module.value_norm)
    without = tokens + module.attention(layer_norm(tokens, module.query_norm), places, values, (2, 3))
    scaled = without + feed_forward(layer_norm(without, module.norm), module.feed_forward) / 0.7
    dropped = (output - without).abs().amax((1, 2)) < 1e-4
    kept = (output - scaled).abs().amax((1, 2)) < 1e-4
    assert (dropped ^ kept).all()
    assert 0.15 < dropped.float().mean() < 0.45


@torch.no_grad()
def test_adapter_is_wired_as_published() -> None:
    """Without loops: which layer each extractor reads, and what is added to which scale."""
    a = scramble(DINOAdapter((12,) * 4, 12, num_heads=2, num_points=2, drop_path=0.3))
    images, (l0, l1, l2, l3) = torch.randn(2, 3, 64, 96), torch.randn(4, 2, 12, 4, 6)
    c1, c2, c3, c4 = a.spatial_prior(images)
    grids = [(8, 12), (4, 6), (2, 3)]
    places = torch.tensor([[(j + 0.5) / w, (i + 0.5) / h] for h, w in grids for i in range(h) for j in range(w)])
    rows = [x.permute(0, 2, 3, 1).reshape(2, -1, 12) for x in (c2, c3, c4)]
    c = torch.cat([rows[0] + a.level_embedding[0], rows[1] + a.level_embedding[1], rows[2] + a.level_embedding[2]], 1)
    assert c.shape[1] == 21 * 6  # 21 tokens for each at 1/32
    c = a.extractors[0](c, grids, places, l0)
    c = a.extractors[1](c, grids, places, l1)
    c = a.extractors[2](c, grids, places, l2)
    c = a.extractors[3](c, grids, places, l3)
    c = a.extractors[4](c, grids, places, l3)
    c = a.extractors[5](c, grids, places, l3)
    assert len(a.extractors) == 6
    e, s, t = (x.reshape(2, *grid, 12).permute(0, 3, 1, 2) for x, grid in zip(c.split([96, 24, 6], 1), grids, strict=True))
    expected = [
        batch_norm(c1 + double(e, a.up) + resize(l0, 4), a.norms[0]),
        batch_norm(e + resize(l1, 2), a.norms[1]),
        batch_norm(s + l2, a.norms[2]),
        batch_norm(t + resize(l3, 0.5), a.norms[3]),
    ]
    for x, y in zip(a(images, (l0, l1, l2, l3)), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_squeeze_and_excitation() -> None:
    module = scramble(SqueezeExcitation(32))
    x = torch.randn(2, 32, 3, 5)
    hidden = (x.mean((2, 3)) @ module.gate[1].weight[:, :, 0, 0].T + module.gate[1].bias).clamp(min=0)
    assert hidden.shape == (2, 2)
    gate = 1 / (1 + torch.exp(-(hidden @ module.gate[3].weight[:, :, 0, 0].T + module.gate[3].bias)))
    torch.testing.assert_close(module(x), x * gate[:, :, None, None])


@torch.no_grad()
def test_fapm_is_the_published_one() -> None:
    """The second scale is as wide as the rank: its shortcut has no weights."""
    module = scramble(FAPM(5, (4, 6), 6))
    maps = [torch.randn(2, 5, 8, 6), torch.randn(2, 5, 4, 3)]
    outputs = module(maps)
    for scale, x in enumerate(maps):
        film = pointwise(pointwise(x, module.shared), module.film[scale])
        gamma, beta = film[:, :6], film[:, 6:]
        z = gamma * pointwise(x, module.specific[scale]) + beta
        torch.testing.assert_close(module.modulated(scale, x), z, atol=1e-5, rtol=1e-5)
        narrow, norm1, _, deep, point, norm2, _, last, excitation = module.refine[scale]
        y = leaky(instance_norm(pointwise(z, narrow), norm1))
        y = leaky(instance_norm(pointwise(depthwise(y, deep), point), norm2))
        y = excitation(pointwise(y, last))
        expected = y + (z if scale else pointwise(z, module.shortcut[0]))
        torch.testing.assert_close(outputs[scale], expected, atol=1e-5, rtol=1e-5)
    assert count(module.shortcut[1]) == 0


@torch.no_grad()
@pytest.mark.parametrize("place", config.DinoUNet.gates)
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_is_wired_as_published(place: str, deep_supervision: bool) -> None:
    model = scramble(build(**SMALL, deep_supervision=deep_supervision))
    images, layers, mask = torch.randn(2, 3, 64, 64), tuple(torch.randn(4, 2, 12, 4, 4)), torch.rand(2, 1, 4, 4)
    gate = Gate(mask, place)

    def block(x: Tensor, layers: Any) -> Tensor:
        for conv, norm, _ in layers:
            x = leaky(instance_norm(F.conv2d(x, conv.weight, conv.bias, padding=1), norm))
        return x

    narrow = model.fapm(model.adapter(gate("input", images), [gate("features", layer) for layer in layers]))
    maps = [double(double(x, up), up) for x, up in zip(narrow, model.upsamplers, strict=True)]  # the same weights twice
    x, logits = gate("bottleneck", maps[3]), []
    for stage, skip in enumerate((maps[2], maps[1], maps[0])):
        x = gate("decoder", block(torch.cat([double(x, model.decoder.up[stage]), gate("skips", skip)], 1), model.decoder.merge[stage]))
        logits.insert(0, pointwise(x, model.decoder.heads[stage]))
    actual = model(images, gate, Features(layers[-1], layers))
    assert len(actual) == (3 if deep_supervision else 1)
    for a, b in zip(actual, logits, strict=False):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


# -------------------------------------------------------------------------------------------------------------------- and the rest


@torch.no_grad()
def test_initial_weights() -> None:
    torch.manual_seed(0)
    adapter = build(384, 12).adapter
    for extractor in adapter.extractors:  # the general rule for linear layers must not overwrite the attention's own weights
        assert extractor.attention.offsets.bias.view(16, 4, 2)[0].tolist() == [[1, 0], [2, 0], [3, 0], [4, 0]]
        assert not extractor.attention.offsets.weight.any()
        assert extractor.attention.value.weight.abs().max() > 0.09  # Xavier reaches 0.102, a normal of 0.02 hardly
        first, deep = extractor.feed_forward.first, extractor.feed_forward.depthwise
        assert float(first.weight.std()) == pytest.approx(0.02, rel=0.03)
        assert not first.bias.any()
        assert float(deep.weight.std()) == pytest.approx(math.sqrt(2 / 9), rel=0.15)
    prior = adapter.spatial_prior
    assert float(prior.down[1][0].weight.std()) == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    assert float(prior.project[0].weight.std()) == pytest.approx(math.sqrt(2 / 384), rel=0.03)
    assert float(adapter.up.weight.std()) == pytest.approx(math.sqrt(2 / (4 * 384)), rel=0.02)
    assert float(adapter.level_embedding.std()) == pytest.approx(1, rel=0.1)


@torch.no_grad()
def test_layers_may_differ_in_width() -> None:
    shape = BackboneShape(12, (5, 12, 7, 12))
    model = DinoUNet(config.DinoUNet(**SMALL), image_size=64, backbone=shape).eval()
    assert [count(project) for project in model.adapter.project] == [5 * 12 + 12, 0, 7 * 12 + 12, 0]
    layers = tuple(torch.randn(1, width, 4, 4) for width in shape.layer_widths)
    assert model(torch.randn(1, 3, 64, 64), Gate(), Features(layers[-1], layers))[0].shape == (1, 1, 64, 64)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="10 heads do not divide 192") as error:
        build(384, 12, attention_heads=10)
    assert error.value.where == "segmenter.attention_heads"
    assert build(**SMALL).size_multiple == 32
    assert config.DinoUNet().size_multiple(32) == 64  # at 32 pixels the deepest map would be a single one


@torch.no_grad()
def test_bf16_autocast_stays_close() -> None:
    model = build(64, **SMALL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    images, layers = torch.randn(2, 3, 64, 64), tuple(torch.randn(4, 2, 64, 4, 4))
    model.train()(images, Gate(), Features(layers[-1], layers))  # batch norm takes the statistics of these images
    expected = model.eval()(images, Gate(), Features(layers[-1], layers))[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images, Gate(), Features(layers[-1], layers))[0].float()
    assert torch.isfinite(low).all()
    assert (low - expected).std() < 0.05 * expected.std()
