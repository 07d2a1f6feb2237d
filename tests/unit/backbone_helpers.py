"""Small models of every backbone architecture, with everything on that is random in train mode."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from guidino_tune.config import DINOGuide
from guidino_tune.models.backbone import Backbone

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "drop_path_rate": 0.5}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov3_vit": ("DINOv3ViT", VIT | {"intermediate_size": 48, "num_register_tokens": 4}),
    "dinov3_vit gated": ("DINOv3ViT", VIT | {"intermediate_size": 48, "num_register_tokens": 2, "use_gated_mlp": True}),
    "dinov3_convnext": (
        "DINOv3ConvNext",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "layer_scale_init_value": 1.0, "drop_path_rate": 0.5},
    ),
    "dinov2": ("Dinov2", VIT | {"patch_size": 14, "image_size": 56, "mlp_ratio": 2, "hidden_dropout_prob": 0.3}),
    "dinov2_with_registers": ("Dinov2WithRegisters", VIT | {"patch_size": 14, "image_size": 56, "mlp_ratio": 2}),
    "dinov2_with_registers gated": ("Dinov2WithRegisters", VIT | {"patch_size": 14, "image_size": 70, "use_swiglu_ffn": True}),
}
"""Class names without their ending, and values of the configuration."""

TRANSFORMERS = [name for name in SMALL if "convnext" not in name]
TOKENS = {"dinov3_vit": 1 + 4, "dinov3_vit gated": 1 + 2, "dinov2": 1, "dinov2_with_registers": 1 + 4, "dinov2_with_registers gated": 1 + 4}
"""CLS and registers before the patches."""


def small_model(name: str, **changes: Any) -> Any:
    """The Hugging Face model of ``SMALL[name]`` with weights from a fixed seed, in eval mode."""
    kind, values = SMALL[name]
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(**(values | changes))
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # registers, biases and norms start as constants, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def small_backbone(name: str) -> Any:
    return Backbone(small_model(name))


def save_model(folder: Path, *, other: bool = False, **changes: Any) -> Path:
    """A model folder in place of whatever was there; ``other`` changes one weight a little."""
    model = small_model("dinov3_vit", **changes)
    if other:
        with torch.no_grad():
            model.norm.weight.view(-1)[0] += 1e-3
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    return folder


def guide_on(folder: Path | str) -> dict[str, Any]:
    """A section ``guide`` with the weights of a folder."""
    return {"kind": "dino", "backbone": str(folder), "weights": "pretrained", "tokenbook": {"num_prototypes": 4}}


def of(folder: Path | str) -> DINOGuide:
    return DINOGuide(backbone=str(folder))
