"""The guide backbone's maps: right tokens, right places, always in eval mode."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from backbone_helpers import SMALL, TOKENS, TRANSFORMERS, small_backbone, small_model

from guidino_tune.config import BACKBONES, DINOGuide
from guidino_tune.errors import UserError
from guidino_tune.models.architectures import SIZES, needs_licence, open_backbones
from guidino_tune.models.backbone import Backbone, load_backbone, segmentation_layers

TINY = DINOGuide(backbone="tiny", weights="random")
DINOV2 = [name for name in SMALL if name.startswith("dinov2")]


def pictures(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_backbone(TINY)


def triangle(size: int) -> np.ndarray:
    """Antialiased bilinear reduction of ``size`` samples to 14/16 of them, as a matrix: triangles as wide as the step of the new grid."""
    new, step = size * 14 // 16, 16 / 14
    centres = (np.arange(new) + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / step)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_patches_are_the_tokens_after_the_special_ones(name: str) -> None:
    backbone = small_backbone(name)
    seen: list[Any] = []
    backbone.vit.register_forward_hook(lambda _m, _args, kwargs, out: seen.append((kwargs["pixel_values"], out)), with_kwargs=True)
    last = backbone(pictures(2, 3, 64, 96)).last
    tokens = seen[0][1].last_hidden_state
    assert last.shape == (2, 32, 4, 6)
    assert tokens.shape[1] == TOKENS[name] + 24
    for row in range(4):
        for column in range(6):
            assert torch.equal(last[:, :, row, column], tokens[:, TOKENS[name] + row * 6 + column])


@pytest.mark.parametrize("name", DINOV2)
def test_dinov2_sees_the_images_in_patches_of_14(name: str) -> None:
    backbone = small_backbone(name)
    seen: list[torch.Tensor] = []
    backbone.vit.register_forward_pre_hook(lambda _m, _args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    images = pictures(1, 3, 64, 96)
    backbone(images)
    expected = triangle(64) @ images.double().numpy() @ triangle(96).T
    assert seen[0].shape == (1, 3, 56, 84)
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=1e-4)  # torch places the triangles in float32


def own_stages(backbone: Any, images: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    """The maps that a ConvNeXt's stages give, and its normalised tokens, caught on their way."""
    maps: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    hooks = [stage.register_forward_hook(lambda _m, _i, out: maps.append(out.detach().numpy())) for stage in backbone.vit.model.stages]
    hooks.append(backbone.vit.layer_norm.register_forward_hook(lambda _m, _i, out: tokens.append(out.detach().numpy())))
    backbone(images)
    for hook in hooks:
        hook.remove()
    return maps, tokens[0]


def twice(x: np.ndarray, axis: int) -> np.ndarray:
    """Bilinear doubling along an axis, corners not aligned: cell 2i is 3/4 of i and 1/4 of i - 1, cell 2i + 1 of i and i + 1."""
    x = np.moveaxis(x, axis, 0)
    out = np.empty((2 * len(x), *x.shape[1:]), x.dtype)
    for i in range(len(x)):
        out[2 * i] = 0.75 * x[i] + 0.25 * x[max(i - 1, 0)]
        out[2 * i + 1] = 0.75 * x[i] + 0.25 * x[min(i + 1, len(x) - 1)]
    return np.moveaxis(out, 0, axis)


def test_convnext_stages_come_to_the_token_grid() -> None:
    backbone = small_backbone("dinov3_convnext")
    images = pictures(2, 3, 64, 96)
    (first, second, third, fourth), tokens = own_stages(backbone, images)
    assert [x.shape[1:] for x in (first, second, third, fourth)] == [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3)]
    raw = backbone(images, layers=(0, 1, 2, 3), final_norm=False)
    expected = [
        first.reshape(2, 8, 4, 4, 6, 4).mean((3, 5)),
        second.reshape(2, 16, 4, 2, 6, 2).mean((3, 5)),
        third,
        twice(twice(fourth, 2), 3),
    ]
    for got, wanted in zip(raw.layers, expected, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), wanted, atol=1e-5)
    # Token 0 is the mean of all; the six cells of the last stage follow in raster order.
    assert tokens.shape == (2, 7, 32)
    cells = np.stack([tokens[:, 1 + row * 3 + column] for row in range(2) for column in range(3)], -1).reshape(2, 32, 2, 3)
    np.testing.assert_allclose(raw.last.detach().numpy(), twice(twice(cells, 2), 3), atol=1e-5)
    # The final norm is as wide as the last stage, so it concerns no other.
    normed = backbone(images, layers=(2, 3, 0))
    assert torch.equal(normed.layers[0], raw.layers[2])
    assert torch.equal(normed.layers[1], raw.last)
    assert torch.equal(normed.layers[2], raw.layers[0])
    assert (backbone.shape.width, backbone.shape.layer_widths) == (32, (8, 16, 24, 32))


@pytest.mark.parametrize("size", [(48, 80), (16, 32), (64, 48)])
def test_convnext_continues_images_that_are_no_multiple_of_32(size: tuple[int, int]) -> None:
    backbone = small_backbone("dinov3_convnext")
    images = pictures(1, 3, *size)
    more = [(0, 0), (0, 0), *((0, -side % 32) for side in size)]
    whole = backbone(torch.from_numpy(np.pad(images.numpy(), more, mode="edge")), layers=(0, 3))
    got = backbone(images, layers=(0, 3))
    rows, columns = size[0] // 16, size[1] // 16
    for x, y in zip((got.last, *got.layers), (whole.last, *whole.layers), strict=True):
        assert x.shape[-2:] == (rows, columns)
        assert torch.equal(x, y[..., :rows, :columns])


@pytest.mark.parametrize("name", SMALL)
def test_a_changed_patch_moves_its_own_cell_most(name: str) -> None:
    backbone = small_backbone(name)
    rows, columns = 4, 6
    plain = torch.zeros(rows * columns, 3, rows * 16, columns * 16)
    changed = plain.clone()
    for cell in range(rows * columns):
        row, column = divmod(cell, columns)
        changed[cell, :, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = pictures(3, 16, 16) * 3
    layers = tuple(range(backbone.shape.num_layers))
    before, after = backbone(plain[:1], layers), backbone(changed, layers)
    for index, (x, y) in enumerate(zip((before.last, *before.layers), (after.last, *after.layers), strict=True)):
        strongest = (y - x).norm(dim=1).flatten(1).argmax(1).tolist()
        found = [divmod(place, columns) for place in strongest]
        wanted = [divmod(cell, columns) for cell in range(rows * columns)]
        if name == "dinov3_convnext" and index in (0, 4):  # the last stage tells places 32 pixels apart
            found, wanted = ([(r // 2, c // 2) for r, c in places] for places in (found, wanted))
        assert found == wanted, f"map {index}"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_layers_are_those_of_the_transformer(name: str) -> None:
    backbone = small_backbone(name)
    blocks = backbone.vit.model.layer if "dinov3" in name else backbone.vit.encoder.layer
    norm = backbone.vit.norm if "dinov3" in name else backbone.vit.layernorm
    caught: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: caught.append(out)) for block in blocks]
    images = pictures(1, 3, 64, 64)
    raw = backbone(images, layers=(0, 1, 1), final_norm=False)
    for hook in hooks:
        hook.remove()
    for got, layer in zip(raw.layers, (0, 1, 1), strict=True):
        assert torch.equal(got.flatten(2), caught[layer][:, -16:].transpose(1, 2))
    normed = backbone(images, layers=(0, 1))
    tokens = caught[0][:, -16:]
    expected = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(normed.layers[0].flatten(2).transpose(1, 2), expected * norm.weight + norm.bias)
    assert torch.equal(normed.layers[1], normed.last)


@pytest.mark.parametrize("name", SMALL)
def test_frozen_and_exact_in_train_mode(name: str) -> None:
    backbone = small_backbone(name)
    images = pictures(4, 3, 64, 64)
    before = backbone(images, layers=(0,))
    backbone.train()
    assert backbone.frozen
    assert not any(m.training for m in backbone.modules())
    after = backbone(images, layers=(0,))
    assert torch.equal(after.last, before.last)
    assert torch.equal(after.layers[0], before.layers[0])
    # The reason: the network itself is random in train mode.
    backbone.vit.train()
    assert not torch.equal(backbone(images).last, before.last)


def test_wrong_number_of_tokens_is_refused() -> None:
    model = small_model("dinov3_vit")
    model.config.num_register_tokens = 3
    with pytest.raises(ValueError, match="17 patch tokens do not fill a grid of 4 x 4"):
        Backbone(model)(pictures(1, 3, 64, 64))


def test_random_weights_are_the_same_everywhere_and_leave_the_global_state(tiny: Any) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    again = load_backbone(TINY)
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(tiny.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def vit_count(width: int, layers: int, mlp: int, *, patch: int = 16, bias: int = 4, gated: bool = False, positions: int = 0) -> int:
    """Parameters of a vision transformer with four registers: ``bias`` vectors in an attention, ``positions`` encodings."""
    attention = 4 * width**2 + bias * width
    feed_forward = (3 * width + 2) * mlp + width if gated else (2 * width + 1) * mlp + width
    block = attention + feed_forward + 2 * 2 * width + 2 * width  # and two norms and two layer scales
    tokens = (1 + 1 + 4 + positions) * width  # CLS, mask and registers
    return tokens + (3 * patch**2 + 1) * width + layers * block + 2 * width


def convnext_count(widths: tuple[int, ...], depths: tuple[int, ...]) -> int:
    blocks = sum(n * ((49 + 1) * w + 2 * w + (8 * w * w + 5 * w) + w) for w, n in zip(widths, depths, strict=True))
    down = (48 + 1) * widths[0] + 2 * widths[0] + sum(2 * a + (4 * a + 1) * b for a, b in pairwise(widths))
    return blocks + down + 2 * widths[-1]


# DINOv3 has no key bias; of Meta's own totals, those in Dino U-Net count it (layers x width), and for 7B a second final norm instead.
S, B, L = 21_601_152 - 12 * 384, 98_851_652 - 13_182_020 - 12 * 768, 323_124_164 - 19_969_988 - 24 * 1024
SEVEN = 6_950_375_876 - 234_332_612 - 2 * 4096
PUBLISHED = {
    "vits16": (S, 21.6, vit_count(384, 12, 1536, bias=3), 384, 12),
    "vits16plus": (28_692_864, 28.7, vit_count(384, 12, 1536, bias=3, gated=True), 384, 12),
    "vitb16": (B, 85.7, vit_count(768, 12, 3072, bias=3), 768, 12),
    "vitl16": (L, 303.1, vit_count(1024, 24, 4096, bias=3), 1024, 24),
    "vith16plus": (840_592_640, 840.6, vit_count(1280, 32, 5120, bias=3, gated=True), 1280, 32),
    "vit7b16": (SEVEN, 6716.0, vit_count(4096, 40, 8192, bias=1, gated=True), 4096, 40),
    "convnext_tiny": (27_820_128, 27.8, convnext_count((96, 192, 384, 768), (3, 3, 9, 3)), 768, 4),
    "convnext_small": (49_454_688, 49.5, convnext_count((96, 192, 384, 768), (3, 3, 27, 3)), 768, 4),
    "convnext_base": (87_566_464, 87.6, convnext_count((128, 256, 512, 1024), (3, 3, 27, 3)), 1024, 4),
    "convnext_large": (196_230_336, 196.2, convnext_count((192, 384, 768, 1536), (3, 3, 27, 3)), 1536, 4),
    "dinov2_vits14": (22_058_112, 22.1, vit_count(384, 12, 1536, patch=14, positions=1370), 384, 12),
    "dinov2_vitb14": (86_583_552, 86.6, vit_count(768, 12, 3072, patch=14, positions=1370), 768, 12),
    "dinov2_vitl14": (304_372_736, 304.4, vit_count(1024, 24, 4096, patch=14, positions=1370), 1024, 24),
    "dinov2_vitg14": (1_136_486_912, 1136.5, vit_count(1536, 40, 4096, patch=14, positions=1370, gated=True), 1536, 40),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    count, millions, formula, width, depth = PUBLISHED[name]
    with torch.device("meta"):
        backbone = load_backbone(DINOGuide(backbone=name, weights="random"))
    assert sum(p.numel() for p in backbone.parameters()) == count == formula
    assert round(count / 1e6, 1) == millions
    assert (backbone.shape.width, backbone.shape.num_layers) == (width, depth)
    if not name.startswith("convnext"):
        heads = {"vitl16": 16, "vith16plus": 20, "vit7b16": 32, "dinov2_vitl14": 16, "dinov2_vitg14": 24}.get(name, width // 64)
        assert backbone.vit.config.num_attention_heads == heads
        assert backbone.num_special_tokens == 5


def test_every_named_backbone_has_a_shape_and_the_open_ones_are_known() -> None:
    assert set(SIZES) == set(BACKBONES) == {"tiny", *PUBLISHED}
    assert open_backbones() == ["dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14"]
    assert needs_licence("convnext_tiny")


def test_segmentation_layers() -> None:
    assert segmentation_layers(12) == (2, 5, 8, 11)
    assert segmentation_layers(24) == (4, 11, 17, 23)
    assert segmentation_layers(4) == (0, 1, 2, 3)
    assert segmentation_layers(2) == (0, 0, 1, 1)
    assert segmentation_layers(1) == (0, 0, 0, 0)
    assert segmentation_layers(32) == (7, 15, 23, 31)
    assert segmentation_layers(40) == (9, 19, 29, 39)


@pytest.mark.parametrize("size", [(60, 64), (64, 8), (0, 16)])
def test_image_size_must_fit_the_patches(tiny: Any, size: Any) -> None:
    with pytest.raises(UserError, match="16"):
        tiny(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("name", SMALL)
def test_weights_held_in_bf16_give_what_autocast_gives(name: str) -> None:
    plain, held = small_backbone(name), small_backbone(name).hold_bf16()
    layers = tuple(range(plain.shape.num_layers))
    images = pictures(3, 64, 64).expand(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first, second = plain(images, layers), held(images, layers)
    for x, y in zip((first.last, *first.layers), (second.last, *second.layers), strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)
    assert any(weight.dtype == torch.bfloat16 for weight in held.parameters())
