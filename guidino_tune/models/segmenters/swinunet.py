"""Swin-Unet (Cao et al., 2021): a U-Net of shifted-window transformer blocks, without convolutions but the first and the last."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.swin import drop_path_rates, gate_tokens, swin_stage, to_maps, to_tokens
from guidino_tune.models.pretrained import Layout
from guidino_tune.models.segmenters.base import Segmenter


class PatchMerge(nn.Module):
    """Way down: four neighbours become one token by layer norm and a linear layer without bias (Swin Transformer, section 3.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, width) to (B, H / 2, W / 2, 2 * width); neighbours are concatenated column by column."""
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5)
        merged: Tensor = self.reduce(self.norm(x.flatten(3)))
        return merged


class PatchExpand(nn.Module):
    """Way up (section 3.5): a linear layer without bias gives a token's ``factor^2`` children, which layer norm follows."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(inputs, factor**2 * outputs, bias=False)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) to (B, factor * H, factor * W, outputs); children lie in raster order."""
        x = self.expand(x).unflatten(-1, (self.factor, self.factor, -1)).transpose(2, 3)
        expanded: Tensor = self.norm(x.flatten(3, 4).flatten(1, 2))
        return expanded


def initialise(module: nn.Module) -> None:
    """Linear weights from a normal distribution of deviation 0.02, truncated; no initial bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_BLOCK = (
    ("norm_attention", "norm1"), ("attention.qkv", "attn.qkv"), ("attention.project", "attn.proj"),
    ("attention.bias_table", "attn.relative_position_bias_table"), ("norm_mlp", "norm2"), ("mlp.0", "mlp.fc1"), ("mlp.2", "mlp.fc2"),
)  # fmt: skip


class SwinUNet(Segmenter):
    """Patches of 4 pixels, four stages of widths ``embed_width * (1, 2, 4, 8)`` at 1/4 to 1/32, three back up, and 4-fold expansion.

    Skips are the maps that enter the encoder's three finer stages. Decoder blocks have the rates of stochastic depth of their
    counterparts in the encoder.
    Gate places: ``input``, the image; ``skips``; ``decoder``, every expanded map, the last at full size; ``bottleneck``, the deepest map
    as it enters its blocks. Behind them, and before any expansion, a gate would do nothing: every patch expansion normalises each token,
    and with it away whatever multiplied the token as a whole.

    Raises:
        UserError: A number of heads does not divide its stage's width.
    """

    # As its authors do, the decoder's blocks start from the encoder's of the same width, and blocks beyond its depths are left out.
    layout = Layout(
        about="Swin-T of ImageNet (swin_tiny_patch4_window7_224.pth of microsoft/Swin-Transformer)",
        anchor="patch_embed.proj.weight",
        names=(
            (r"embed\.(.+)", r"patch_embed.proj.\1"),
            (r"embed_norm\.(.+)", r"patch_embed.norm.\1"),
            *((rf"encoder\.(\d)\.(\d+)\.{own}(.*)", rf"layers.\1.blocks.\2.{theirs}\3") for own, theirs in _BLOCK),
            *((rf"decoder\.{2 - i}\.(\d+)\.{own}(.*)", rf"layers.{i}.blocks.\1.{theirs}\2") for i in range(3) for own, theirs in _BLOCK),
            (r"merge\.(\d)\.norm\.(.+)", r"layers.\1.downsample.norm.\2"),
            (r"merge\.(\d)\.reduce\.(.+)", r"layers.\1.downsample.reduction.\2"),
            (r"norm\.(.+)", r"norm.\1"),
        ),
        left_out=r"(head)\..+|.+\.(relative_position_index|attn_mask)|(layers\.\d\.blocks\.\d+)\..+",
        fitting="data.channels=3, segmenter.embed_width=96 and segmenter.heads=[3, 6, 12, 24], with depths up to [2, 2, 6, 2]",
        tables=r".+\.bias_table",
    )

    def __init__(
        self,
        config: sections.SwinUNet,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        window = config.window_at(image_size)
        widths = [config.embed_width * 2**stage for stage in range(4)]
        stages = list(zip(widths, config.heads, drop_path_rates(config.drop_path, config.depths), strict=True))
        self.embed = nn.Conv2d(in_channels, widths[0], 4, stride=4)
        self.embed_norm = nn.LayerNorm(widths[0])
        self.encoder = nn.ModuleList(swin_stage(width, heads, window, rates) for width, heads, rates in stages)
        self.merge = nn.ModuleList(PatchMerge(width) for width in widths[:-1])
        self.norm = nn.LayerNorm(widths[-1])
        stages.reverse()
        widths.reverse()
        self.expand = nn.ModuleList(PatchExpand(deep, fine, 2) for deep, fine in pairwise(widths))
        self.fuse = nn.ModuleList(nn.Linear(2 * fine, fine) for fine in widths[1:])
        self.decoder = nn.ModuleList(swin_stage(width, heads, window, rates) for width, heads, rates in stages[1:])
        self.norm_up = nn.LayerNorm(widths[-1])
        self.expand_last = PatchExpand(widths[-1], widths[-1], 4)
        self.head = nn.Conv2d(widths[-1], num_outputs, 1, bias=False)
        self.apply(initialise)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; one head."""
        x = self.embed_norm(to_tokens(self.embed(gate("input", images))))
        skips = []
        for stage, merge in zip(self.encoder, self.merge, strict=False):
            skips.append(x)
            x = merge(stage(x))
        x = self.norm(self.encoder[-1](gate_tokens(gate, "bottleneck", x)))
        for expand, fuse, stage in zip(self.expand, self.fuse, self.decoder, strict=True):
            x = gate_tokens(gate, "decoder", expand(x))
            x = stage(fuse(torch.cat([x, gate_tokens(gate, "skips", skips.pop())], dim=-1)))
        x = gate_tokens(gate, "decoder", self.expand_last(self.norm_up(x)))
        return (self.head(to_maps(x)),)
