"""Shifted windows and SwinUNet against loops over tokens: no partition, roll or mask appears in what they are compared with."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from network_formulas import scramble
from torch import Tensor

from guidino_tune import config
from guidino_tune.errors import UserError
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts import swin
from guidino_tune.models.segmenters import swinunet
from guidino_tune.models.segmenters.swinunet import SwinUNet


def array(x: Tensor) -> Any:
    return x.detach().double().numpy()


def linear(x: Any, layer: Any) -> Any:
    y = x @ array(layer.weight).T
    return y if layer.bias is None else y + array(layer.bias)


def layer_norm(x: Any, layer: Any) -> Any:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * array(layer.weight) + array(layer.bias)


def usual_mlp(x: Any, layers: Any) -> Any:
    hidden = linear(x, layers[0])
    return linear(hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / 2**0.5)), layers[2])


def window_of(height: int, width: int, window: int, shifted: bool) -> Any:
    """The window of every token, as a pair of numbers: windows begin half their side further on, where an axis holds several."""

    def along(side: int) -> list[int]:
        shift = window // 2 if shifted and side > window else 0
        return [(at - shift) // window for at in range(side)]

    return np.array([[(y, x) for x in along(width)] for y in along(height)])


def attend(x: Any, attention: Any, heads: int, window: int, members: Any) -> Any:
    """Attention of every token of a map (H, W, C) to those of its own window, one query and one head at a time."""
    height, width, channels = x.shape
    size = channels // heads
    q, k, v = np.split(linear(x, attention.qkv), 3, axis=-1)
    table = array(attention.bias_table)
    out = np.zeros_like(x)
    for y, x_ in np.ndindex(height, width):
        keys = [at for at in np.ndindex(height, width) if (members[at] == members[y, x_]).all()]
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            rows = [(y - a + window - 1) * (2 * window - 1) + (x_ - b + window - 1) for a, b in keys]
            scores = np.array([q[y, x_, part] @ k[a, b, part] / math.sqrt(size) for a, b in keys]) + table[rows, head]
            weights = np.exp(scores - scores.max())
            out[y, x_, part] = sum(w * v[a, b, part] for w, (a, b) in zip(weights / weights.sum(), keys, strict=True))
    return linear(out, attention.project)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
@examples(15)
def test_windows_there_and_back(batch: int, down: int, right: int, window: int, channels: int) -> None:
    x = torch.arange(batch * down * right * window**2 * channels).view(batch, down * window, right * window, channels)
    windows = swin.window_partition(x, window)
    assert windows.shape == (batch, down * right, window**2, channels)
    assert torch.equal(swin.window_reverse(windows, down * window, right * window), x)
    for i, j in np.ndindex(down, right):
        tile = x[:, i * window : (i + 1) * window, j * window : (j + 1) * window].flatten(1, 2)
        assert torch.equal(windows[:, i * right + j], tile)


def test_attention_is_the_published_one() -> None:
    attention = scramble(swin.WindowAttention(6, 2, 3), std=0.5)
    x = torch.randn(2, 4, 9, 6)
    actual = array(attention(x))
    everywhere = np.zeros((3, 3, 2))
    for b, n in np.ndindex(2, 4):
        expected = attend(array(x[b, n]).reshape(3, 3, 6), attention, 2, 3, everywhere).reshape(9, 6)
        np.testing.assert_allclose(actual[b, n], expected, atol=1e-5)


@pytest.mark.parametrize("window", [2, 3, 4])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("down", "right"), [(2, 3), (1, 2), (3, 1), (1, 1)])
def test_block_is_the_published_one(down: int, right: int, shifted: bool, window: int) -> None:
    height, width = down * window, right * window
    block = scramble(swin.SwinBlock(4, 2, window, shifted=shifted, drop_path=0.5, mlp=swin.mlp(4)), std=0.5)
    maps = torch.randn(2, height, width, 4)
    actual = array(block(maps))
    members = window_of(height, width, window, shifted)
    for x, y in zip(array(maps), actual, strict=True):
        x = x + attend(layer_norm(x, block.norm_attention), block.attention, 2, window, members)
        np.testing.assert_allclose(y, x + usual_mlp(layer_norm(x, block.norm_mlp), block.mlp), atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 8), (12, 4)])
def test_tokens_that_the_shift_brings_together_do_not_meet(height: int, width: int) -> None:
    block = scramble(swin.SwinBlock(4, 1, 4, shifted=True, drop_path=0.0, mlp=torch.nn.Identity()), std=0.5)
    members = window_of(height, width, 4, shifted=True)
    for y, x in [(0, 0), (height - 1, width - 1), (height - 1, 0), (1, width - 1), (height // 2, width // 2)]:
        maps = torch.randn(1, height, width, 4, requires_grad=True)
        block(maps)[0, y, x].square().sum().backward()
        assert maps.grad is not None
        reached = array(maps.grad[0]).any(-1)
        assert np.array_equal(reached, (members == members[y, x]).all(-1))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"segmenter\.heads: 5 attention heads do not divide a stage of width 192"):
        SwinUNet(config.SwinUNet(heads=(3, 5, 12, 24)))


def test_drop_path() -> None:
    torch.manual_seed(0)
    drop = swin.DropPath(0.25)
    x = torch.rand(4000, 2, 3) + 1
    y = drop(x)
    dropped = (y == 0).all((1, 2))
    assert 0.22 < dropped.float().mean() < 0.28
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.75)
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(swin.DropPath(0.0)(x), x)


def rates(stages: Any) -> list[list[float]]:
    return [[block.drop_path.rate for block in stage] for stage in stages]


def test_rates_grow_linearly_and_are_mirrored() -> None:
    with torch.device("meta"):
        model = SwinUNet(config.SwinUNet(embed_width=8, heads=(1, 1, 1, 1), depths=(1, 2, 3, 2), drop_path=0.7))
    assert rates(model.encoder) == [pytest.approx(one) for one in ([0.0], [0.1, 0.2], [0.3, 0.4, 0.5], [0.6, 0.7])]
    assert rates(model.decoder) == [pytest.approx(one) for one in ([0.3, 0.4, 0.5], [0.1, 0.2], [0.0])]
    assert [[block.shift for block in stage] for stage in model.encoder] == [[0], [0, 4], [0, 4, 0], [0, 4]]


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = SwinUNet(config.SwinUNet(embed_width=48, window=4))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, swin.WindowAttention):
            assert module.bias_table.std().item() == pytest.approx(0.02, rel=0.35)


def test_patch_merging() -> None:
    merge = scramble(swinunet.PatchMerge(3), std=0.5)
    x = torch.randn(2, 4, 6, 3)
    actual, a = array(merge(x)), array(x)
    for b, i, j in np.ndindex(2, 2, 3):
        four = np.concatenate([a[b, 2 * i + down, 2 * j + right] for down, right in [(0, 0), (1, 0), (0, 1), (1, 1)]])
        np.testing.assert_allclose(actual[b, i, j], linear(layer_norm(four, merge.norm), merge.reduce), atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_patch_expansion(factor: int) -> None:
    expand = scramble(swinunet.PatchExpand(6, 3, factor), std=0.5)
    x = torch.randn(2, 2, 3, 6)
    actual, a, weight = array(expand(x)), array(x), array(expand.expand.weight)
    assert actual.shape == (2, 2 * factor, 3 * factor, 3)
    for b, i, j in np.ndindex(2, 2 * factor, 3 * factor):
        child = (i % factor) * factor + j % factor
        token = weight[3 * child : 3 * child + 3] @ a[b, i // factor, j // factor]
        np.testing.assert_allclose(actual[b, i, j], layer_norm(token, expand.norm), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("place", [None, "input", "bottleneck", "skips", "decoder"])
def test_swinunet_is_wired_as_published(place: str | None) -> None:
    """Level by level, without loops: which map goes where."""
    m = scramble(SwinUNet(config.SwinUNet(embed_width=4, heads=(1, 2, 2, 4), window=2)), std=0.5)
    images, mask = torch.randn(2, 3, 64, 128), torch.rand(2, 1, 4, 8)

    def gate(name: str, x: Tensor) -> Tensor:
        if name != place:
            return x
        if name == "input":
            return x * F.interpolate(mask, x.shape[2:], mode="bilinear")
        return x * F.interpolate(mask, x.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)

    def join(up: Tensor, skip: Tensor, layer: Any) -> Tensor:
        return F.linear(torch.cat([gate("decoder", up), gate("skips", skip)], 3), layer.weight, layer.bias)

    x4 = m.embed_norm(F.conv2d(gate("input", images), m.embed.weight, m.embed.bias, stride=4).permute(0, 2, 3, 1))
    x8 = m.merge[0](m.encoder[0](x4))
    x16 = m.merge[1](m.encoder[1](x8))
    x32 = m.merge[2](m.encoder[2](x16))
    assert x32.shape == (2, 2, 4, 32)
    deep = m.norm(m.encoder[3](gate("bottleneck", x32)))
    y16 = m.decoder[0](join(m.expand[0](deep), x16, m.fuse[0]))
    y8 = m.decoder[1](join(m.expand[1](y16), x8, m.fuse[1]))
    y4 = m.decoder[2](join(m.expand[2](y8), x4, m.fuse[2]))
    y1 = gate("decoder", m.expand_last(m.norm_up(y4)))
    expected = torch.einsum("bhwc,oc->bohw", y1, m.head.weight[:, :, 0, 0])
    (actual,) = m(images, Gate(mask, place))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("size", "outputs", "expected"), [(224, 1, 27_168_132), (256, 1, 27_175_524), (224, 9, 27_168_900), (256, 9, 27_176_292)]
)
def test_published_counts(size: int, outputs: int, expected: int) -> None:
    with torch.device("meta"):
        model = SwinUNet(config.SwinUNet(), image_size=size, num_outputs=outputs)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("size", [224, 256])
def test_published_shapes(size: int) -> None:
    side = size // 4
    shapes = {
        "embed": (96, side, side), "embed_norm": (side, side, 96), "encoder.0": (side, side, 96),
        "merge.0": (side // 2, side // 2, 192), "merge.1": (side // 4, side // 4, 384), "merge.2": (side // 8, side // 8, 768),
        "encoder.3": (side // 8, side // 8, 768), "norm": (side // 8, side // 8, 768),
        "expand.0": (side // 4, side // 4, 384), "fuse.0": (side // 4, side // 4, 384), "decoder.0": (side // 4, side // 4, 384),
        "expand.1": (side // 2, side // 2, 192), "fuse.1": (side // 2, side // 2, 192), "decoder.1": (side // 2, side // 2, 192),
        "expand.2": (side, side, 96), "fuse.2": (side, side, 96), "decoder.2": (side, side, 96), "norm_up": (side, side, 96),
        "expand_last.expand": (side, side, 1536), "expand_last": (size, size, 96), "head": (1, size, size),
    }  # fmt: skip
    found = {}
    with torch.device("meta"), torch.no_grad():
        model = SwinUNet(config.SwinUNet(), image_size=size)
        for name, module in model.named_modules():
            if name in shapes:
                module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: tuple(out.shape[1:])}))
        model(torch.empty(1, 3, size, size), Gate())
    assert found == shapes


def test_weights_do_not_depend_on_the_image_size() -> None:
    small, large = (SwinUNet(config.SwinUNet(embed_width=8, heads=(1, 1, 1, 1), window=4), image_size=size) for size in (128, 256))
    large.load_state_dict(small.state_dict())
    images = torch.randn(1, 3, 256, 128)
    assert torch.equal(small.eval()(images, Gate())[0], large.eval()(images, Gate())[0])
