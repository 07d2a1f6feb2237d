"""The guide backbone: DINOv3 as Hugging Face publishes it, giving its patch tokens as maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from guidino_tune.config import PATCH, DINOGuide
from guidino_tune.errors import UserError
from guidino_tune.models import weights
from guidino_tune.models.seeding import seeded

if TYPE_CHECKING:
    from transformers import DINOv3ViTModel

RANDOM_SEED = 20250814
"""Seed of ``weights: random``: the same on every machine and in every trial, so that cached tokens stay valid."""


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """What a segmenter needs of the backbone besides its last map.

    Attributes:
        layers: Indices of transformer layers, 0 for the first; shallowest first.
        final_norm: Apply the backbone's last LayerNorm to these layers too.
    """

    layers: tuple[int, ...] = ()
    final_norm: bool = True


@dataclass(frozen=True, slots=True)
class Features:
    """Patch tokens of a batch as maps on the token grid h = H / 16, w = W / 16.

    Attributes:
        last: (B, C, h, w), the last layer after the final LayerNorm.
        layers: One (B, C, h, w) per requested layer, in the order of the request.
    """

    last: Tensor
    layers: tuple[Tensor, ...] = ()


class Backbone(nn.Module):
    """A DINOv3 vision transformer that gives patch tokens as maps. Its weights are frozen.

    It never leaves eval mode, whatever ``train()`` is called with: in train mode Hugging Face's DINOv3 scales the coordinates of its
    position encoding at random, which makes even a frozen guide noisy. Only the dropout of LoRA adapters follows ``train()``.

    Args:
        vit: The transformer; ``add_lora`` may wrap it later.
    """

    patch = PATCH

    def __init__(self, vit: DINOv3ViTModel) -> None:
        super().__init__()
        self.width: int = vit.config.hidden_size
        self.num_layers: int = vit.config.num_hidden_layers
        self.vit: nn.Module = vit.requires_grad_(False)
        self.eval()

    @property
    def frozen(self) -> bool:
        """True while no weight is trainable, that is without LoRA."""
        return not any(p.requires_grad for p in self.parameters())

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode; with ``mode`` the LoRA dropout becomes active."""
        super().train(False)
        for name, module in self.named_modules():
            if isinstance(module, nn.Dropout) and "lora_dropout" in name:
                module.train(mode)
        return self

    def forward(self, images: Tensor, layers: Sequence[int] = (), final_norm: bool = True) -> Features:
        """Patch tokens as maps.

        Args:
            images: (B, 3, H, W), ImageNet-normalised; H and W multiples of 16.
            layers: Transformer layers wanted besides the last map, 0 for the first.
            final_norm: Apply the last LayerNorm to those layers.

        Raises:
            UserError: H or W is no multiple of 16.
        """
        check_image_size(images)
        output = self.vit(pixel_values=images, output_hidden_states=bool(layers))
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        maps = []
        for layer in layers:
            # Entry 0 holds the embeddings, so layer i is entry i + 1; none of them is normalised.
            tokens = output.hidden_states[layer + 1]
            maps.append(_to_map(self.vit.norm(tokens) if final_norm else tokens, grid))  # type: ignore[operator]
        return Features(_to_map(output.last_hidden_state, grid), tuple(maps))


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    # Hugging Face orders CLS, registers, patches: the patches are the LAST h * w tokens, in raster order.
    batch, _, width = tokens.shape
    return tokens[:, -grid[0] * grid[1] :].transpose(1, 2).reshape(batch, width, *grid)


def check_image_size(images: Tensor) -> None:
    """Checks that a batch (B, C, H, W) fits the token grid.

    Raises:
        UserError: H or W is no multiple of 16.
    """
    height, width = images.shape[-2:]
    if height % PATCH or width % PATCH or 0 in (height, width):
        raise UserError(
            f"images of {height} x {width} pixels do not fit patches of {PATCH} x {PATCH}",
            where="model input",
            todo=f"resize or pad the images so that both sides are multiples of {PATCH}",
        )


def segmentation_layers(num_layers: int) -> tuple[int, int, int, int]:
    """The four layers that DINO segmentation heads read, shallowest first: [2, 5, 8, 11] of 12 and [4, 11, 17, 23] of 24 (SegDINO).

    Other depths are divided evenly, ending with the last layer; fewer than four layers are repeated.
    """
    if num_layers == 24:
        return (4, 11, 17, 23)
    first, second, third, last = (max(0, -(-num_layers * quarter // 4) - 1) for quarter in (1, 2, 3, 4))
    return first, second, third, last


def load_backbone(guide: DINOGuide) -> Backbone:
    """Builds the guide backbone, frozen, without adapters, on the CPU in float32.

    With ``weights: random`` the weights follow from a fixed seed; with ``pretrained`` they come from the model folder, or for a named
    backbone from the local Hugging Face cache, else from the hub.

    Raises:
        UserError: The weights cannot be had (no network, licence not accepted, missing or damaged file) or are no DINOv3 of patch size 16.
    """
    from transformers import DINOv3ViTModel  # importing transformers takes seconds; the plain networks do not need it

    if guide.weights == "random":
        with seeded(RANDOM_SEED):
            return Backbone(DINOv3ViTModel(weights.random_config(guide.backbone)))
    return Backbone(weights.load_pretrained(guide.backbone))


def check_backbone(guide: DINOGuide) -> None:
    """Checks before a search that its trials will find their backbone.

    Pretrained weights are downloaded if need be and really loaded once, which takes seconds: only loading finds a damaged or foreign file.
    For random weights only the configuration is built.

    Raises:
        UserError: As ``load_backbone``.
    """
    if guide.weights == "random":
        weights.random_config(guide.backbone)
    else:
        load_backbone(guide)
