"""U-KAN: published counts and shapes, and its wiring written out again with functions."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from guidino_tune import config
from guidino_tune.models.gate import Gate
from guidino_tune.models.segmenters.ukan import UKAN, KANBlock


@pytest.mark.parametrize(("widths", "count"), [((128, 160, 256), 6_356_689), ((256, 320, 512), 25_359_265)])
def test_published_counts(widths: tuple[int, int, int], count: int) -> None:
    with torch.device("meta"):
        model = UKAN(config.UKAN(widths=widths))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@torch.no_grad()
@pytest.mark.parametrize("widths", [(128, 160, 256), (256, 320, 512)])
def test_published_shapes(widths: tuple[int, int, int]) -> None:
    """At half of the published 256 pixels, so every side is half of the published one."""
    first, middle, deepest = widths
    quarter, eighth = first // 4, first // 8
    shapes = {
        "encoder.0": (eighth, 256), "encoder.1": (quarter, 128), "encoder.2": (first, 64),
        "embed.0": (middle, 16), "encoder_kan.0": (middle, 16), "embed.1": (deepest, 8), "encoder_kan.1": (deepest, 8),
        "decoder.0": (middle, 8), "decoder_kan.0": (middle, 16), "decoder.1": (first, 16), "decoder_kan.1": (first, 32),
        "decoder.2": (quarter, 32), "decoder.3": (eighth, 64), "decoder.4": (eighth, 128), "head": (1, 256),
    }  # fmt: skip
    model = UKAN(config.UKAN(widths=widths))
    found = {}
    for name, module in model.named_modules():
        if name in shapes:
            module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: tuple(out.shape)}))
    model(torch.randn(1, 3, 128, 128), Gate())
    assert found == {name: (1, channels, side // 2, side // 2) for name, (channels, side) in shapes.items()}


def scramble(model: Any) -> Any:
    """Every weight and statistic random, so that no initial zero or one hides a mistake; eval mode. Signals neither die nor explode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2)
            elif value.ndim in (2, 4):
                value.normal_(std=(3 / value[0].numel()) ** 0.5)
            elif value.is_floating_point():
                value.normal_(mean=float(name.endswith("weight")), std=1 if value.ndim == 3 else 0.3)
    return model.eval()


def batch_norm_relu(x: Tensor, m: Any) -> Tensor:
    y = (x - m.running_mean[:, None, None]) / (m.running_var[:, None, None] + 1e-5).sqrt()
    return (y * m.weight[:, None, None] + m.bias[:, None, None]).clamp(min=0)


def layer_norm(x: Tensor, m: Any) -> Tensor:
    y = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return y * m.weight[:, None, None] + m.bias[:, None, None]


def kan_linear(x: Tensor, m: Any, grid: int, order: int) -> Tensor:
    """On the channels of a map, with the splines by the Cox-de Boor recursion."""
    knots = -1 + 2 / grid * torch.arange(-order, grid + order + 1, dtype=torch.float64)
    v = x.double().unsqueeze(-1)
    b = ((v >= knots[:-1]) & (v < knots[1:])).double()
    for k in range(1, order + 1):
        width = 2 / grid * k
        b = (v - knots[: -k - 1]) / width * b[..., :-1] + (knots[k + 1 :] - v) / width * b[..., 1:]
    splines = torch.einsum("oi,oik,bihwk->bohw", m.scaler, m.coefficients, b.to(x.dtype))
    return torch.einsum("oi,bihw->bohw", m.base_weight, x * torch.sigmoid(x)) + splines


def kan_block(x: Tensor, m: Any, grid: int, order: int) -> Tensor:
    y = layer_norm(x, m.branch[0])
    for i in (1, 2, 3):
        conv, norm = m.branch[i].local[0], m.branch[i].local[1]
        y = kan_linear(y, m.branch[i].linear, grid, order)
        y = batch_norm_relu(F.conv2d(y, conv.weight, conv.bias, padding=1, groups=y.shape[1]), norm)
    return layer_norm(x + y, m.norm)


def convs(x: Tensor, m: Any) -> Tensor:
    for i in (0, 3):
        x = batch_norm_relu(F.conv2d(x, m[i].weight, m[i].bias, padding=1), m[i + 1])
    return x


def upsample(x: Tensor) -> Tensor:
    """Bilinear by 2, corners not aligned, as a product with a matrix per axis; then the published ReLU."""

    def matrix(size: int) -> Tensor:
        at = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
        return torch.tensor(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))), dtype=x.dtype)

    return torch.einsum("ih,bchw,jw->bcij", matrix(x.shape[2]), x, matrix(x.shape[3])).clamp(min=0)


def pool(x: Tensor) -> Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)).clamp(min=0)


@torch.no_grad()
@pytest.mark.parametrize(("grid", "order"), [(5, 3), (3, 2)])
def test_block_is_the_published_one(grid: int, order: int) -> None:
    block = scramble(KANBlock(6, config.UKAN(grid=grid, order=order), 0.0))
    x = torch.randn(2, 6, 5, 7)
    expected = kan_block(x, block, grid, order)
    torch.testing.assert_close(block(x), expected, atol=1e-4, rtol=1e-4)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(block(channels_last), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("place", ["skips", "input", "bottleneck", "decoder"])
def test_network_is_wired_as_published(place: str) -> None:
    """Map by map, without loops: which goes where."""
    m = scramble(UKAN(config.UKAN(widths=(64, 24, 40)))).double()
    images, mask = torch.randn(2, 3, 64, 96).double(), torch.rand(2, 1, 4, 6).double()
    gate = Gate(mask, place)

    def tokens(x: Tensor, embed: Any, block: Any) -> Tensor:
        x = F.conv2d(x, embed[0].weight, embed[0].bias, stride=2, padding=1)
        return kan_block(layer_norm(x, embed[1]), block, 5, 3)

    t1 = pool(convs(gate("input", images), m.encoder[0]))
    t2 = pool(convs(t1, m.encoder[1]))
    t3 = pool(convs(t2, m.encoder[2]))
    t4 = tokens(t3, m.embed[0], m.encoder_kan[0])
    deepest = gate("bottleneck", tokens(t4, m.embed[1], m.encoder_kan[1]))
    d4 = gate("decoder", kan_block(upsample(convs(deepest, m.decoder[0])) + gate("skips", t4), m.decoder_kan[0], 5, 3))
    d3 = gate("decoder", kan_block(upsample(convs(d4, m.decoder[1])) + gate("skips", t3), m.decoder_kan[1], 5, 3))
    d2 = gate("decoder", upsample(convs(d3, m.decoder[2])) + gate("skips", t2))
    d1 = gate("decoder", upsample(convs(d2, m.decoder[3])) + gate("skips", t1))
    d0 = gate("decoder", upsample(convs(d1, m.decoder[4])))
    expected = F.conv2d(d0, m.head.weight, m.head.bias)
    assert (m(images, Gate())[0] - expected).abs().max() > 0.05 * expected.std()  # the place, however deep, is seen in the output
    torch.testing.assert_close(m(images, gate)[0], expected, atol=1e-8, rtol=1e-8)


@torch.no_grad()
def test_drop_path_drops_whole_samples_in_training_only() -> None:
    torch.manual_seed(0)
    block = KANBlock(4, config.UKAN(), 0.5).train()
    x = torch.randn(200, 4, 3, 3)
    dropped = (block(x) == block.norm(x)).flatten(1).all(1)
    assert 70 < dropped.sum() < 130
    kept = (block.eval()(x) == block.norm(x)).flatten(1).all(1)
    assert not kept.any()


def test_stochastic_depth_follows_the_original() -> None:
    model: Any = UKAN(config.UKAN(drop_path=0.3))
    rates = [block.branch[-1].rate for block in (*model.encoder_kan, *model.decoder_kan[:2])]
    assert rates == [0.0, 0.15, 0.0, 0.15]


def test_initial_convolutions_of_tokens() -> None:
    torch.manual_seed(0)
    model: Any = UKAN(config.UKAN())
    depthwise, embed = model.encoder_kan[1].branch[2].local[0], model.embed[1][0]
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert embed.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert not depthwise.bias.any()
    assert not embed.bias.any()
