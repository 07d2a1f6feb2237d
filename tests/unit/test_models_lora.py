import re
from typing import Any

import pytest
import torch
from backbone_helpers import SMALL, small_backbone
from torch import nn

from guidino_tune.config import DINOGuide, LoRA
from guidino_tune.models.backbone import load_backbone
from guidino_tune.models.lora import add_lora

TINY = DINOGuide(backbone="tiny", weights="random")
ATTENTION = {f"attention.{x}_proj" for x in "qkvo"}
GATED, PLAIN = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}, {"mlp.fc1", "mlp.fc2"}
POINTWISE = {"pointwise_conv1", "pointwise_conv2"}
BLOCK = {
    "dinov3_vit": r"model\.layer\.[01]\.",
    "dinov2": r"encoder\.layer\.[01]\.",
    "dinov3_convnext": r"model\.stages\.[0-3]\.layers\.[01]\.",
}
EXPECTED: dict[str, tuple[set[str], set[str], int]] = {
    "dinov3_vit": (ATTENTION, {"mlp.up_proj", "mlp.down_proj"}, 2),
    "dinov3_vit gated": (ATTENTION, GATED, 2),
    "dinov3_convnext": (POINTWISE, set(), 1 + 1 + 2 + 1),
    "dinov2": (ATTENTION, PLAIN, 2),
    "dinov2_with_registers": (ATTENTION, PLAIN, 2),
    "dinov2_with_registers gated": (ATTENTION, GATED, 2),
}
"""Adapted layers of a block with ``attention``, those added by ``attention+mlp``, and the number of blocks."""


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def scramble(module: nn.Module) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(module).values():
            parameter.normal_(std=0.2)


@pytest.mark.parametrize(
    ("name", "lora", "count"),
    [
        ("vits16", LoRA(rank=8), 294_912),
        ("vits16", LoRA(rank=4), 12 * 4 * 4 * (384 + 384)),
        ("vits16", LoRA(rank=8, targets="attention+mlp"), 12 * 8 * (4 * (384 + 384) + 2 * (384 + 1536))),
        ("vits16plus", LoRA(rank=8, targets="attention+mlp"), 12 * 8 * (4 * (384 + 384) + 3 * (384 + 1536))),
        ("dinov2_vits14", LoRA(rank=8), 294_912),
        ("dinov2_vits14", LoRA(rank=8, targets="attention+mlp"), 12 * 8 * (4 * (384 + 384) + 2 * (384 + 1536))),
        ("convnext_tiny", LoRA(rank=2), 2 * 2 * 5 * (3 * 96 + 3 * 192 + 9 * 384 + 3 * 768)),
    ],
)
def test_parameter_counts(name: str, lora: LoRA, count: int) -> None:
    with torch.device("meta"):
        backbone = add_lora(load_backbone(DINOGuide(backbone=name, weights="random")), lora)
    parameters = trainable(backbone)
    assert sum(p.numel() for p in parameters.values()) == count
    assert all("lora_" in key for key in parameters)
    assert not backbone.frozen


@pytest.mark.parametrize("targets", ["attention", "attention+mlp"])
@pytest.mark.parametrize("name", SMALL)
def test_adapts_these_layers_of_every_block_and_nothing_else(name: str, targets: Any) -> None:
    backbone = add_lora(small_backbone(name), LoRA(rank=2, targets=targets))
    adapted = {key.removeprefix("vit.base_model.model.").partition(".lora_")[0] for key in trainable(backbone)}
    attention, mlp, num_blocks = EXPECTED[name]
    names = attention | (mlp if targets == "attention+mlp" else set())
    pattern = BLOCK[name.split()[0].removesuffix("_with_registers")] + "({})".format("|".join(map(re.escape, names)))
    assert all(re.fullmatch(pattern, key) for key in adapted)
    assert len(adapted) == num_blocks * len(names)


def test_rank_zero_changes_nothing() -> None:
    backbone = load_backbone(TINY)
    vit = backbone.vit
    assert add_lora(backbone, LoRA()).vit is vit
    assert backbone.frozen


@pytest.mark.parametrize("targets", ["attention", "attention+mlp"])
@pytest.mark.parametrize("name", SMALL)
def test_starts_without_effect_and_merges(name: str, targets: Any) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    backbone: Any = small_backbone(name)
    layers = tuple(range(backbone.shape.num_layers))
    plain = backbone(images, layers)
    add_lora(backbone, LoRA(rank=3, alpha=6.0, targets=targets))
    started = backbone(images, layers)
    assert torch.equal(started.last, plain.last)
    assert all(torch.equal(a, b) for a, b in zip(started.layers, plain.layers, strict=True))
    scramble(backbone)
    adapted = backbone(images, layers)
    assert (adapted.last - plain.last).abs().max() > 0.1
    assert all((a - b).abs().max() > 0.01 for a, b in zip(adapted.layers, plain.layers, strict=True))
    layer = next(m for m in backbone.vit.modules() if hasattr(m, "base_layer"))
    weight = layer.base_layer.weight.clone()
    backbone.vit.merge_adapter()
    # The LoRA formula: W + alpha / rank * B A.
    update = 6.0 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.base_layer.weight, weight + update, atol=1e-6, rtol=0)
    torch.testing.assert_close(backbone(images).last, adapted.last, atol=1e-5, rtol=1e-5)
    backbone.vit.unmerge_adapter()
    torch.testing.assert_close(backbone(images).last, adapted.last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dinov3_vit", "dinov3_convnext", "dinov2"])
def test_gradients_reach_every_adapter(name: str) -> None:
    backbone = add_lora(small_backbone(name), LoRA(rank=2, targets="attention+mlp")).train()
    scramble(backbone)
    backbone(torch.randn(1, 3, 64, 64)).last.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable(backbone).values())
    assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)


@pytest.mark.parametrize("name", ["dinov3_vit", "dinov3_convnext", "dinov2"])
def test_only_lora_dropout_follows_train(name: str) -> None:
    images = torch.randn(1, 3, 64, 64)
    backbone = add_lora(small_backbone(name), LoRA(rank=2, dropout=0.5))
    scramble(backbone)
    backbone.train()
    training = [key for key, m in backbone.named_modules() if m.training]
    attention, _, num_blocks = EXPECTED[name]
    assert len(training) == len(attention) * num_blocks
    assert all("lora_dropout" in key for key in training)
    assert not torch.allclose(backbone(images).last, backbone(images).last, atol=1e-4)
    backbone.eval()
    assert torch.equal(backbone(images).last, backbone(images).last)


def test_without_dropout_train_mode_is_exact() -> None:
    images = torch.randn(1, 3, 64, 64)
    backbone = add_lora(load_backbone(TINY), LoRA(rank=2, dropout=0.0)).eval()
    expected = backbone(images).last
    assert torch.equal(backbone.train()(images).last, expected)
