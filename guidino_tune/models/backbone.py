"""The guide backbone: DINOv3 or DINOv2 as Hugging Face publishes them, giving their features as maps on one token grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import known_backbones as known
from guidino_tune.config import PATCH, DINOGuide
from guidino_tune.errors import UserError
from guidino_tune.models import fingerprints, weights
from guidino_tune.models.architectures import ARCHITECTURES
from guidino_tune.models.seeding import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

RANDOM_SEED = 20250814
"""Seed of ``weights: random``: the same on every machine and in every trial, so that cached tokens stay valid."""

COARSEST = 32
"""Pixels per cell of a ConvNeXt's last stage."""


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """What a segmenter needs of the backbone besides its last map.

    Attributes:
        layers: Indices of transformer layers or of ConvNeXt stages, 0 for the first; shallowest first.
        final_norm: Apply the backbone's last LayerNorm to these layers too.
    """

    layers: tuple[int, ...] = ()
    final_norm: bool = True


@dataclass(frozen=True, slots=True)
class BackboneShape:
    """What a backbone gives, for heads that are built on it.

    Attributes:
        width: Channels of the last map.
        layer_widths: Channels of each layer's map, shallowest first.
    """

    width: int
    layer_widths: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """How many layers can be asked for."""
        return len(self.layer_widths)


@dataclass(frozen=True, slots=True)
class Features:
    """Features of a batch as maps on the token grid h = H / 16, w = W / 16, whatever the architecture.

    Attributes:
        last: (B, C, h, w), the last layer after the final LayerNorm.
        layers: One (B, C_i, h, w) per requested layer, in the order of the request.
    """

    last: Tensor
    layers: tuple[Tensor, ...] = ()


class Backbone(nn.Module):
    """A DINO backbone that gives its features as maps on the grid of 16-pixel cells. Its weights are frozen until ``unfreeze``.

    - A vision transformer of patch 16 (DINOv3) gives its patch tokens as they are.
    - With patches of 14 pixels (DINOv2) the images are first resized to 14/16 of their size (bilinear, with antialiasing), so that every
      16-pixel cell of the given images is one patch.
    - A ConvNeXt (DINOv3) has four stages, which stand for its layers, each with a width of its own, at 1/4 to 1/32 of the image. Finer
      maps are averaged over the cells, the coarser one is resized bilinearly; so the last map tells places 32 pixels apart, not 16.
      Images that are no multiple of 32 are continued below and to the right by their edge, and the maps cut off again: the network
      itself would leave the rest of them out.

    It never leaves eval mode, whatever ``train()`` is called with: in train mode Hugging Face's DINOv3 scales the coordinates of its
    position encoding at random, which makes even a frozen guide noisy. Only the dropout of LoRA adapters follows ``train()``. So a backbone
    that is trained in full sees in training what it sees in validation, unlike in its authors' pretraining.

    Args:
        vit: The network, a ConvNeXt included, of a type in ``ARCHITECTURES``; ``add_lora`` may wrap it later.

    Attributes:
        fingerprint: What it is, see ``fingerprints``; of the frozen weights alone, with adapters too. Set by ``load_backbone``.
    """

    patch = PATCH

    def __init__(self, vit: PreTrainedModel) -> None:
        super().__init__()
        config = vit.config
        self.architecture = ARCHITECTURES[config.model_type]
        self.shape = shape_of(config)
        self.num_special_tokens = 1 + getattr(config, "num_register_tokens", 0)  # the class token (of a ConvNeXt: the pooled one) first
        self.vit: nn.Module = vit.requires_grad_(False)
        self.fingerprint = ""
        self.eval()

    @property
    def frozen(self) -> bool:
        """True while no weight is trainable, that is without LoRA and before ``unfreeze``."""
        return not any(p.requires_grad for p in self.parameters())

    def unfreeze(self, *, final_norm: bool = True) -> None:
        """Makes all weights trainable but those that no output depends on, for which distributed training would wait in vain.

        Args:
            final_norm: Something that is read is normalised by the last LayerNorm.
        """
        for name, parameter in self.vit.named_parameters():
            unused = name.endswith("mask_token") or (not final_norm and name.startswith(f"{self.architecture.final_norm}."))
            parameter.requires_grad_(not unused)

    def hold_bf16(self) -> Backbone:
        """Keeps the weights of its linear layers, which are nearly all, in bf16 only: for a frozen backbone that runs under bf16 autocast.

        Autocast would make the same numbers of them at every forward pass, and hold both. The others stay: autocast computes norms in
        float32, and Hugging Face's networks give their position encodings the type of the patch embedding.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
        return self

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode; with ``mode`` the LoRA dropout becomes active."""
        super().train(False)
        for name, module in self.named_modules():
            if isinstance(module, nn.Dropout) and "lora_dropout" in name:
                module.train(mode)
        return self

    def forward(self, images: Tensor, layers: Sequence[int] = (), final_norm: bool = True) -> Features:
        """Features as maps on the token grid.

        Args:
            images: (B, 3, H, W), ImageNet-normalised; H and W multiples of 16.
            layers: Transformer layers or ConvNeXt stages wanted besides the last map, 0 for the first.
            final_norm: Apply the last LayerNorm to those layers; of a ConvNeXt to its last stage only, whose width is the norm's.

        Raises:
            UserError: H or W is no multiple of 16.
            ValueError: The network's tokens are not those of the image's cells.
        """
        check_image_size(images)
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        if self.architecture.patch is None:
            return self._stages(images, grid, layers, final_norm)
        if self.architecture.patch != self.patch:
            size = (grid[0] * self.architecture.patch, grid[1] * self.architecture.patch)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        output = self.vit(pixel_values=images, output_hidden_states=bool(layers))
        maps = []
        for layer in layers:
            # Entry 0 holds the embeddings, so layer i is entry i + 1; none of them is normalised.
            tokens = output.hidden_states[layer + 1]
            maps.append(self._to_map(getattr(self.vit, self.architecture.final_norm)(tokens) if final_norm else tokens, grid))
        return Features(self._to_map(output.last_hidden_state, grid), tuple(maps))

    def _stages(self, images: Tensor, grid: tuple[int, int], layers: Sequence[int], final_norm: bool) -> Features:
        height, width = (-(-side // COARSEST) * COARSEST for side in images.shape[-2:])
        if (height, width) != tuple(images.shape[-2:]):
            images = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]), mode="replicate")
        output = self.vit(pixel_values=images, output_hidden_states=bool(layers))
        whole = (height // self.patch, width // self.patch)
        # Only the last stage comes out normalised, and as tokens, behind one that is their mean.
        last = self._to_map(output.last_hidden_state, (height // COARSEST, width // COARSEST))
        maps = [last]
        for layer in layers:
            normed = final_norm and layer == self.shape.num_layers - 1
            maps.append(last if normed else output.hidden_states[layer + 1])  # entry 0 holds the images
        fitted = [_fit(x, whole)[..., : grid[0], : grid[1]] for x in maps]
        return Features(fitted[0], tuple(fitted[1:]))

    def _to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        # Hugging Face orders CLS (or the mean), registers, patches; the patches in raster order.
        patches = tokens[:, self.num_special_tokens :]
        batch, count, width = patches.shape
        if count != grid[0] * grid[1]:
            raise ValueError(f"{count} patch tokens do not fill a grid of {grid[0]} x {grid[1]}")
        return patches.transpose(1, 2).reshape(batch, width, *grid)


def _fit(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Brings a map whose cells are 2^k times as large or small to ``grid``."""
    factor = x.shape[-1] // grid[1]
    if factor > 1:
        return F.avg_pool2d(x, factor)
    return x if factor == 1 else F.interpolate(x, size=grid, mode="bilinear", align_corners=False)


def check_image_size(images: Tensor, multiple: int = PATCH) -> None:
    """Checks that a batch (B, C, H, W) fits the token grid, or the coarsest grid of a segmenter.

    Raises:
        UserError: H or W is no multiple of ``multiple``.
    """
    height, width = images.shape[-2:]
    if height % multiple or width % multiple or 0 in (height, width):
        raise UserError(
            f"images of {height} x {width} pixels do not fit a network that needs multiples of {multiple}",
            where="model input",
            todo=f"resize or pad the images so that both sides are multiples of {multiple}",
        )


def shape_of(config: PreTrainedConfig) -> BackboneShape:
    """What a backbone with this configuration gives."""
    if ARCHITECTURES[config.model_type].patch is None:
        return BackboneShape(config.hidden_sizes[-1], tuple(config.hidden_sizes))
    return BackboneShape(config.hidden_size, (config.hidden_size,) * config.num_hidden_layers)


def segmentation_layers(num_layers: int) -> tuple[int, int, int, int]:
    """The four layers that DINO segmentation heads read, shallowest first: [2, 5, 8, 11] of 12 and [4, 11, 17, 23] of 24 (SegDINO).

    Other depths are divided evenly, ending with the last layer, so that a ConvNeXt gives its four stages; fewer than four layers are
    repeated.
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
        UserError: The weights cannot be had (no network, licence not accepted, missing or damaged file), are not those of
            ``guide.sha256`` or of the fingerprint that is ``known``, or belong to no architecture in ``ARCHITECTURES``.
    """
    if guide.weights == "random":
        config = weights.random_config(guide.backbone)
        with seeded(RANDOM_SEED):
            backbone = Backbone(ARCHITECTURES[config.model_type].model_class(config))
        backbone.fingerprint = fingerprints.fingerprint(backbone, values=False)
    else:
        folder = weights.folder_of(guide.backbone)
        before = fingerprints.stamp(folder)
        backbone = Backbone(weights.load_pretrained(guide.backbone, guide.sha256))
        backbone.fingerprint = fingerprints.kept(folder, before, lambda: fingerprints.fingerprint(backbone))
    known.check(guide, backbone.fingerprint)
    return backbone


def fingerprint_of(guide: DINOGuide) -> str:
    """The fingerprint of a guide's backbone, from the cache where it was computed of the same files before.

    Raises:
        UserError: As ``load_backbone``.
    """
    found = fingerprints.remembered(weights.folder_of(guide.backbone)) if guide.weights == "pretrained" else ""
    if not found:
        return check_backbone(guide)
    known.check(guide, found)
    return found


def check_backbone(guide: DINOGuide) -> str:
    """Checks before a search that its trials will find their backbone.

    Pretrained weights are downloaded if need be and really loaded once, which takes seconds: only loading finds a damaged or foreign file.
    Random weights of a large network are not made: its configuration is enough.

    Returns:
        Its fingerprint.

    Raises:
        UserError: As ``load_backbone``.
    """
    if guide.weights == "random":
        with torch.device("meta"):
            return load_backbone(guide).fingerprint
    return load_backbone(guide).fingerprint
