from typing import Any

import pytest
import torch
from torch import nn

from guidino_tune.config import DINOGuide, LoRA
from guidino_tune.models.backbone import load_backbone
from guidino_tune.models.lora import add_lora

TINY = DINOGuide(backbone="tiny", weights="random")


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("lora", "count"),
    [
        (LoRA(rank=8), 12 * 4 * 8 * (384 + 384)),
        (LoRA(rank=4), 12 * 4 * 4 * (384 + 384)),
        (LoRA(rank=8, targets="attention+mlp"), 12 * 8 * (4 * (384 + 384) + 2 * (384 + 1536))),
    ],
)
def test_parameter_count_on_vits16(lora: LoRA, count: int) -> None:
    with torch.device("meta"):
        backbone = add_lora(load_backbone(DINOGuide(backbone="vits16", weights="random")), lora)
    parameters = trainable(backbone)
    assert sum(p.numel() for p in parameters.values()) == count
    assert all("lora_" in name for name in parameters)
    assert not backbone.frozen


def test_rank_zero_changes_nothing() -> None:
    backbone = load_backbone(TINY)
    vit = backbone.vit
    assert add_lora(backbone, LoRA()).vit is vit
    assert backbone.frozen


@pytest.mark.parametrize("targets", ["attention", "attention+mlp"])
def test_starts_without_effect_and_merges(targets: Any) -> None:
    images = torch.randn(1, 3, 64, 64)
    backbone: Any = load_backbone(TINY)
    plain = backbone(images).last
    add_lora(backbone, LoRA(rank=3, alpha=6.0, targets=targets))
    assert torch.equal(backbone(images).last, plain)
    with torch.no_grad():
        for parameter in trainable(backbone).values():
            parameter.normal_(std=0.2)
    adapted = backbone(images).last
    assert (adapted - plain).abs().max() > 0.1
    layer = backbone.vit.get_base_model().model.layer[0].attention.q_proj
    weight = layer.base_layer.weight.clone()
    backbone.vit.merge_adapter()
    # The LoRA formula: W + alpha / rank * B A.
    update = 6.0 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.base_layer.weight, weight + update, atol=1e-6, rtol=0)
    torch.testing.assert_close(backbone(images).last, adapted, atol=1e-5, rtol=1e-5)
    backbone.vit.unmerge_adapter()
    torch.testing.assert_close(backbone(images).last, adapted, atol=1e-5, rtol=1e-5)


def test_only_lora_dropout_follows_train() -> None:
    images = torch.randn(1, 3, 64, 64)
    backbone = add_lora(load_backbone(TINY), LoRA(rank=2, dropout=0.5))
    with torch.no_grad():
        for parameter in trainable(backbone).values():
            parameter.normal_(std=0.2)
    backbone.train()
    training = [name for name, m in backbone.named_modules() if m.training]
    assert len(training) == 2 * 4
    assert all("lora_dropout" in name for name in training)
    assert not torch.allclose(backbone(images).last, backbone(images).last, atol=1e-4)
    backbone.eval()
    assert torch.equal(backbone(images).last, backbone(images).last)


def test_without_dropout_train_mode_is_exact() -> None:
    images = torch.randn(1, 3, 64, 64)
    backbone = add_lora(load_backbone(TINY), LoRA(rank=2, dropout=0.0)).eval()
    expected = backbone(images).last
    assert torch.equal(backbone.train()(images).last, expected)
