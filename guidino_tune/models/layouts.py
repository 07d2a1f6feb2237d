"""The networks of published checkpoints, recognised by names and shapes, as ``transformers`` has them.

Names of weights: Meta's repositories ``facebookresearch/dinov3`` and ``facebookresearch/dinov2``; timm's ``eva.py`` (DINOv3),
``vision_transformer.py`` (DINOv2) and ``convnext.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guidino_tune.config import PATCH
from guidino_tune.errors import UserError
from guidino_tune.models.architectures import NUM_STAGES, SIZES

ROPE_THETA = 100.0
"""Base of the periods of DINOv3's position encoding."""

_HEADS: dict[str, dict[int, int]] = {
    kind: {
        s.values["hidden_size"]: s.values["num_attention_heads"] for n, s in SIZES.items() if s.model_type.startswith(kind) and n != "tiny"
    }
    for kind in ("dinov3_vit", "dinov2")
}
"""Attention heads of the published networks, by their width: the shapes of weights do not tell them."""

SAY_HEADS = "say how many attention heads it was trained with: prepare backbone FILE --output DIR --heads N"

_BLOCK = r"blocks\.(?:\d+\.)?(\d+)\."  # in training code blocks come in chunks, in which they keep their number
_WB = r"(weight|bias)"

_VIT = (
    (_BLOCK + rf"(norm[12])\.{_WB}", r"{layer}\1.\2.\3"),
    (_BLOCK + rf"attn\.proj\.{_WB}", r"{layer}\1.attention.o_proj.\2"),
    (_BLOCK + r"(?:ls([12])\.gamma|gamma_([12]))", r"{layer}\1.layer_scale\2\3.lambda1"),
    (rf"patch_embed\.proj\.{_WB}", r"{patch}.\1"),
    (rf"norm\.{_WB}", r"{norm}.\1"),
    (r"cls_token", "embeddings.cls_token"),
    (r"mask_token", "embeddings.mask_token"),
    (r"(?:storage_tokens|register_tokens|reg_token)", "embeddings.register_tokens"),
)
"""Weights of both kinds of vision transformer that only change their name."""

_CONVNEXT = (
    (rf"downsample_layers\.(\d)\.([01])\.{_WB}", r"model.stages.\1.downsample_layers.\2.\3"),
    (rf"stem\.([01])\.{_WB}", r"model.stages.0.downsample_layers.\1.\2"),
    (rf"stages\.(\d)\.downsample\.([01])\.{_WB}", r"model.stages.\1.downsample_layers.\2.\3"),
    (r"stages\.(\d)\.(?:blocks\.)?(\d+)\.gamma", r"model.stages.\1.layers.\2.gamma"),
    (rf"stages\.(\d)\.(?:blocks\.)?(\d+)\.(?:dwconv|conv_dw)\.{_WB}", r"model.stages.\1.layers.\2.depthwise_conv.\3"),
    (rf"stages\.(\d)\.(?:blocks\.)?(\d+)\.norm\.{_WB}", r"model.stages.\1.layers.\2.layer_norm.\3"),
    (rf"stages\.(\d)\.(?:blocks\.)?(\d+)\.(?:pwconv|mlp\.fc)([12])\.{_WB}", r"model.stages.\1.layers.\2.pointwise_conv\3.\4"),
    (rf"(?:head\.)?norm\.{_WB}", r"layer_norm.\1"),
)

UNUSED = (r"local_cls_norm\..+",)
"""Weights that no feature has part in: the norm of the class token of local crops in DINOv3's pretraining."""


@dataclass(slots=True)
class Network:
    """A network in the layout of ``transformers``.

    Attributes:
        model_type: A key of ``ARCHITECTURES``.
        config: Values of its configuration.
        weights: By the names in the module.
        about: What it is, in words.
        notes: What its file does not tell and was taken from elsewhere.
    """

    model_type: str
    config: dict[str, Any]
    weights: dict[str, Tensor] = field(default_factory=dict)
    about: str = ""
    notes: tuple[str, ...] = ()


class Unknown(Exception):
    """A checkpoint that is none of ours; says what was found and what was expected.

    Args:
        what: Is wrong.
        todo: What to do about it, where giving another file is not the only way.
    """

    def __init__(self, what: str, todo: str = "give a DINOv3 (ViT or ConvNeXt) or a DINOv2 in Meta's or timm's layout") -> None:
        super().__init__(what)
        self.todo = todo


def recognise(weights: Mapping[str, Tensor], heads: int | None = None) -> Network:
    """Which network the weights are of, and its weights under the names of ``transformers``.

    Args:
        weights: As ``read_published`` gives them.
        heads: Attention heads of a vision transformer, as a person says; ``None``: as its file tells, or as in the published network of
            its width.

    Raises:
        UserError: They are of no network that is known; names what was found and what was expected.
    """
    try:
        if "patch_embed.proj.weight" not in weights:
            if heads is not None:
                raise Unknown("is a ConvNeXt, which has no attention heads", "leave out --heads")
            return _convnext(dict(weights))
        patch = _shape(weights, "patch_embed.proj.weight", 4)[-1]
        if patch == PATCH and "pos_embed" not in weights:
            return _dinov3(dict(weights), heads)
        if patch == 14 and "pos_embed" in weights:
            return _dinov2(dict(weights), heads)
        has = "learned positions (pos_embed)" if "pos_embed" in weights else "no learned positions (pos_embed)"
        raise Unknown(f"has patches of {patch} pixels and {has}; a DINOv3 has 16 and none, a DINOv2 14 and learned ones")
    except Unknown as error:
        raise UserError(str(error), todo=error.todo) from None


# ------------------------------------------------------------------------------------------------------------ vision transformers


def _dinov3(weights: dict[str, Tensor], heads: int | None) -> Network:
    width = _shape(weights, "patch_embed.proj.weight", 4)[0]
    noted, theta = _positions(weights, width)
    heads, notes = _num_heads("dinov3_vit", width, noted, heads)
    if width // heads % 4:
        raise Unknown(f"{heads} heads of width {width // heads} cannot have DINOv3's positions, which take whole fours of it", SAY_HEADS)
    blocks = _blocks(weights)
    found = _renamed(weights, _VIT, layer="model.layer.", patch="embeddings.patch_embeddings", norm="norm")
    gated, hidden = False, 0
    biases: list[tuple[Tensor | None, ...]] = []
    for i, block in enumerate(blocks):
        layer = f"model.layer.{i}."
        biases.append(_attention(weights, block, layer, found))
        gated, hidden = _mlp(weights, block, layer, found, plain=("up_proj", "down_proj"))
    _check_all_taken(weights, "a DINOv3 vision transformer")
    present = [any(bias[part] is not None for bias in biases) for part in range(3)]
    key_bias = any(bias[1] is not None and bool(bias[1].count_nonzero()) for bias in biases)
    for i, parts in enumerate(biases):
        for name, bias, wanted in zip("qkv", parts, (present[0], key_bias, present[2]), strict=True):
            if wanted and bias is not None:
                found[f"model.layer.{i}.attention.{name}_proj.bias"] = bias
    if "embeddings.mask_token" in found:
        found["embeddings.mask_token"] = found["embeddings.mask_token"].reshape(1, 1, width)
    else:  # timm leaves it out
        found["embeddings.mask_token"] = torch.zeros(1, 1, width, dtype=found["embeddings.cls_token"].dtype)
    registers = _shape(found, "embeddings.register_tokens", 3)[1] if "embeddings.register_tokens" in found else 0
    found.setdefault("embeddings.register_tokens", torch.zeros(1, 0, width))
    config = {
        "hidden_size": width, "num_hidden_layers": len(blocks), "num_attention_heads": heads, "intermediate_size": hidden,
        "use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu", "num_register_tokens": registers, "patch_size": PATCH,
        "query_bias": present[0], "key_bias": key_bias, "value_bias": present[2], "rope_theta": theta, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    about = f"DINOv3 vision transformer, {len(blocks)} layers of width {width}, {heads} heads"
    return Network("dinov3_vit", config, found, about, notes)


def _positions(weights: dict[str, Tensor], width: int) -> tuple[int | None, float]:
    """Number of heads and base of the periods, from the buffer of periods; without it ``None`` and the base of all published ones."""
    name = next((n for n in ("rope_embed.periods", "rope.periods") if n in weights), None)
    if name is None:
        return None, ROPE_THETA
    periods = weights.pop(name).double().flatten()
    count = len(periods)
    if count == 0 or width % (4 * count):
        raise Unknown(f"{name} are {count}, of heads {4 * count} wide; its width {width} is no multiple of that")
    # Of the last one, whose rounding weighs least.
    theta = float(periods[-1] ** (count / (count - 1))) if count > 1 else ROPE_THETA
    if not torch.allclose(periods, theta ** (torch.arange(count).double() / count), rtol=0.02):
        raise Unknown(f"{name} are not the powers of one base that DINOv3 has: {[round(float(p), 3) for p in periods[:4]]} ...")
    if math.isclose(theta, ROPE_THETA, rel_tol=0.05):  # the buffer may have been stored in bfloat16
        theta = ROPE_THETA
    return width // (4 * count), theta


def _num_heads(kind: str, width: int, noted: int | None, given: int | None) -> tuple[int, tuple[str, ...]]:
    """How many attention heads a vision transformer has: never a guess, for any number that divides the width gives features.

    Args:
        kind: A key of ``_HEADS``.
        width: Of the network.
        noted: What its file says.
        given: What a person says.

    Returns:
        The number, and a note where it was taken from the published network of this width.
    """
    if given is not None:
        if noted is not None and noted != given:
            raise Unknown(f"has {noted} attention heads by its buffer of periods, not {given}", "leave out --heads")
        if given < 1 or width % given:
            raise Unknown(f"its width {width} cannot be divided into {given} attention heads", SAY_HEADS)
        return given, ()
    if noted is not None:
        return noted, ()
    known = _HEADS[kind].get(width)
    if known is None:
        raise Unknown(
            f"does not tell how many attention heads it has, and no published network is {width} wide (known: {sorted(_HEADS[kind])})",
            SAY_HEADS,
        )
    return known, (
        f"the file does not tell how many attention heads it has: {known}, as the published network of this width; else --heads N",
    )


def _dinov2(weights: dict[str, Tensor], heads: int | None) -> Network:
    width = _shape(weights, "patch_embed.proj.weight", 4)[0]
    heads, notes = _num_heads("dinov2", width, None, heads)
    positions = weights.pop("pos_embed")
    if math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        # timm's networks with registers: the class token has its position added already.
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    side = math.isqrt(positions.shape[1] - 1)
    if side**2 != positions.shape[1] - 1:
        raise Unknown(f"pos_embed has {positions.shape[1]} positions, which is no square with or without one more")
    blocks = _blocks(weights)
    found = _renamed(weights, _VIT, layer="encoder.layer.", patch="embeddings.patch_embeddings.projection", norm="layernorm")
    found["embeddings.position_embeddings"] = positions
    gated, hidden, bias = False, 0, False
    for i, block in enumerate(blocks):
        layer = f"encoder.layer.{i}."
        parts = _attention(weights, block, layer, found)
        bias = parts[0] is not None
        for name, part in zip("qkv", parts, strict=True):
            if bias:
                found[f"{layer}attention.{name}_proj.bias"] = part if part is not None else torch.zeros_like(parts[0])  # type: ignore[arg-type]
        gated, hidden = _mlp(weights, block, layer, found, plain=("fc1", "fc2"))
    _check_all_taken(weights, "a DINOv2")
    widths = {(int(width * ratio * 2 / 3) + 7) // 8 * 8 if gated else width * ratio: ratio for ratio in range(1, 9)}
    if hidden not in widths:
        raise Unknown(f"its MLP is {hidden} wide, which is no whole multiple of its width {width}")
    mask = found.get("embeddings.mask_token", torch.zeros(1, width, dtype=positions.dtype))
    found["embeddings.mask_token"] = mask.reshape(1, width)
    config: dict[str, Any] = {
        "hidden_size": width, "num_hidden_layers": len(blocks), "num_attention_heads": heads, "mlp_ratio": widths[hidden],
        "use_swiglu_ffn": gated, "qkv_bias": bias, "patch_size": 14, "image_size": 14 * side, "layer_norm_eps": 1e-6,
    }  # fmt: skip
    registers = found.get("embeddings.register_tokens")
    about = f"DINOv2 vision transformer, {len(blocks)} layers of width {width}, {heads} heads"
    if registers is None:
        return Network("dinov2", config, found, about, notes)
    return Network("dinov2_with_registers", config | {"num_register_tokens": registers.shape[1]}, found, f"{about}, with registers", notes)


def _attention(weights: dict[str, Tensor], block: str, layer: str, found: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
    """Splits the fused query, key and value of a block; returns their biases."""
    for name, part in zip("qkv", _take(weights, f"{block}attn.qkv.weight").chunk(3), strict=True):
        found[f"{layer}attention.{name}_proj.weight"] = part.clone()
    fused, mask = weights.pop(f"{block}attn.qkv.bias", None), weights.pop(f"{block}attn.qkv.bias_mask", None)
    if fused is None:
        return tuple(weights.pop(f"{block}attn.{name}_bias", None) for name in "qkv")
    if mask is not None:
        if not mask.isfinite().all():
            raise Unknown(f"{block}attn.qkv.bias_mask was never set: it holds NaN")
        # What is masked has no effect, whatever it holds: the keys' bias in DINOv3.
        fused = torch.where(mask == 0, torch.zeros_like(fused), fused * mask)
    return tuple(part.clone() for part in fused.chunk(3))


def _mlp(weights: dict[str, Tensor], block: str, layer: str, found: dict[str, Tensor], *, plain: tuple[str, str]) -> tuple[bool, int]:
    """Names the MLP of a block. Gated ones come as three weights, or with gate and value in one.

    Returns:
        Whether it is gated, and its width.
    """
    mlp = f"{block}mlp."
    apart = next((names for names in (("w1", "w2", "w3"), ("fc1_g", "fc1_x", "fc2")) if f"{mlp}{names[0]}.weight" in weights), None)
    first, last = ("w12", "w3") if f"{mlp}w12.weight" in weights else ("fc1", "fc2")
    if apart:
        parts = {kind: [_take(weights, f"{mlp}{name}.{kind}") for name in apart] for kind in ("weight", "bias")}
    else:
        parts = {kind: [_take(weights, f"{mlp}{name}.{kind}") for name in (first, last)] for kind in ("weight", "bias")}
        if parts["weight"][0].shape[0] == 2 * parts["weight"][1].shape[-1]:
            parts = {kind: [*(part.clone() for part in both.chunk(2)), out] for kind, (both, out) in parts.items()}
    gated = len(parts["weight"]) == 3
    names = ("gate_proj", "up_proj", "down_proj") if gated else plain
    for kind, values in parts.items():
        found |= {f"{layer}mlp.{name}.{kind}": value for name, value in zip(names, values, strict=True)}
    return gated, parts["weight"][-1].shape[-1]


def _blocks(weights: Mapping[str, Tensor]) -> list[str]:
    """What the names of each block's weights begin with; in chunks they have the chunk's number too."""
    found = {int(match[1]): match[0] for name in weights if (match := re.match(_BLOCK, name))}
    if sorted(found) != list(range(len(found))) or not found:
        raise Unknown(f"its blocks are numbered {sorted(found)[:8]}, not from 0 on without a gap")
    return [found[i] for i in range(len(found))]


# ----------------------------------------------------------------------------------------------------------------------- ConvNeXt


def _convnext(weights: dict[str, Tensor]) -> Network:
    for kind in ("weight", "bias"):
        twin, norm = weights.pop(f"norms.3.{kind}", None), weights.get(f"norm.{kind}")
        if twin is not None and (norm is None or not torch.equal(twin, norm)):  # Meta's module has the last norm under two names
            raise Unknown(f"norms.3.{kind} is not norm.{kind}, as it is in a DINOv3 ConvNeXt")
    found = _renamed(weights, _CONVNEXT)
    _check_all_taken(weights, "a DINOv3 ConvNeXt")
    # As 1x1 convolutions in some files, as linear layers in others.
    found = {name: value.flatten(1) if "pointwise" in name and value.ndim == 4 else value for name, value in found.items()}
    depths = [len({n.split(".")[4] for n in found if n.startswith(f"model.stages.{stage}.layers.")}) for stage in range(NUM_STAGES)]
    widths = [_shape(found, f"model.stages.{s}.downsample_layers.{int(s > 0)}.weight", 4)[0] for s in range(NUM_STAGES)]
    config = {"hidden_sizes": widths, "depths": depths, "layer_norm_eps": 1e-6}
    return Network("dinov3_convnext", config, found, f"DINOv3 ConvNeXt, widths {widths}, depths {depths}")


# ------------------------------------------------------------------------------------------------------------------------- shared


def _renamed(weights: dict[str, Tensor], rules: tuple[tuple[str, str], ...], **names: str) -> dict[str, Tensor]:
    """Takes out what only changes its name."""
    found: dict[str, Tensor] = {}
    for name in list(weights):
        for pattern, target in rules:
            match = re.fullmatch(pattern, name)
            if match:
                new = match.expand(re.sub(r"\{(\w+)\}", lambda m: names[m[1]], target))
                if new in found:
                    raise Unknown(f"holds {new} twice, once as {name}")
                found[new] = weights.pop(name)
                break
    return found


def _check_all_taken(weights: Mapping[str, Tensor], what: str) -> None:
    names = sorted(name for name in weights if not any(re.fullmatch(pattern, name) for pattern in UNUSED))
    if names:
        raise Unknown(f"holds {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}, which {what} has not")


def _take(weights: dict[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise Unknown(f"lacks {name}")
    return weights.pop(name)


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights or weights[name].ndim != dimensions:
        found = tuple(weights[name].shape) if name in weights else "nothing"
        raise Unknown(f"{name} must have {dimensions} dimensions; found {found}")
    return tuple(weights[name].shape)
