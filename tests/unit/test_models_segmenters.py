"""The segmenters against their published formulas, written out again with functions and their own weights."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_formulas import norm, scramble
from torch import Tensor, nn

from guidino_tune import config
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import Upsampling
from guidino_tune.models.segmenters import nnwnet
from guidino_tune.models.segmenters.nnwnet import NNWNet
from guidino_tune.models.segmenters.segdino import SegDINO
from guidino_tune.models.segmenters.segguidino import SegGuiDINO
from guidino_tune.models.segmenters.unet import UNet


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def conv(x: Tensor, layer: Any, **options: Any) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, **options)


def upsample(x: Tensor, factor: int, *, corners: bool) -> Tensor:
    """Bilinear by an independent formula: as a product with a matrix per axis."""

    def matrix(size: int) -> Tensor:
        large = size * factor
        at = np.arange(large) * (size - 1) / (large - 1) if corners else np.clip((np.arange(large) + 0.5) / factor - 0.5, 0, size - 1)
        return torch.tensor(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))), dtype=torch.float32)

    return torch.einsum("ih,bchw,jw->bcij", matrix(x.shape[2]), x, matrix(x.shape[3]))


@torch.no_grad()
def test_unet_is_the_published_one() -> None:
    model = scramble(UNet(config.UNet(base_width=2)))
    x = images = torch.randn(2, 3, 32, 48)
    mask = torch.rand(2, 1, 2, 3)

    def block(x: Tensor, layers: Any) -> Tensor:
        for first in (0, 3):
            x = norm(F.conv2d(x, layers[first].weight, padding=1), layers[first + 1]).clamp(min=0)
        return x

    skips = []
    for level in range(5):
        if level:
            skips.append(x)
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        x = block(x, model.down[level])
    x = x * mask
    for level in range(4):
        up = F.conv_transpose2d(x, model.up[level].weight, model.up[level].bias, stride=2)
        x = block(torch.cat([skips.pop(), up], 1), model.merge[level])
    torch.testing.assert_close(model(images, Gate(mask, "bottleneck"))[0], conv(x, model.head), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_segguidino_is_the_published_one() -> None:
    model = scramble(SegGuiDINO(config.SegGuiDINO(hidden=64, dropout=0.5), backbone=BackboneShape(8, (8,))))
    last, mask = torch.randn(2, 8, 3, 2), torch.rand(2, 1, 3, 2)
    x = conv(conv(last, model.project, padding=1) * mask, model.block[0], padding=1)
    groups = x.view(2, 32, -1)  # 32 groups of 2 channels
    groups = (groups - groups.mean(2, keepdim=True)) / torch.sqrt(groups.var(2, keepdim=True, unbiased=False) + 1e-5)
    x = gelu(groups.view_as(x) * model.block[1].weight.view(1, -1, 1, 1) + model.block[1].bias.view(1, -1, 1, 1))
    expected = upsample(conv(x, model.head), 16, corners=False)
    actual = model(torch.empty(2, 3, 48, 32), Gate(mask, "features"), Features(last))
    torch.testing.assert_close(actual[0], expected, atol=1e-5, rtol=1e-5)


def test_segguidino_has_its_dropout() -> None:
    (layer,) = [
        m for m in SegGuiDINO(config.SegGuiDINO(dropout=0.3), backbone=BackboneShape(8, (8,))).modules() if isinstance(m, nn.Dropout2d)
    ]
    assert layer.p == 0.3


def test_segguidino_falls_back_to_one_group() -> None:
    assert SegGuiDINO(config.SegGuiDINO(hidden=48), backbone=BackboneShape(8, (8,))).block[1].num_groups == 1


@torch.no_grad()
def test_segdino_is_the_published_one_and_linear() -> None:
    model = scramble(SegDINO(config.SegDINO(features=6, branch_widths=(2, 3, 4, 5)), backbone=BackboneShape(8, (8,) * 12)))
    assert model.feature_request.layers == (2, 5, 8, 11)
    assert model.feature_request.final_norm
    layers, mask = tuple(torch.randn(2, 8, 3, 2) for _ in range(4)), torch.rand(2, 1, 3, 2)
    maps = [F.conv2d(conv(x, p) * mask, m.weight, padding=1) for x, p, m in zip(layers, model.project, model.mix, strict=True)]
    branches = [F.conv_transpose2d(maps[0], model.up.weight, stride=4), *(upsample(x, 4, corners=True) for x in maps[1:])]
    expected = upsample(conv(torch.cat(branches, 1), model.head), 4, corners=True)
    images = torch.empty(2, 3, 48, 32)
    actual = model(images, Gate(mask, "features"), Features(layers[-1], layers))[0]
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    bias = model(images, Gate(), Features(layers[-1], tuple(torch.zeros_like(x) for x in layers)))[0]
    once, twice = (model(images, Gate(), Features(layers[-1], tuple(k * x for x in layers)))[0] - bias for k in (1, 2))
    torch.testing.assert_close(twice, 2 * once, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (6, 4)])
def test_local_blocks(inputs: int, outputs: int) -> None:
    x = torch.randn(2, inputs, 8, 6)
    block = scramble(nnwnet.ResBlock(inputs, outputs))
    first, second, second_norm = block.body[0], block.body[1], block.body[2]
    y = norm(conv(gelu(norm(conv(x, first[0], padding=1), first[1])), second, padding=1), second_norm)
    residual = x if inputs == outputs else norm(conv(x, block.shortcut[0]), block.shortcut[1])
    expected = gelu(y + residual)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    down = scramble(nnwnet.local_down(inputs, outputs, 5))
    y = F.conv2d(down[0](x), down[1][0].weight, padding=1, stride=2)
    torch.testing.assert_close(down(x), gelu(norm(y, down[1][1])), atol=1e-5, rtol=1e-5)
    up = scramble(nnwnet.local_up(inputs, outputs, 5))
    y = F.conv2d(upsample(up[0](x), 2, corners=True), up[2][0].weight, padding=1)
    torch.testing.assert_close(up(x), gelu(norm(y, up[2][1])), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_global_block() -> None:
    block = scramble(nnwnet.GlobalBlock(3, 4))
    x = torch.randn(2, 3, 6, 5)

    def layer_norm(x: Tensor, affine: Any) -> Tensor:
        flat = x.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / torch.sqrt(flat.var(1, keepdim=True, unbiased=False) + 1e-5)
        y: Tensor = flat.view_as(x) * affine.weight.view(1, -1, 1, 1) + affine.bias.view(1, -1, 1, 1)
        return y

    y = conv(x, block.embed, padding=1)
    n = layer_norm(y, block.norm_pool)
    ones = torch.ones(1, 1, 3, 3)
    count = F.conv2d(torch.ones(1, 1, 6, 5), ones, padding=1)  # the padding is not counted
    y = y + F.conv2d(n, ones.expand(4, 1, 3, 3), padding=1, groups=4) / count - n
    expected = y + conv(gelu(conv(layer_norm(y, block.norm_mlp), block.mlp[0])), block.mlp[2])
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("place", ["input", "bottleneck"])
def test_nnwnet_is_wired_as_published(place: str) -> None:
    """Level by level, without loops: which map goes where."""
    m = scramble(NNWNet(config.NNWNet(base_width=2)))
    images, mask = torch.randn(1, 3, 32, 32), torch.rand(1, 1, 2, 2)
    gate = Gate(mask, place)

    def cat(local: Tensor, other: Tensor) -> Tensor:
        return torch.cat([local, other], 1)

    e0 = m.stem(gate("input", images))
    e1, g0 = m.encoder1_local[0](e0), m.encoder1_global[0](e0)
    e2, g1 = m.encoder1_local[1](e1), m.encoder1_global[1](e1)
    e3, g2 = m.encoder1_local[2](e2), m.encoder1_global[2](e2)
    e4, g3 = m.encoder1_local[3](e3), m.encoder1_global[3](e3)
    e4 = gate("bottleneck", e4)
    d3, h4 = cat(m.decoder1_local[3](e4), g3), m.decoder1_global[3](e4)
    d2, h3 = cat(m.decoder1_local[2](d3), g2), m.decoder1_global[2](d3)
    d1, h2 = cat(m.decoder1_local[1](d2), g1), m.decoder1_global[1](d2)
    d0, h1 = cat(m.decoder1_local[0](d1), g0), m.decoder1_global[0](d1)
    f1, k0 = cat(m.encoder2_local[0](d0), h1), m.encoder2_global[0](d0)
    f2, k1 = cat(m.encoder2_local[1](f1), h2), m.encoder2_global[1](f1)
    f3, k2 = cat(m.encoder2_local[2](f2), h3), m.encoder2_global[2](f2)
    local4, k3 = m.encoder2_local[3](f3), m.encoder2_global[3](f3)
    local3 = m.decoder2_local[3](cat(local4, h4))
    local2 = m.decoder2_local[2](cat(local3, k3))
    local1 = m.decoder2_local[1](cat(local2, k2))
    local0 = m.decoder2_local[0](cat(local1, k1))
    coarse = [head(x) for head, x in zip(m.coarse_heads, (local1, local2, local3, local4), strict=True)]
    expected = (m.head(cat(local0, k0)), *coarse)
    actual = m(images, gate)
    assert len(actual) == 5
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    m.deep_supervision = False
    alone = m(images, gate)
    assert len(alone) == 1
    assert torch.equal(alone[0], actual[0])


def test_weights_fit_with_and_without_deep_supervision() -> None:
    off, on = (NNWNet(config.NNWNet(base_width=2, deep_supervision=flag)) for flag in (False, True))
    assert set(off.state_dict()) == set(on.state_dict())


@pytest.mark.parametrize(("factor", "bias"), [(2, True), (4, False)])
def test_upsampling_is_the_transposed_convolution(factor: int, bias: bool) -> None:
    """In bf16 and channels_last it is computed in another way: the same numbers, forward and backward."""
    torch.manual_seed(0)
    ours, theirs = Upsampling(8, 6, factor, bias=bias), torch.nn.ConvTranspose2d(8, 6, factor, stride=factor, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    image, slopes = torch.randn(2, 8, 5, 4), torch.randn(2, 6, 5 * factor, 4 * factor)
    for bf16 in (True, False):
        results = []
        for module in (ours, theirs):
            module.zero_grad()
            x = image.to(memory_format=torch.channels_last, copy=True).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                y = module(x)
            y.backward(slopes.to(y.dtype))
            results.append([y, x.grad, *(parameter.grad for parameter in module.parameters())])
        assert results[0][0].dtype == (torch.bfloat16 if bf16 else torch.float32)
        for a, b in zip(*results, strict=True):
            assert (a - b).norm() <= (5e-3 if bf16 else 1e-6) * b.norm()
        assert results[0][0].is_contiguous(memory_format=torch.channels_last)
