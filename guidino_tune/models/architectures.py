"""The architectures a guide backbone may have, and the shapes of the published ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from guidino_tune.config import BACKBONES, PATCH

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Linear layers of an attention: query, key, value and output."""

NUM_REGISTERS = 4
"""Register tokens of every named vision transformer."""

NUM_STAGES = 4
"""Stages of a ConvNeXt, at 1/4, 1/8, 1/16 and 1/32 of the image."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What has to be known of a kind of model in order to read, run and adapt it.

    Attributes:
        config: Name of its configuration class in ``transformers``.
        model: Name of its class in ``transformers``.
        patch: Side of a patch in pixels; ``None`` for a convolutional network.
        final_norm: Name of its last LayerNorm.
        blocks: Regular expression of what the names of modules inside its blocks begin with.
        attention: Linear layers of an attention; a block without one gives its two pointwise convolutions instead.
        mlp: Further linear layers of a block; the gate exists only in a gated MLP.
        licensed: The published weights can be downloaded only by who has accepted their licence.
        decides: Fields of its configuration that change the features and cannot be seen in the weights' shapes.
    """

    config: str
    model: str
    patch: int | None
    final_norm: str
    blocks: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    licensed: bool
    decides: tuple[str, ...]

    def configure(self, values: dict[str, Any]) -> PreTrainedConfig:
        """The configuration with these values, as ``config.json`` holds them."""
        import transformers  # takes seconds; the plain networks do not need it

        config: PreTrainedConfig = getattr(transformers, self.config).from_dict(values)
        return config

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """The class in ``transformers``."""
        import transformers

        found: type[PreTrainedModel] = getattr(transformers, self.model)
        return found


_DINOV2 = Architecture(
    config="Dinov2Config",
    model="Dinov2Model",
    patch=14,
    final_norm="layernorm",
    blocks=r"encoder\.layer\.\d+\.",
    attention=PROJECTIONS,
    mlp=("fc1", "fc2", "up_proj", "down_proj", "gate_proj"),
    licensed=False,
    decides=("num_attention_heads", "hidden_act", "layer_norm_eps", "use_swiglu_ffn"),
)
ARCHITECTURES: dict[str, Architecture] = {
    "dinov3_vit": Architecture(
        config="DINOv3ViTConfig",
        model="DINOv3ViTModel",
        patch=PATCH,
        final_norm="norm",
        blocks=r"model\.layer\.\d+\.",
        attention=PROJECTIONS,
        mlp=("up_proj", "down_proj", "gate_proj"),
        licensed=True,
        decides=("num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta", "use_gated_mlp"),
    ),
    "dinov3_convnext": Architecture(
        config="DINOv3ConvNextConfig",
        model="DINOv3ConvNextModel",
        patch=None,
        final_norm="layer_norm",
        blocks=r"model\.stages\.\d+\.layers\.\d+\.",
        attention=("pointwise_conv1", "pointwise_conv2"),
        mlp=(),
        licensed=True,
        decides=("hidden_act", "layer_norm_eps"),
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(_DINOV2, config="Dinov2WithRegistersConfig", model="Dinov2WithRegistersModel"),
}
"""By ``model_type``, as ``config.json`` names it."""


@dataclass(frozen=True, slots=True)
class Size:
    """The shape of a named backbone.

    Attributes:
        model_type: A key of ``ARCHITECTURES``.
        values: What its configuration holds besides the defaults.
    """

    model_type: str
    values: dict[str, Any]


def _dinov3_vit(width: int, layers: int, heads: int, mlp_width: int, *, gated_mlp: bool = False, qkv_bias: bool = True) -> Size:
    values: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp_width,
    }
    values |= {"use_gated_mlp": gated_mlp, "hidden_act": "silu" if gated_mlp else "gelu", "query_bias": qkv_bias, "value_bias": qkv_bias}
    return Size("dinov3_vit", values | {"num_register_tokens": NUM_REGISTERS, "patch_size": PATCH})


def _dinov3_convnext(widths: tuple[int, ...], depths: tuple[int, ...]) -> Size:
    # Before training, ConvNeXt scales its blocks by 1e-6. A network whose blocks do nothing stands for no trained one: 1, as in the ViTs.
    return Size("dinov3_convnext", {"hidden_sizes": list(widths), "depths": list(depths), "layer_scale_init_value": 1.0})


def _dinov2(width: int, layers: int, heads: int, *, gated_mlp: bool = False) -> Size:
    values = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "use_swiglu_ffn": gated_mlp}
    # Trained on images of 518 pixels: 37 x 37 position encodings, which the model interpolates to the grid of its images.
    return Size("dinov2_with_registers", values | {"num_register_tokens": NUM_REGISTERS, "patch_size": 14, "image_size": 518})


SIZES: dict[str, Size] = {
    "tiny": _dinov3_vit(64, 2, 2, 128),
    "vits16": _dinov3_vit(384, 12, 6, 1536),
    "vits16plus": _dinov3_vit(384, 12, 6, 1536, gated_mlp=True),
    "vitb16": _dinov3_vit(768, 12, 12, 3072),
    "vitl16": _dinov3_vit(1024, 24, 16, 4096),
    "vith16plus": _dinov3_vit(1280, 32, 20, 5120, gated_mlp=True),
    "vit7b16": _dinov3_vit(4096, 40, 32, 8192, gated_mlp=True, qkv_bias=False),
    "convnext_tiny": _dinov3_convnext((96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext_small": _dinov3_convnext((96, 192, 384, 768), (3, 3, 27, 3)),
    "convnext_base": _dinov3_convnext((128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnext_large": _dinov3_convnext((192, 384, 768, 1536), (3, 3, 27, 3)),
    "dinov2_vits14": _dinov2(384, 12, 6),
    "dinov2_vitb14": _dinov2(768, 12, 12),
    "dinov2_vitl14": _dinov2(1024, 24, 16),
    "dinov2_vitg14": _dinov2(1536, 40, 24, gated_mlp=True),
}
"""Shapes of the named backbones.

Published ones: DINOv3 (Simeoni et al., 2025, model cards) and DINOv2 with registers (Darcet et al., 2024); ``tiny`` is ours.
"""


def needs_licence(backbone: str) -> bool:
    """True for a named backbone whose weights are downloadable only after accepting their licence."""
    return ARCHITECTURES[SIZES[backbone].model_type].licensed


def open_backbones() -> list[str]:
    """Named backbones whose weights anybody may download."""
    return [name for name, repository in BACKBONES.items() if repository is not None and not needs_licence(name)]
