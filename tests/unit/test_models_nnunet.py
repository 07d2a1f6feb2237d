"""nnU-Net against its published sizes and shapes, and against its formulas written out again with functions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_formulas import scramble
from torch import Tensor, nn

from guidino_tune import config
from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.models import build_model
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters.nnunet import NNUNet, ResidualBlock

ENCODERS = ("plain", "residual")


def build(encoder: str = "plain", *, image_size: int = 256, num_outputs: int = 1, **options: Any) -> Any:
    """On the CPU, from seed 0."""
    torch.manual_seed(0)
    return NNUNet(config.NNUNet(encoder=encoder, **options), image_size=image_size, num_outputs=num_outputs)  # type: ignore[arg-type]


def experiment(image_size: int, **options: Any) -> Experiment:
    values = {"data": {"kind": "demo", "image_size": image_size}, "guide": {"kind": "none"}, "segmenter": {"kind": "nnunet", **options}}
    return Experiment.from_dict(values)


# ------------------------------------------------------------------------------------------------------------ published sizes


@pytest.mark.parametrize(
    ("encoder", "num_stages", "count"),
    [
        ("plain", 6, 20_618_661),
        ("plain", 7, 33_470_886),
        ("plain", 8, 46_323_111),
        ("residual", 6, 71_816_165),
        ("residual", 7, 105_915_878),
        ("residual", 8, 140_015_591),
    ],
)
def test_published_counts(encoder: str, num_stages: int, count: int) -> None:
    with torch.device("meta"):
        trained, finest = (build(encoder, num_stages=num_stages, deep_supervision=flag) for flag in (True, False))
    for model in (trained, finest):
        assert sum(p.numel() for p in model.parameters()) == count
    assert all(p.requires_grad for p in trained.parameters())
    # Heads at 1/2, 1/4, 1/8 and coarser have widths 64, 128, 256, 512, 512, ... and one bias each.
    coarse = [65, 129, 257, 513, 513, 513][: num_stages - 2]
    assert sum(p.numel() for p in finest.parameters() if not p.requires_grad) == sum(coarse)


MAPS = [(32, 256), (64, 128), (128, 64), (256, 32), (512, 16), (512, 8)]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_published_shapes(encoder: str) -> None:
    with torch.device("meta"):
        model, images = build(encoder), torch.empty(1, 3, 256, 256)
    expected = {f"encoder.{level}": shape for level, shape in enumerate(MAPS)}
    expected |= {f"decoder.merge.{4 - level}": shape for level, shape in enumerate(MAPS[:5])}
    expected |= {f"decoder.heads.{4 - level}": (1, side) for level, (_, side) in enumerate(MAPS[:5])}
    expected |= {"stem": MAPS[0]} if encoder == "residual" else {}
    found = {}
    for name, module in model.named_modules():
        if name in expected:
            module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: tuple(out.shape)}))
    logits = model(images, Gate())
    assert found == {name: (1, channels, side, side) for name, (channels, side) in expected.items()}
    assert [tuple(x.shape) for x in logits] == [(1, 1, side, side) for side in (256, 128, 64, 32, 16)]


def test_widths_and_depths_follow_the_options() -> None:
    with torch.device("meta"):
        model = build("residual", num_stages=9, base_width=8, max_width=20, image_size=512)
    assert [len(stage) for stage in model.encoder] == [1, 3, 4, 6, 6, 6, 6, 6, 6]
    assert [stage[-1].norm.num_features for stage in model.encoder] == [8, 16, *[20] * 7]
    assert [len(merge) for merge in model.decoder.merge] == [1] * 8


# ------------------------------------------------------------------------------------------------------------ numbers


def norm(x: Tensor, layer: Any) -> Tensor:
    """Each image and channel to mean 0 and variance 1 over its pixels, then scaled and shifted."""
    centred = x - x.mean((2, 3), keepdim=True)
    y = centred / torch.sqrt(centred.square().mean((2, 3), keepdim=True) + 1e-5)
    return y * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def conv_norm(x: Tensor, layers: Any, stride: int = 1) -> Tensor:
    return leaky(norm(F.conv2d(x, layers[0].weight, layers[0].bias, stride, padding=1), layers[1]))


def residual(x: Tensor, block: Any, stride: int = 1) -> Tensor:
    y = conv_norm(x, block.first, stride)
    y = norm(F.conv2d(y, block.second.weight, block.second.bias, padding=1), block.norm)
    shortcut = sum(x[..., i::stride, j::stride] for i in range(stride) for j in range(stride)) / stride**2
    if len(x[0]) != len(y[0]):
        assert block.project[0].bias is None
        shortcut = norm(torch.einsum("oi,bihw->bohw", block.project[0].weight[:, :, 0, 0], shortcut), block.project[1])
    return leaky(y + shortcut)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (3, 5)])
def test_residual_block(inputs: int, outputs: int, stride: int) -> None:
    block = scramble(ResidualBlock(inputs, outputs, stride=stride))
    x = torch.randn(2, inputs, 8, 12)
    expected = residual(x, block, stride)
    assert expected.shape == (2, outputs, 8 // stride, 12 // stride)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("place", ["input", "bottleneck", "skips", "decoder"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_wired_as_published(encoder: str, place: str) -> None:
    """Level by level: strided encoder, transposed convolutions, [up, skip], a head at every decoder stage; the mask at its place."""
    model = scramble(build(encoder, num_stages=3, base_width=4, num_outputs=2))
    images, mask = torch.randn(2, 3, 32, 48), torch.rand(2, 1, 32, 48)

    def gate(name: str, x: Tensor) -> Tensor:
        return x * F.interpolate(mask, x.shape[2:], mode="bilinear") if name == place else x

    def run(x: Tensor, blocks: Any, stride: int = 1) -> Tensor:
        one = residual if isinstance(blocks[0], ResidualBlock) else conv_norm
        for index, block in enumerate(blocks):
            x = one(x, block, 1 if index else stride)
        return x

    def up(x: Tensor, layer: Any) -> Tensor:
        """Every pixel becomes 2 x 2: without overlap, a transposed convolution is a product."""
        y = torch.einsum("bihw,ioyx->bohywx", x, layer.weight)
        return y.reshape(*y.shape[:2], 2 * x.shape[2], 2 * x.shape[3]) + layer.bias.view(1, -1, 1, 1)

    def head(x: Tensor, layer: Any) -> Tensor:
        return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias.view(1, -1, 1, 1)

    x = gate("input", images)
    if encoder == "residual":
        x = conv_norm(x, model.stem)
    full = run(x, model.encoder[0])
    half = run(full, model.encoder[1], 2)
    deepest = gate("bottleneck", run(half, model.encoder[2], 2))
    decoder = model.decoder
    half = gate("decoder", run(torch.cat([up(deepest, decoder.up[0]), gate("skips", half)], 1), decoder.merge[0]))
    full = gate("decoder", run(torch.cat([up(half, decoder.up[1]), gate("skips", full)], 1), decoder.merge[1]))
    actual = model(images, Gate(mask, place))
    assert len(actual) == 2
    torch.testing.assert_close(actual[0], head(full, decoder.heads[1]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual[1], head(half, decoder.heads[0]), atol=1e-4, rtol=1e-4)
    assert (actual[0] - model(images, Gate())[0]).abs().max() > 0.1 * actual[0].std()


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
def test_weights_fit_with_and_without_deep_supervision(encoder: str) -> None:
    on, off = (build(encoder, num_stages=4, base_width=4, deep_supervision=flag) for flag in (True, False))
    assert all(torch.equal(value, off.state_dict()[name]) for name, value in on.state_dict().items())
    off.load_state_dict(scramble(on).state_dict())
    images = torch.randn(2, 3, 32, 32)
    (finest,) = off(images, Gate())
    supervised = on(images, Gate())
    assert [x.shape[-1] for x in supervised] == [32, 16, 8]
    assert torch.equal(supervised[0], finest)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_initial_weights(encoder: str) -> None:
    model = build(encoder, num_stages=4, base_width=16)
    convolutions = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            convolutions += 1
            assert module.bias is None or not module.bias.any()
            weight = module.weight.detach()
            # He et al. (2015): variance 2 / ((1 + slope^2) fan); the fan is counted over the second axis, which is the output of a
            # transposed convolution.
            relative = weight / (2 / (1 + 0.01**2) / weight[0].numel()) ** 0.5
            if weight.numel() > 400:
                assert relative.std() == pytest.approx(1, rel=0.1)
                assert relative.abs().max() > 2  # a uniform distribution ends at 1.73
        elif isinstance(module, nn.InstanceNorm2d):
            assert module.eps == 1e-5
    assert convolutions == (8 + 12 if encoder == "plain" else 1 + 2 * 14 + 3 + 9)
    last = {id(block.norm) for block in model.modules() if isinstance(block, ResidualBlock)}
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm2d):  # blocks start as their shortcuts
            assert torch.equal(module.weight, torch.full_like(module.weight, id(module) not in last))
            assert not module.bias.any()


# ------------------------------------------------------------------------------------------------------------ sizes that do not fit


def test_a_batch_that_does_not_fit() -> None:
    model = build_model(experiment(64, base_width=2, num_stages=6))
    assert model(torch.randn(1, 3, 64, 96)).logits[0].shape == (1, 1, 64, 96)
    with pytest.raises(UserError, match="64 x 80 pixels do not fit a network that needs multiples of 32"):
        model(torch.randn(1, 3, 64, 80))


def test_an_experiment_that_does_not_fit() -> None:
    assert experiment(288).segmenter.size_multiple(288) == 32
    with pytest.raises(UserError, match=r"272 is no multiple of 32, which segmenter 'nnunet' needs; nearest: 256 and 288"):
        experiment(272)
    assert experiment(272, num_stages=5).data.image_size == 272


def test_a_single_deepest_pixel_is_refused() -> None:
    assert experiment(256, num_stages=8).data.image_size == 256
    with pytest.raises(UserError, match=r"256 is no multiple of 512, which segmenter 'nnunet' needs; nearest: 512"):
        experiment(256, num_stages=9)
