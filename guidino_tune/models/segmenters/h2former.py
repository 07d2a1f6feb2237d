"""H2Former (He et al., 2023): a ResNet whose stages are each followed by window attention with channel attention in its MLPs."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidino_tune import config as sections
from guidino_tune.models.backbone import BackboneShape, Features
from guidino_tune.models.gate import Gate
from guidino_tune.models.parts.convolutions import BatchNorm, Upsampling
from guidino_tune.models.parts.swin import drop_path_rates, swin_stage, to_maps, to_tokens
from guidino_tune.models.pretrained import Layout
from guidino_tune.models.segmenters.base import Segmenter


class ResBlock(nn.Module):
    """ResNet's basic block (He et al., 2016): two 3x3 convolutions with batch norm and a residual, projected by 1x1 where needed."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            BatchNorm(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            BatchNorm(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y: Tensor = self.body(x) + self.shortcut(x)
        return F.relu(y)


def res_stage(inputs: int, outputs: int, num_blocks: int) -> nn.Sequential:
    """Residual blocks of one resolution; the first halves it where the width changes."""
    first = ResBlock(inputs, outputs, 1 if inputs == outputs else 2)
    return nn.Sequential(first, *(ResBlock(outputs, outputs, 1) for _ in range(num_blocks - 1)))


class ChannelAttention(nn.Module):
    """Efficient channel attention (Wang et al., 2020) with a residual: a convolution of 3 over the channels' means scales each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        scale = self.conv(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]
        return x + x * scale


class ChannelMLP(nn.Module):
    """The MLP of an attention block, with channel attention at its end.

    Args:
        width: Of the tokens.
        scrambled: Read the tokens (B, N, C) as (B, C, N) for channel attention without transposing them, as the original code does, and
            transpose what comes out: "channels" are then runs of neighbouring tokens.
    """

    def __init__(self, width: int, *, scrambled: bool) -> None:
        super().__init__()
        self.scrambled = scrambled
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.attention = ChannelAttention()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, width) to the same."""
        x = self.outer(F.gelu(self.inner(x)))
        batch, height, width, channels = x.shape
        maps = x.reshape(batch, channels, height, width) if self.scrambled else to_maps(x)
        return to_tokens(self.attention(maps))


class MultiScale(nn.Module):
    """Convolutions of several kernels, all of stride 2, side by side, and channel attention over them.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out: half from the first kernel, a quarter from the second, ...; the last two give equally many.
        kernels: Even sides of the kernels.
    """

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        widths = [outputs >> min(i, len(kernels) - 1) for i in range(1, len(kernels) + 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, width, kernel, stride=2, padding=kernel // 2 - 1) for kernel, width in zip(kernels, widths, strict=True)
        )
        self.attention = ChannelAttention()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / 2, W / 2)."""
        y: Tensor = self.attention(torch.cat([conv(x) for conv in self.convs], dim=1))
        return y


class H2Former(Segmenter):
    """Four stages of widths ``base_width * (1, 2, 4, 8)`` at 1/2 to 1/16: residual blocks, plus a multi-scale map, then attention.

    The multi-scale map of the first stage comes from the image, that of another from the stage before it. The decoder has transposed
    convolutions, concatenation [up, skip] and one 3x3 convolution a stage; its last map, at 1/2, is brought up bilinearly.
    The original's input has four channels and its output two, for a softmax; here they have ``in_channels`` and ``num_outputs``.
    Gate places: ``input``, the image; ``bottleneck``, the deepest map at 1/16; ``skips``; ``decoder``, every map of the decoder.

    Raises:
        UserError: A number of heads does not divide its stage's width.
    """

    layout = Layout(
        about="ResNet-34 of ImageNet (resnet34-*.pth of torchvision)",
        anchor="layer1.0.conv1.weight",
        names=(
            (r"stem\.0\.(.+)", r"conv1.\1"),
            (r"stem\.1\.(.+)", r"bn1.\1"),
            *(
                (rf"residual\.{i}\.(\d+)\.{own}\.(.+)", rf"layer{i + 1}.\1.{theirs}.\2")
                for i in range(4)
                for own, theirs in (
                    ("body.0", "conv1"), ("body.1", "bn1"), ("body.3", "conv2"), ("body.4", "bn2"),
                    ("shortcut.0", "downsample.0"), ("shortcut.1", "downsample.1"),
                )
            ),
        ),
        left_out=r"(fc)\..+",
        fitting="data.channels=3, segmenter.base_width=64 and segmenter.blocks=[3, 4, 6, 3]",
    )  # fmt: skip

    def __init__(
        self,
        config: sections.H2Former,
        *,
        image_size: int = 256,
        num_outputs: int = 1,
        in_channels: int = 3,
        backbone: BackboneShape | None = None,
    ) -> None:
        super().__init__(config, image_size=image_size)
        window = config.window_at(image_size)
        widths = [config.base_width * 2**stage for stage in range(4)]
        stages = zip(widths, config.heads, drop_path_rates(config.drop_path, config.depths), strict=True)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 7, padding=3, bias=False),
            BatchNorm(widths[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.residual = nn.ModuleList(
            res_stage(*pair, num_blocks) for pair, num_blocks in zip(pairwise([widths[0], *widths]), config.blocks, strict=True)
        )
        self.attention = nn.ModuleList(
            swin_stage(width, heads, window, rates, lambda width: ChannelMLP(width, scrambled=config.scrambled_mlp))
            for width, heads, rates in stages
        )
        self.embed = MultiScale(in_channels, widths[0], (2, 4, 8, 16))
        self.embed_norm = nn.LayerNorm(widths[0])
        self.merge_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[:-1])
        self.merges = nn.ModuleList(MultiScale(fine, deep, (2, 4)) for fine, deep in pairwise(widths))
        widths.reverse()
        self.up = nn.ModuleList(Upsampling(deep, fine) for deep, fine in pairwise(widths))
        self.fuse = nn.ModuleList(
            nn.Sequential(nn.Conv2d(deep, fine, 3, padding=1), BatchNorm(fine), nn.ReLU(inplace=True)) for deep, fine in pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], num_outputs, 1, bias=False)

    def forward(self, images: Tensor, gate: Gate, features: Features | None = None) -> tuple[Tensor, ...]:
        """See ``Segmenter.forward``; one head."""
        images = gate("input", images)
        x = self.residual[0](self.stem(images))
        x = to_maps(self.attention[0](to_tokens(x) + self.embed_norm(to_tokens(self.embed(images)))))
        skips = []
        for residual, norm, merge, attention in zip(self.residual[1:], self.merge_norms, self.merges, self.attention[1:], strict=True):
            skips.append(x)
            x = residual(x) + merge(to_maps(norm(to_tokens(x))))
            x = to_maps(attention(to_tokens(x)))
        x = gate("bottleneck", x)
        for up, fuse in zip(self.up, self.fuse, strict=True):
            x = gate("decoder", fuse(torch.cat([up(x), gate("skips", skips.pop())], dim=1)))
        # The original upsamples before the head. Both are linear and mix different axes, so the order is free, and here pixels are fewer.
        return (F.interpolate(self.head(x), scale_factor=2, mode="bilinear", align_corners=True),)
