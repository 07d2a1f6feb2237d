"""H2Former against its published formulas, written out again with functions and its own weights."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_formulas import norm, scramble
from torch import Tensor

from guidino_tune import config
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters import h2former
from guidino_tune.models.segmenters.h2former import H2Former


def array(x: Tensor) -> Any:
    return x.detach().double().numpy()


def channel_attention(x: Any, layer: Any) -> Any:
    """ECA on (B, C, ...) in numpy: each channel's mean and its two neighbours', zeros outside."""
    left, middle, right = array(layer.conv.weight).ravel()
    out = np.empty_like(x)
    for b, sample in enumerate(x):
        mean = [0.0, *(channel.mean() for channel in sample), 0.0]
        for c, channel in enumerate(sample):
            logit = left * mean[c] + middle * mean[c + 1] + right * mean[c + 2]
            out[b, c] = channel / (1 + math.exp(-logit)) + channel
    return out


def layer_norm(x: Tensor, layer: Any) -> Tensor:
    """Over the channels of (B, C, H, W)."""
    x = x - x.mean(1, keepdim=True)
    shape = (1, -1, 1, 1)
    return x / torch.sqrt((x**2).mean(1, keepdim=True) + 1e-5) * layer.weight.view(shape) + layer.bias.view(shape)


def test_channel_attention() -> None:
    layer = scramble(h2former.ChannelAttention(), std=0.2)
    x = torch.randn(2, 5, 3, 4) + 1
    np.testing.assert_allclose(array(layer(x)), channel_attention(array(x), layer), atol=1e-6)


def mlp_in_numpy(x: Any, mlp: Any, *, scrambled: bool) -> Any:
    """(B, H, W, C) to the same."""
    batch, height, width, channels = x.shape
    hidden = x @ array(mlp.inner.weight).T + array(mlp.inner.bias)
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / 2**0.5))
    y = (hidden @ array(mlp.outer.weight).T + array(mlp.outer.bias)).reshape(batch, height * width, channels)
    if scrambled:  # the flat numbers of a sample, read as C rows of N, leave as N columns
        y = channel_attention(np.stack([sample.ravel().reshape(channels, -1) for sample in y]), mlp.attention)
        return np.stack([sample.T for sample in y]).reshape(x.shape)
    for b in range(batch):
        y[b] = channel_attention(y[b].T[None], mlp.attention)[0].T
    return y.reshape(x.shape)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 4), (2, 1)])
@pytest.mark.parametrize("scrambled", [False, True])
def test_channel_mlp(scrambled: bool, height: int, width: int) -> None:
    mlp = scramble(h2former.ChannelMLP(4, scrambled=scrambled), std=0.2)
    x = torch.randn(2, height, width, 4) * 3
    np.testing.assert_allclose(array(mlp(x)), mlp_in_numpy(array(x), mlp, scrambled=scrambled), atol=1e-5)
    assert not np.allclose(array(mlp(x)), mlp_in_numpy(array(x), mlp, scrambled=not scrambled), atol=1e-2)


@torch.no_grad()
def test_only_the_original_mistake_mixes_places_and_channels() -> None:
    models = {flag: scramble(h2former.ChannelMLP(8, scrambled=flag), std=0.2) for flag in (False, True)}
    assert {k: v.shape for k, v in models[False].state_dict().items()} == {k: v.shape for k, v in models[True].state_dict().items()}
    x = torch.randn(1, 4, 4, 8)
    for flag, mlp in models.items():
        assert torch.allclose(mlp(x.flip(1)), mlp(x).flip(1), atol=1e-6) != flag  # a flipped map should give a flipped map


def test_the_flag_reaches_every_block() -> None:
    with torch.device("meta"):
        for flag in (False, True):
            blocks = [block for stage in H2Former(config.H2Former(scrambled_mlp=flag)).attention for block in stage]
            assert [block.mlp.scrambled for block in blocks] == [flag] * 8
    assert [block.window for block in blocks] == [16] * 8
    assert [block.shift for block in blocks] == [0, 8] * 4
    assert [block.drop_path.rate for block in blocks] == pytest.approx([i / 70 for i in range(8)])
    assert [block.attention.bias_table.shape[1] for block in blocks] == [2, 2, 4, 4, 8, 8, 16, 16]


@torch.no_grad()
@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_residual_block(inputs: int, outputs: int, stride: int) -> None:
    block = scramble(h2former.ResBlock(inputs, outputs, stride), std=0.2)
    x = torch.randn(2, inputs, 6, 4)
    y = norm(F.conv2d(x, block.body[0].weight, padding=1, stride=stride), block.body[1]).clamp(min=0)
    y = norm(F.conv2d(y, block.body[3].weight, padding=1), block.body[4])
    residual = x if stride == 1 else norm(F.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1])
    torch.testing.assert_close(block(x), (y + residual).clamp(min=0), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("kernels", "widths"), [((2, 4, 8, 16), (8, 4, 2, 2)), ((2, 4), (8, 8))])
def test_multi_scale_maps(kernels: tuple[int, ...], widths: tuple[int, ...]) -> None:
    layer = scramble(h2former.MultiScale(3, 16, kernels), std=0.2)
    x = torch.randn(2, 3, 32, 16)
    maps = []
    for kernel, width, conv in zip(kernels, widths, layer.convs, strict=True):
        assert conv.weight.shape == (width, 3, kernel, kernel)
        around = (kernel - 2) // 2  # kernels are centred on the same pairs of pixels
        patches = F.pad(x, (around,) * 4).unfold(2, kernel, 2).unfold(3, kernel, 2)
        maps.append(torch.einsum("bchwij,ocij->bohw", patches, conv.weight) + conv.bias.view(1, -1, 1, 1))
    np.testing.assert_allclose(array(layer(x)), channel_attention(array(torch.cat(maps, 1)), layer.attention), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("place", [None, "input", "bottleneck", "skips", "decoder"])
def test_h2former_is_wired_as_published(place: str | None) -> None:
    """Level by level, without loops: which map goes where. The original's order at the end: upsampling, then the head."""
    m = scramble(H2Former(config.H2Former(base_width=8, heads=(1, 2, 2, 4), blocks=(1, 2, 1, 1), window=4), num_outputs=2), std=0.2)
    images, mask = torch.randn(1, 3, 64, 128), torch.rand(1, 1, 4, 8)

    def gate(name: str, x: Tensor) -> Tensor:
        return x * F.interpolate(mask, x.shape[2:], mode="bilinear") if name == place else x

    def attend(stage: int, x: Tensor) -> Tensor:
        y: Tensor = m.attention[stage](x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)
        return y

    def decode(stage: int, deep: Tensor, skip: Tensor) -> Tensor:
        up = F.conv_transpose2d(deep, m.up[stage].weight, m.up[stage].bias, stride=2)
        conv, batch_norm, _ = m.fuse[stage]
        y = F.conv2d(torch.cat([up, gate("skips", skip)], 1), conv.weight, conv.bias, padding=1)
        return gate("decoder", norm(y, batch_norm).clamp(min=0))

    seen = gate("input", images)
    stem = norm(F.conv2d(seen, m.stem[0].weight, padding=3), m.stem[1]).clamp(min=0)
    stem = F.pad(stem, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))  # all values are positive
    x2 = attend(0, m.residual[0](stem) + layer_norm(m.embed(seen), m.embed_norm))
    x4 = attend(1, m.residual[1](x2) + m.merges[0](layer_norm(x2, m.merge_norms[0])))
    x8 = attend(2, m.residual[2](x4) + m.merges[1](layer_norm(x4, m.merge_norms[1])))
    x16 = attend(3, m.residual[3](x8) + m.merges[2](layer_norm(x8, m.merge_norms[2])))
    assert x16.shape == (1, 64, 4, 8)
    y = decode(2, decode(1, decode(0, gate("bottleneck", x16), x8), x4), x2)
    # Bilinear with aligned corners, as a product with a matrix per axis.
    rows, columns = (
        torch.tensor(np.maximum(0, 1 - np.abs(np.linspace(0, side - 1, 2 * side)[:, None] - np.arange(side))), dtype=torch.float32)
        for side in y.shape[2:]
    )
    expected = torch.einsum("oc,bcij->boij", m.head.weight[:, :, 0, 0], torch.einsum("ih,bchw,jw->bcij", rows, y, columns))
    (actual,) = m(images, Gate(mask, place))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


ORIGINAL = {256: 33_698_720, 512: 33_879_200}
"""Parameters of the original code: images of four channels, two outputs."""


@pytest.mark.parametrize("size", ORIGINAL)
@pytest.mark.parametrize("outputs", [1, 2])
def test_published_counts(size: int, outputs: int) -> None:
    stem = 7 * 7 * 64  # weights that the fourth channel has in the stem,
    embedding = 2**2 * 32 + 4**2 * 16 + 8**2 * 8 + 16**2 * 8  # and in the multi-scale embedding
    head = 64 * (2 - outputs)
    with torch.device("meta"):
        model = H2Former(config.H2Former(), image_size=size, num_outputs=outputs)
        scrambled = H2Former(config.H2Former(scrambled_mlp=True), image_size=size, num_outputs=outputs)
    assert sum(p.numel() for p in model.parameters()) == ORIGINAL[size] - stem - embedding - head
    assert {k: v.shape for k, v in scrambled.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_published_shapes() -> None:
    shapes = {
        "embed": (64, 128), "stem.0": (64, 256), "stem.3": (64, 128), "residual.0": (64, 128),
        "merges.0": (128, 64), "residual.1": (128, 64), "merges.1": (256, 32), "residual.2": (256, 32),
        "merges.2": (512, 16), "residual.3": (512, 16), "fuse.0": (256, 32), "fuse.1": (128, 64), "fuse.2": (64, 128),
        "head": (1, 128),
    }  # fmt: skip
    found = {}
    with torch.device("meta"), torch.no_grad():
        model = H2Former(config.H2Former())
        for name, module in model.named_modules():
            if name in shapes:
                module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: tuple(out.shape)}))
        (logits,) = model(torch.empty(1, 3, 256, 256), Gate())
    assert found == {name: (1, channels, side, side) for name, (channels, side) in shapes.items()}
    assert logits.shape == (1, 1, 256, 256)
