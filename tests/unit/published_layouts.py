"""Networks of transformers in the layouts in which Meta and timm publish them, and a forward pass on Meta's weights: from scratch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

WIDTH, HEADS = 128, 2
VIT = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov3": ("DINOv3ViT", VIT | {"intermediate_size": 256, "num_register_tokens": 4}),
    "dinov3 gated": ("DINOv3ViT", VIT | {"intermediate_size": 192, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"}),
    "dinov3 unbiased": ("DINOv3ViT", VIT | {"intermediate_size": 256, "num_register_tokens": 4, "query_bias": False, "value_bias": False}),
    "dinov2": ("Dinov2", VIT | {"patch_size": 14, "image_size": 56, "mlp_ratio": 4}),
    "dinov2 registers": ("Dinov2WithRegisters", VIT | {"patch_size": 14, "image_size": 56, "mlp_ratio": 4}),
    "dinov2 gated": ("Dinov2WithRegisters", VIT | {"patch_size": 14, "image_size": 56, "mlp_ratio": 4, "use_swiglu_ffn": True}),
    "convnext": ("DINOv3ConvNext", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "layer_scale_init_value": 1.0}),
}


def network(name: str) -> Any:
    """With random weights in everything, in eval mode."""
    kind, values = NETWORKS[name]
    torch.manual_seed(11)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def as_meta(name: str, model: Any) -> dict[str, Tensor]:
    """Meta's layout."""
    return _convnext(model, "meta") if name == "convnext" else _vit(name, model)


def as_timm(name: str, model: Any) -> dict[str, Tensor]:
    """timm's layout: ``eva.py``, ``vision_transformer.py`` or ``convnext.py``."""
    if name == "convnext":
        return _convnext(model, "timm")
    weights = {}
    for key, value in _vit(name, model).items():
        if key in ("mask_token", "rope_embed.periods") or key.endswith("bias_mask"):
            continue
        if name.startswith("dinov3"):
            key = key.replace("storage_tokens", "reg_token").replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
            key = key.replace("mlp.w1", "mlp.fc1_g").replace("mlp.w2", "mlp.fc1_x").replace("mlp.w3", "mlp.fc2")
            if key.endswith("qkv.bias"):
                weights[key.replace("qkv.bias", "q_bias")] = value[:WIDTH]
                weights[key.replace("qkv.bias", "v_bias")] = value[2 * WIDTH :]
                continue
        else:
            key = key.replace("register_tokens", "reg_token").replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2")
        weights[key] = value
    if "pos_embed" in weights and "reg_token" in weights:
        weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        weights["pos_embed"] = weights["pos_embed"][:, 1:]
    return weights


def _vit(name: str, model: Any) -> dict[str, Tensor]:
    source, three = model.state_dict(), name.startswith("dinov3")
    inner, patch = ("model.layer", "embeddings.patch_embeddings") if three else ("encoder.layer", "embeddings.patch_embeddings.projection")
    made = {
        "cls_token": source["embeddings.cls_token"],
        "mask_token": source["embeddings.mask_token"].reshape(1, WIDTH),
        "patch_embed.proj.weight": source[f"{patch}.weight"],
        "patch_embed.proj.bias": source[f"{patch}.bias"],
    }
    last = "norm" if three else "layernorm"
    made |= {f"norm.{kind}": source[f"{last}.{kind}"] for kind in ("weight", "bias")}
    if "embeddings.register_tokens" in source:
        made["storage_tokens" if three else "register_tokens"] = source["embeddings.register_tokens"]
    if three:
        made["rope_embed.periods"] = 100.0 ** (torch.arange(WIDTH // HEADS // 4) * 4 / (WIDTH // HEADS))
    else:
        made["pos_embed"] = source["embeddings.position_embeddings"]
    for i in range(model.config.num_hidden_layers):
        old, new = f"{inner}.{i}.", f"blocks.{i}."
        made[f"{new}attn.qkv.weight"] = torch.cat([source[f"{old}attention.{x}_proj.weight"] for x in "qkv"])
        if f"{old}attention.q_proj.bias" in source:
            # In DINOv3 the bias of the keys is masked, and may hold anything.
            key = torch.full((WIDTH,), 7.0) if three else source[f"{old}attention.k_proj.bias"]
            made[f"{new}attn.qkv.bias"] = torch.cat([source[f"{old}attention.q_proj.bias"], key, source[f"{old}attention.v_proj.bias"]])
            if three:
                made[f"{new}attn.qkv.bias_mask"] = torch.cat([torch.ones(WIDTH), torch.zeros(WIDTH), torch.ones(WIDTH)])
        for kind in ("weight", "bias"):
            made[f"{new}attn.proj.{kind}"] = source[f"{old}attention.o_proj.{kind}"]
            made |= {f"{new}norm{n}.{kind}": source[f"{old}norm{n}.{kind}"] for n in (1, 2)}
            mlp = {x: source.get(f"{old}mlp.{x}.{kind}") for x in ("up_proj", "down_proj", "gate_proj", "fc1", "fc2")}
            if mlp["gate_proj"] is None:
                made[f"{new}mlp.fc1.{kind}"] = mlp["up_proj"] if three else mlp["fc1"]
                made[f"{new}mlp.fc2.{kind}"] = mlp["down_proj"] if three else mlp["fc2"]
            elif three:
                made |= {f"{new}mlp.{w}.{kind}": mlp[x] for w, x in (("w1", "gate_proj"), ("w2", "up_proj"), ("w3", "down_proj"))}
            else:
                made[f"{new}mlp.w12.{kind}"] = torch.cat([mlp["gate_proj"], mlp["up_proj"]])
                made[f"{new}mlp.w3.{kind}"] = mlp["down_proj"]
        made |= {f"{new}ls{n}.gamma": source[f"{old}layer_scale{n}.lambda1"] for n in (1, 2)}
    return {key: value.clone() for key, value in made.items()}


def _convnext(model: Any, layout: str) -> dict[str, Tensor]:
    made = {}
    inside = {"depthwise_conv": "dwconv", "layer_norm": "norm", "pointwise_conv1": "pwconv1", "pointwise_conv2": "pwconv2"}
    if layout == "timm":
        inside = {"depthwise_conv": "conv_dw", "layer_norm": "norm", "pointwise_conv1": "mlp.fc1", "pointwise_conv2": "mlp.fc2"}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[0] == "layer_norm":
            new = f"norm.{parts[1]}" if layout == "meta" else f"head.norm.{parts[1]}"
        elif parts[3] == "downsample_layers":
            stage = f"downsample_layers.{parts[2]}" if layout == "meta" else "stem" if parts[2] == "0" else f"stages.{parts[2]}.downsample"
            new = f"{stage}.{parts[4]}.{parts[5]}"
        else:
            middle = "." if layout == "meta" else ".blocks."
            rest = ".".join([inside.get(parts[5], parts[5]), *parts[6:]])
            new = f"stages.{parts[2]}{middle}{parts[4]}.{rest}"
        made[new] = value.clone()
    if layout == "meta":  # the module has its last norm under two names
        made |= {f"norms.3.{kind}": made[f"norm.{kind}"].clone() for kind in ("weight", "bias")}
    return made


def dinov3_features(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Patch tokens (B, N, C) of Meta's DINOv3 vision transformer after the last norm, by its published equations."""

    def linear(x: Tensor, name: str, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"] if bias is None else bias)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    batch = len(images)
    patches = F.conv2d(images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=16)
    rows, columns = patches.shape[-2:]
    x = torch.cat([
        weights["cls_token"].expand(batch, -1, -1), weights["storage_tokens"].expand(batch, -1, -1), patches.flatten(2).transpose(1, 2)
    ], dim=1)  # fmt: skip
    special = x.shape[1] - rows * columns
    head = WIDTH // HEADS
    # Centres of the patches in [-1, 1], down and across, divided by each period; the same angles for both halves of a head.
    places = [(2 * (r + 0.5) / rows - 1, 2 * (c + 0.5) / columns - 1) for r in range(rows) for c in range(columns)]
    angles = torch.tensor([[2 * math.pi * p / float(t) for p in place for t in weights["rope_embed.periods"]] * 2 for place in places])
    cosine, sine = angles.cos(), angles.sin()

    def turned(y: Tensor) -> Tensor:
        """(B, heads, N, head): the patches' tokens turned by their angles."""
        own = y[:, :, special:]
        other = torch.cat([-own[..., head // 2 :], own[..., : head // 2]], dim=-1)
        return torch.cat([y[:, :, :special], own * cosine + other * sine], dim=2)

    for i in range(sum(name.endswith("norm1.weight") for name in weights)):
        block = f"blocks.{i}."
        bias = weights[f"{block}attn.qkv.bias"] * weights[f"{block}attn.qkv.bias_mask"]
        fused = linear(norm(x, f"{block}norm1"), f"{block}attn.qkv", bias).reshape(batch, -1, 3, HEADS, head).permute(2, 0, 3, 1, 4)
        query, key, value = turned(fused[0]), turned(fused[1]), fused[2]
        seen = (query @ key.transpose(-1, -2) / math.sqrt(head)).softmax(-1) @ value
        x = x + weights[f"{block}ls1.gamma"] * linear(seen.transpose(1, 2).reshape(batch, -1, WIDTH), f"{block}attn.proj")
        y = norm(x, f"{block}norm2")
        if f"{block}mlp.w1.weight" in weights:
            gate = linear(y, f"{block}mlp.w1")
            y = linear(gate / (1 + torch.exp(-gate)) * linear(y, f"{block}mlp.w2"), f"{block}mlp.w3")
        else:
            y = linear(y, f"{block}mlp.fc1")
            y = linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), f"{block}mlp.fc2")
        x = x + weights[f"{block}ls2.gamma"] * y
    return norm(x, "norm")[:, special:]
